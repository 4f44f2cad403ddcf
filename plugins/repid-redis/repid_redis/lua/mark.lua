-- Note that a message given out before is about to run. ARGV: session, id. Returns whether the session holds it.
local key = B .. 'h:' .. ARGV[1]
local value = call('HGET', key, ARGV[2])
if not value then
  return 0
end
if string.sub(value, 1, 1) == 'n' then
  call('HSET', key, ARGV[2], 's' .. string.sub(value, 2))
end
return 1
