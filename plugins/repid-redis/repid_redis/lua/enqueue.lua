-- ARGV: for each run of messages that have them in common, how many they are, place, due, and what to do if the id is live
-- (r raise, k keep, p replace); then id and record of each.
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

local runs, count, at = {}, 0, 1
while at < #ARGV do
  local ids, place, due, last = {}, ARGV[at + 1], ARGV[at + 2], at + 3 + 2 * ARGV[at]
  for i = at + 4, last, 2 do
    ids[#ids + 1] = ARGV[i]
  end
  runs[#runs + 1] = { first = at + 4, last = last, ids = ids, place = place, due = due, mode = ARGV[at + 3] }
  count, at = count + #ids, last + 1
end

-- Mostly no id is live, and none is twice in a call: then all records are written at once.
local fresh, added = true, 0
for _, run in ipairs(runs) do
  for from = 1, fresh and #run.ids or 0, 1000 do
    for _, old in ipairs(call('HMGET', B .. 'b', unpack(run.ids, from, math.min(from + 999, #run.ids)))) do
      if old then
        fresh = false
      end
    end
  end
end
if fresh then
  for _, run in ipairs(runs) do
    for from = run.first, run.last, 1000 do
      added = added + call('HSET', B .. 'b', unpack(ARGV, from, math.min(from + 999, run.last)))
    end
  end
  if added == count then
    for _, run in ipairs(runs) do
      if run.due == '' and not ready[run.place] then
        ready[run.place] = run.ids
        order[#order + 1] = run.place
      else
        for _, id in ipairs(run.ids) do
          stand(run.place, id, run.due)
        end
      end
    end
    flush()
    return count
  end
  for _, run in ipairs(runs) do
    for from = 1, #run.ids, 1000 do
      call('HDEL', B .. 'b', unpack(run.ids, from, math.min(from + 999, #run.ids)))
    end
  end
end

local function add(run, id, record)
  local place, due, mode = run.place, run.due, run.mode
  if call('HSETNX', B .. 'b', id, record) == 1 then
    stand(place, id, due)
    return 'new'
  end
  local old = call('HGET', B .. 'b', id)
  local before = place_of(old)
  flush() -- the live one may be from this very call
  if string.sub(old, #before + 2, #before + 9) == string.sub(record, #place + 2, #place + 9) then
    return 'new'
  elseif mode == 'k' then
    return 'kept'
  end
  local where = state(before, id)
  if mode == 'r' or where == 'running' then
    return where
  end
  call('HSET', B .. 'b', id, record)
  call('HDEL', B .. 'c', id)
  now = now or clock()
  if where == 'delayed' or before ~= place or (due ~= '' and tonumber(due) > now) then
    take_out(before, id, where)
    stand(place, id, due)
  end
  return 'replaced'
end

for _, run in ipairs(runs) do
  for i = run.first, run.last, 2 do
    out[#out + 1] = add(run, ARGV[i], ARGV[i + 1])
  end
end
flush()
return out
