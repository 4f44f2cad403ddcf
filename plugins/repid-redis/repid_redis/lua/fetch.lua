-- ARGV: session, epoch, how many, the most bytes at once, whether a marker was taken before, topics; none for all.
-- Returns {-1} for a session that is not known, {-2} for an epoch that is over, else ms until the next falls due, whether
-- there is more, ids, records, and how often each was given out to workers that died.
local session, epoch, want, most, woken = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5] == '1'
local now = clock()
local refused = not call('ZSCORE', B .. 's', session) and -1
  or (call('HGET', B .. 'e', session) or '0') ~= epoch and -2
local next_due = move(now, 200)

local places = {}
if #ARGV > 5 then
  local asked = {}
  for priority = 0, 2 do
    for i = 6, #ARGV do
      asked[#asked + 1] = priority .. ARGV[i]
    end
  end
  for from = 1, #asked, 1000 do
    local to = math.min(from + 999, #asked)
    for i, there in ipairs(call('SMISMEMBER', B .. 't', unpack(asked, from, to))) do
      if there == 1 then
        places[#places + 1] = asked[from + i - 1]
      end
    end
  end
else
  places = call('SMEMBERS', B .. 't')
  table.sort(places)
end

local ids, records, held, count, bytes, more = {}, {}, {}, 0, 0, false
for _, place in ipairs(places) do
  local list, mark, chunk, empty = B .. 'r:' .. place, 'n' .. place, 16, false
  while not refused and not empty and count < want and bytes < most do
    local asked = math.min(want - count, chunk)
    local popped = call('LPOP', list, asked) or {}
    if #popped < asked then
      empty = true
    end
    if #popped == 0 then
      break
    end
    local found = call('HMGET', B .. 'b', unpack(popped))
    for i = 1, #popped do
      local id, record = popped[i], found[i]
      if record then -- there is one, unless somebody deletes keys by hand
        count = count + 1
        ids[count], records[count] = id, record
        held[2 * count - 1], held[2 * count] = id, mark
        bytes = bytes + #record
      end
    end
    chunk = math.min(4 * chunk, 1000)
  end
  if empty or call('EXISTS', list) == 0 then
    call('SREM', B .. 't', place)
  else
    more = true
    if woken then
      ring(place)
    end
  end
end
if refused then
  return { refused }
end
for from = 1, 2 * count, 1000 do
  call('HSET', B .. 'h:' .. session, unpack(held, from, math.min(from + 999, 2 * count)))
end
local deaths = {}
if count > 0 and call('EXISTS', B .. 'c') == 1 then
  deaths = call('HMGET', B .. 'c', unpack(ids))
end
return { next_due, more and 1 or 0, ids, records, deaths }
