-- Back where it came from, the first one first in line. ARGV: session, handles. Returns for each whether the session held it.
local key, out, handles, values = B .. 'h:' .. ARGV[1], {}, {}, {}
for i = 2, #ARGV do
  local value = call('HGET', key, ARGV[i])
  out[#out + 1] = value and 1 or 0
  if value then
    call('HDEL', key, ARGV[i])
    handles[#handles + 1], values[#values + 1] = ARGV[i], value
  end
end
release(handles, values, clock())
return out
