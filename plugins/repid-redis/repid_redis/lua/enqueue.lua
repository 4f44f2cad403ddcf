-- ARGV: for each message id, place, due, what to do if the id is live (r raise, k keep, p replace), record.
-- Returns how many are new if all are, else for each: new, replaced, kept, or the state of the live one. A record begins with its place, a line feed, and eight
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
  local waiting = ready[place]
  if waiting then
    waiting[#waiting + 1] = id
  else
    ready[place] = { id }
    order[#order + 1] = place
  end
end

-- Mostly no id is live: then all records are written at once.
local count, ids, seen, fresh = #ARGV / 5, {}, {}, true
for i = 1, count do
  local id = ARGV[5 * i - 4]
  ids[i], fresh = id, fresh and not seen[id]
  seen[id] = true
end
for from = 1, count, 1000 do
  if fresh then
    for _, old in ipairs(call('HMGET', B .. 'b', unpack(ids, from, math.min(from + 999, count)))) do
      fresh = fresh and not old
    end
  end
end
if fresh then
  local fields = {}
  for i = 1, count do
    fields[2 * i - 1], fields[2 * i] = ids[i], ARGV[5 * i]
  end
  for from = 1, 2 * count, 1000 do
    call('HSET', B .. 'b', unpack(fields, from, math.min(from + 999, 2 * count)))
  end
  for i = 1, count do
    stand(ARGV[5 * i - 3], ids[i], ARGV[5 * i - 2])
  end
  flush()
  return count
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
