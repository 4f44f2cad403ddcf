-- Where a live message is: 'delayed', 'running' (in a hand), or 'ready'.
local function state(place, id)
  if call('ZSCORE', B .. 'd', place .. '\n' .. id) then
    return 'delayed'
  end
  for _, session in ipairs(call('ZRANGE', B .. 's', 0, -1)) do
    if string.sub(session, 1, 1) ~= 'x' and call('HEXISTS', B .. 'h:' .. session, id) == 1 then
      return 'running'
    end
  end
  return 'ready'
end

local function take_out(place, id, where)
  if where == 'delayed' then
    call('ZREM', B .. 'd', place .. '\n' .. id)
  elseif call('LREM', B .. 'r:' .. place, 1, id) == 1 and call('EXISTS', B .. 'r:' .. place) == 0 then
    call('SREM', B .. 't', place)
  end
end

-- What a record begins with; nothing if it is none of ours, which must not end a script.
local function place_of(record)
  return string.sub(record, 1, (string.find(record, '\n', 1, true) or 1) - 1)
end
