-- Fetch delayed (d) or dead (x) messages. ARGV: session, epoch, how many, the most bytes, which, how many to pass over, topics.
-- Returns as fetch does, with handles for ids; instead of deaths, how many to pass over the next time, -1 at the end.
local session, epoch, want, most, which, skip = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5], tonumber(ARGV[6])
if not call('ZSCORE', B .. 's', session) then
  return { -1 }
elseif (call('HGET', B .. 'e', session) or '0') ~= epoch then
  return { -2 }
end
local next_due = move(clock(), 200)
local topics = {}
for i = 7, #ARGV do
  topics[ARGV[i]] = true
end
local key, window = B .. which, 1000
local handles, records, taken, bytes, looked = {}, {}, {}, 0, 0
local found = call('ZRANGE', key, skip, skip + window - 1, 'WITHSCORES')
for i = 1, #found, 2 do
  if #handles == want or bytes >= most then
    break
  end
  looked = looked + 1
  local member, score, handle, record, place = found[i], found[i + 1], nil, nil, nil
  if which == 'x' then
    handle, record = member, call('HGET', B .. 'xb', member)
    local _, _, inner = exhume(record)
    place = place_of(inner)
  else
    local at = string.find(member, '\n', 1, true)
    place, handle = string.sub(member, 1, at - 1), string.sub(member, at + 1)
  end
  if #ARGV < 7 or topics[string.sub(place, 2)] then
    record = record or call('HGET', B .. 'b', handle)
    handles[#handles + 1], records[#records + 1], taken[#taken + 1] = handle, record, member
    bytes = bytes + #record
    call('HSET', B .. 'h:' .. session, handle, which .. score .. ':' .. place)
  end
end
if #taken > 0 then
  call('ZREM', key, unpack(taken))
end
local over = #found < 2 * window and looked == #found / 2
return { next_due, over and 0 or 1, handles, records, over and -1 or skip + looked - #taken }
