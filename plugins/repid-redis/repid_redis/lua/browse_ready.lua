-- List ready messages. ARGV: how many, and of the last one seen: place, index, id.
-- Returns for each: place, index, id, record.
local want, out = tonumber(ARGV[1]), {}
local places = call('SMEMBERS', B .. 't')
table.sort(places)
for _, place in ipairs(places) do
  local key, from = B .. 'r:' .. place, 0
  if ARGV[2] == place then
    local index = tonumber(ARGV[3])
    if call('LINDEX', key, index) ~= ARGV[4] then
      index = call('LPOS', key, ARGV[4]) or -1 -- gone: so is all that stood before it
    end
    from = index + 1
  end
  if want > 0 and (not ARGV[2] or place >= ARGV[2]) then
    local ids = call('LRANGE', key, from, from + want - 1)
    if #ids > 0 then
      for i, record in ipairs(call('HMGET', B .. 'b', unpack(ids))) do
        if record then
          out[#out + 1], out[#out + 2], out[#out + 3], out[#out + 4] = place, from + i - 1, ids[i], record
        end
      end
      want = want - #ids
    end
  end
end
return out
