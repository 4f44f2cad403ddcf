-- Make ready what is due, `most` at once. Returns the milliseconds until the next falls due, -1 if there is none.
local function move(now, most)
  local key = B .. 'd'
  local head = call('ZRANGE', key, 0, 0, 'WITHSCORES')
  if #head == 0 then
    return -1
  end
  local left = math.floor(tonumber(head[2])) - now
  if left > 0 then
    return left
  end
  local due = call('ZRANGEBYSCORE', key, '-inf', '(' .. string.format('%.0f', now + 1), 'LIMIT', 0, most)
  local places, order = {}, {}
  for _, member in ipairs(due) do
    local at = string.find(member, '\n', 1, true)
    local place = string.sub(member, 1, at - 1)
    if not places[place] then
      places[place] = {}
      order[#order + 1] = place
    end
    table.insert(places[place], string.sub(member, at + 1))
  end
  for _, place in ipairs(order) do
    push('RPUSH', place, places[place])
  end
  call('ZREM', key, unpack(due))
  head = call('ZRANGE', key, 0, 0, 'WITHSCORES')
  return #head == 0 and -1 or math.max(0, math.floor(tonumber(head[2])) - now)
end
