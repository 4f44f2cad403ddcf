-- Store a bucket, and tell who waits for it. KEYS: the bucket. ARGV: its bytes, ms that it lives or empty, channel or empty,
-- up to how many bytes it is sent along.
if ARGV[2] == '' then
  redis.call('SET', KEYS[1], ARGV[1])
else
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
end
if ARGV[3] ~= '' then
  redis.call('PUBLISH', ARGV[3], #ARGV[1] <= tonumber(ARGV[4]) and ARGV[1] or '')
end
return 1
