-- Remove a message that is ready or delayed. ARGV: id. Returns whether there was one.
local record = call('HGET', B .. 'b', ARGV[1])
if not record then
  return 0
end
local place = place_of(record)
local where = state(place, ARGV[1])
if where == 'running' then
  return 0
end
call('HDEL', B .. 'b', ARGV[1])
call('HDEL', B .. 'c', ARGV[1])
take_out(place, ARGV[1], where)
return 1
