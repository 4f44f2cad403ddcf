-- The session ends. ARGV: session, handles in the order in which they are to stand. What else it holds goes back too.
local session, handles, values = ARGV[1], {}, {}
local key = B .. 'h:' .. session
for i = 2, #ARGV do
  local value = call('HGET', key, ARGV[i])
  if value then
    call('HDEL', key, ARGV[i])
    handles[#handles + 1], values[#values + 1] = ARGV[i], value
  end
end
local held = call('HGETALL', key)
for i = 1, #held, 2 do
  handles[#handles + 1], values[#values + 1] = held[i], held[i + 1]
end
release(handles, values, clock())
close(session)
call('ZADD', B .. 'wd', 0, '') -- another is to set its timer
if call('ZCARD', B .. 's') == 0 then
  call('DEL', B .. 'g', B .. 'wd')
end
return #handles
