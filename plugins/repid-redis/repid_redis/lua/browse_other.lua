-- List delayed (d) or dead (x) messages. ARGV: how many, which, and of the last one seen: score, member.
-- Returns for each: score, member, record.
local want, key, out = tonumber(ARGV[1]), B .. ARGV[2], {}
local from, skip = ARGV[3] or '-inf', 0
while want > 0 do
  local found = call('ZRANGEBYSCORE', key, from, '+inf', 'WITHSCORES', 'LIMIT', skip, want + 1)
  if #found == 0 then
    break
  end
  for i = 1, #found, 2 do
    local member, score = found[i], found[i + 1]
    if want > 0 and (ARGV[3] ~= score or member > ARGV[4]) then
      local record
      if ARGV[2] == 'x' then
        record = call('HGET', B .. 'xb', member)
      else
        record = call('HGET', B .. 'b', string.sub(member, string.find(member, '\n', 1, true) + 1))
      end
      out[#out + 1], out[#out + 2], out[#out + 3] = score, member, record
      want = want - 1
    end
  end
  skip = skip + #found / 2
end
return out
