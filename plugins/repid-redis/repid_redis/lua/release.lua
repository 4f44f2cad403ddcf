-- Put back what a session held. `values` are what its hash said of the handles, in the order in which they are to stand.
-- Marks: n normal, s started again after a death, d<score>: from delayed, x<score>: from dead.
local function release(handles, values, now)
  local places, order = {}, {}
  for i, handle in ipairs(handles) do
    local mark, rest = string.sub(values[i], 1, 1), string.sub(values[i], 2)
    if mark == 'n' or mark == 's' then
      if not places[rest] then
        places[rest] = {}
        order[#order + 1] = rest
      end
      table.insert(places[rest], 1, handle) -- LPUSH turns them round
    else
      local at = string.find(rest, ':', 1, true)
      local score, place = string.sub(rest, 1, at - 1), string.sub(rest, at + 1)
      if mark == 'x' then
        call('ZADD', B .. 'x', score, handle)
        tell('x')
      elseif math.floor(tonumber(score)) > now then
        call('ZADD', B .. 'd', score, place .. '\n' .. handle)
        call('ZADD', B .. 'wd', 0, '')
        tell('d')
      else
        push('RPUSH', place, { handle })
      end
    end
  end
  for _, place in ipairs(order) do
    push('LPUSH', place, places[place])
  end
end

local function close(session)
  call('UNLINK', B .. 'h:' .. session, B .. 'w!' .. session)
  call('ZREM', B .. 's', session)
  call('HDEL', B .. 'e', session)
  call('HDEL', B .. 'l', session)
end
