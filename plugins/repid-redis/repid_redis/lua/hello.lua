-- ARGV: session, lease in ms, what else it is to be told of, or nothing.
call('ZADD', B .. 's', clock() + ARGV[2], ARGV[1])
if ARGV[3] ~= '' then
  call('HSET', B .. 'l', ARGV[1], ARGV[3])
end
return 1
