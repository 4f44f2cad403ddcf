-- To the dead. ARGV: session, handle, death, most dead, longest age in ms. Returns whether the session held it.
local session, handle, death = ARGV[1], ARGV[2], ARGV[3]
local key, now = B .. 'h:' .. session, clock()
local value = call('HGET', key, handle)
if not value then
  return 0
end
call('HDEL', key, handle)
if string.sub(value, 1, 1) == 'x' then
  local id, _, record = exhume(call('HGET', B .. 'xb', handle))
  bury(handle, id, death, record, now)
else
  local record = call('HGET', B .. 'b', handle)
  call('HDEL', B .. 'b', handle)
  call('HDEL', B .. 'c', handle)
  bury('', handle, death, record, now)
end
trim(now, tonumber(ARGV[4]), tonumber(ARGV[5]))
return 1
