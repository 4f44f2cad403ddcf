-- Done: remove. ARGV: session, ids. Returns for each whether the session held it.
local session, out, gone = ARGV[1], {}, {}
local key = B .. 'h:' .. session
for from = 2, #ARGV, 1000 do
  local to = math.min(from + 999, #ARGV)
  local values = call('HMGET', key, unpack(ARGV, from, to))
  for i = from, to do
    local value = values[i - from + 1]
    out[#out + 1] = value and 1 or 0
    if value then
      gone[#gone + 1] = ARGV[i]
    end
  end
end
for from = 1, #gone, 1000 do
  local to = math.min(from + 999, #gone)
  call('HDEL', key, unpack(gone, from, to))
  if string.sub(session, 1, 1) == 'x' then
    call('HDEL', B .. 'xb', unpack(gone, from, to))
  else
    call('HDEL', B .. 'b', unpack(gone, from, to))
    if call('EXISTS', B .. 'c') == 1 then
      call('HDEL', B .. 'c', unpack(gone, from, to))
    end
  end
end
return out
