-- Keep a dead message, and no more and no longer than is asked for (0: no limit).
local function trim(now, count, age)
  local old = {}
  if age > 0 then
    old = call('ZRANGEBYSCORE', B .. 'x', '-inf', string.format('%.0f', now - age), 'LIMIT', 0, 500)
  end
  if #old == 0 and count > 0 then
    local over = call('ZCARD', B .. 'x') - count
    if over > 0 then
      old = call('ZRANGE', B .. 'x', 0, math.min(over, 500) - 1)
    end
  end
  if #old > 0 then
    call('ZREM', B .. 'x', unpack(old))
    call('HDEL', B .. 'xb', unpack(old))
  end
end

local function bury(number, id, death, record, now)
  number = number ~= '' and number or string.format('%.0f', call('INCR', B .. 'n'))
  call('HSET', B .. 'xb', number, id .. '\n' .. death .. '\n' .. record)
  call('ZADD', B .. 'x', now + number % 4096 / 4096, number)
  tell('x')
end

-- The id, death and record of a dead one, from what `bury` has kept.
local function exhume(dead)
  local _, first = string.find(dead, '\n', 1, true)
  local _, second = string.find(dead, '\n', first + 1, true)
  return string.sub(dead, 1, first - 1), string.sub(dead, first + 1, second - 1), string.sub(dead, second + 1)
end
