-- A fetch was lost on its way, or is not wanted any more. ARGV: session, epoch from now on, whether it was lost, handles that
-- the client knows of. Puts back what the client cannot know of. Returns how many, or -1 if the session is not known.
local session = ARGV[1]
if not call('ZSCORE', B .. 's', session) then
  return -1
end
call('HSET', B .. 'e', session, ARGV[2])
call('ZADD', B .. 'w!' .. session, 0, '')
if ARGV[3] == '0' then
  return 0
end
local known, handles, values, key = {}, {}, {}, B .. 'h:' .. session
for i = 4, #ARGV do
  known[ARGV[i]] = true
end
local held = call('HGETALL', key)
for i = 1, #held, 2 do
  if not known[held[i]] then
    call('HDEL', key, held[i])
    handles[#handles + 1], values[#values + 1] = held[i], held[i + 1]
  end
end
release(handles, values, clock())
return #handles
