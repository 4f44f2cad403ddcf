-- ARGV: for each message id, place, due, what to do if the id is live (r raise, k keep, p replace), record.
-- Returns for each: new, replaced, kept, or the state of the live one. A record begins with its place, a line feed, and eight
-- bytes that no other enqueue has: so a call that is sent again, because its reply was lost, is known.
local out, ready, order, now = {}, {}, {}, nil

local function flush()
  for _, place in ipairs(order) do
    push('RPUSH', place, ready[place])
  end
  ready, order = {}, {}
end

local function stand(place, id, due)
  if due ~= '' then
    now = now or clock()
    if tonumber(due) > now then
      delay(place, id, tonumber(due))
      return
    end
  end
  local ids = ready[place]
  if ids then
    ids[#ids + 1] = id
  else
    ready[place] = { id }
    order[#order + 1] = place
  end
end

for i = 1, #ARGV, 5 do
  local id, place, due, mode, record = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4]
  if call('HSETNX', B .. 'b', id, record) == 1 then
    stand(place, id, due)
    out[#out + 1] = 'new'
  else
    local old = call('HGET', B .. 'b', id)
    local before = place_of(old)
    flush() -- the live one may be from this very call
    if string.sub(old, #before + 2, #before + 9) == string.sub(record, #place + 2, #place + 9) then
      out[#out + 1] = 'new'
    elseif mode == 'k' then
      out[#out + 1] = 'kept'
    else
      local where = state(before, id)
      if mode == 'r' or where == 'running' then
        out[#out + 1] = where
      else
        call('HSET', B .. 'b', id, record)
        call('HDEL', B .. 'c', id)
        now = now or clock()
        if where == 'delayed' or before ~= place or (due ~= '' and tonumber(due) > now) then
          take_out(before, id, where)
          stand(place, id, due)
        end
        out[#out + 1] = 'replaced'
      end
    end
  end
end
flush()
return out
