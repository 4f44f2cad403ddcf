-- Done: remove. ARGV: session, handles. Returns 1 if the session held them all, else for each whether it did.
local session, out, gone, count, last = ARGV[1], {}, {}, 0, #ARGV
local key = B .. 'h:' .. session
for from = 2, last, 1000 do
  local to = math.min(from + 999, last)
  local values = call('HMGET', key, unpack(ARGV, from, to))
  for i = from, to do
    local value = values[i - from + 1]
    out[i - 1] = value and 1 or 0
    if value then
      count = count + 1
      gone[count] = ARGV[i]
    end
  end
end
for from = 1, count, 1000 do
  local to = math.min(from + 999, count)
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
return count == last - 1 and 1 or out
