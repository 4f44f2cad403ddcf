-- Remove what is ready, delayed and dead. What is in a hand stays there.
local kept, dead = {}, {}
for _, session in ipairs(call('ZRANGE', B .. 's', 0, -1)) do
  local hash = string.sub(session, 1, 1) == 'x' and 'xb' or 'b'
  local into = hash == 'xb' and dead or kept
  for _, handle in ipairs(call('HKEYS', B .. 'h:' .. session)) do
    into[#into + 1], into[#into + 2] = handle, call('HGET', B .. hash, handle)
  end
end
for _, place in ipairs(call('SMEMBERS', B .. 't')) do
  call('UNLINK', B .. 'r:' .. place, B .. 'w:' .. string.sub(place, 2))
end
call('UNLINK', B .. 'b', B .. 't', B .. 'd', B .. 'x', B .. 'xb', B .. 'wd')
for hash, fields in pairs({ b = kept, xb = dead }) do
  for from = 1, #fields, 1000 do
    call('HSET', B .. hash, unpack(fields, from, math.min(from + 999, #fields)))
  end
end
for _, id in ipairs(call('HKEYS', B .. 'c')) do
  if call('HEXISTS', B .. 'b', id) == 0 then
    call('HDEL', B .. 'c', id)
  end
end
return 1
