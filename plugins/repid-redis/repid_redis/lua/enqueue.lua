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

local runs, ids, count, at = {}, {}, 0, 1
while at < #ARGV do
  local run = { first = at + 4, last = at + 3 + 2 * ARGV[at], place = ARGV[at + 1], due = ARGV[at + 2], mode = ARGV[at + 3] }
  for i = run.first, run.last, 2 do
    count = count + 1
    ids[count] = ARGV[i]
  end
  runs[#runs + 1], at = run, run.last + 1
end

-- Mostly no id is live, and none is twice in a call: then all records are written at once.
local fresh, added = true, 0
for from = 1, count, 1000 do
  if fresh then
    for _, old in ipairs(call('HMGET', B .. 'b', unpack(ids, from, math.min(from + 999, count)))) do
      fresh = fresh and not old
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
      for i = run.first, run.last, 2 do
        stand(run.place, ARGV[i], run.due)
      end
    end
    flush()
    return count
  end
  for from = 1, count, 1000 do
    call('HDEL', B .. 'b', unpack(ids, from, math.min(from + 999, count)))
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
