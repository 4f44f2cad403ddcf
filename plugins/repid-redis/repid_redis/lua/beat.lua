-- A session lives. ARGV: session, lease in ms, how many workers a message may kill, most dead, longest age in ms.
-- End sessions whose lease is over, unless nobody was heard for so long that it was rather the server that was away.
-- Returns whether the session is known, ms until the next falls due, and how many messages were taken from dead sessions.
local session, lease, limit = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local now, taken = clock(), 0
local known = call('ZSCORE', B .. 's', session)
if known then
  call('ZADD', B .. 's', 'XX', now + lease, session)
end
if call('ZCARD', B .. 's') > 0 then
  local last = call('HMGET', B .. 'g', 'last', 'grace')
  local grace = tonumber(last[2]) or 0
  if not last[1] or now - last[1] > lease / 2 then -- the server may have gone before the first heartbeat
    grace = now + lease
  end
  call('HSET', B .. 'g', 'last', now, 'grace', grace)
  if now >= grace then
    for _, dead in ipairs(call('ZRANGEBYSCORE', B .. 's', '-inf', string.format('%.0f', now), 'LIMIT', 0, 5)) do
      local held, handles, values = call('HGETALL', B .. 'h:' .. dead), {}, {}
      for i = 1, #held, 2 do
        local handle, value = held[i], held[i + 1]
        local mark, deaths = string.sub(value, 1, 1), 0
        if mark == 'n' or mark == 's' then
          deaths = tonumber(call('HGET', B .. 'c', handle) or 0)
          if mark == 's' or deaths == 0 then
            deaths = call('HINCRBY', B .. 'c', handle, 1)
          end
        end
        if deaths >= limit then
          local record = call('HGET', B .. 'b', handle)
          call('HDEL', B .. 'b', handle)
          call('HDEL', B .. 'c', handle)
          local death = '{"reason":"poison","at":%.0f,"attempts":%d,"error":"%d workers died while they ran it"}'
          bury('', handle, string.format(death, now, deaths, deaths), record, now)
        else
          handles[#handles + 1] = handle
          values[#values + 1] = mark == 's' and 'n' .. string.sub(value, 2) or value
        end
      end
      taken = taken + #held / 2
      release(handles, values, now)
      close(dead)
    end
  end
  trim(now, tonumber(ARGV[4]), tonumber(ARGV[5]))
end
return { known and 1 or 0, move(now, 500), taken }
