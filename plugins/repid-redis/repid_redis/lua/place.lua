-- Put a live message where its due time says. `due` is in ms, or empty. A new first delayed one rings for whoever has the timer.
local function delay(place, id, due)
  local score = due + call('INCR', B .. 'n') % 4096 / 4096
  local member = place .. '\n' .. id
  call('ZADD', B .. 'd', score, member)
  if call('ZRANK', B .. 'd', member) == 0 then
    call('ZADD', B .. 'wd', 0, '')
  end
  tell('d')
end

local function put(place, id, due, now)
  if due ~= '' and tonumber(due) > now then
    delay(place, id, tonumber(due))
  else
    push('RPUSH', place, { id })
  end
end
