-- Another message of the same id in its place. ARGV: session, handle, id, place, due, record.
-- Returns 1, 0 if the session does not hold it, or the state of a live message of a dead one's id.
local session, handle, id, place, due, record = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local key = B .. 'h:' .. session
local value = call('HGET', key, handle)
if not value then
  return 0
end
if string.sub(value, 1, 1) == 'x' then
  local live = call('HGET', B .. 'b', id)
  if live then
    return state(place_of(live), id)
  end
  call('HDEL', key, handle)
  call('HDEL', B .. 'xb', handle)
else
  call('HDEL', key, handle)
  call('HDEL', B .. 'c', id)
end
call('HSET', B .. 'b', id, record)
put(place, id, due, clock())
return 1
