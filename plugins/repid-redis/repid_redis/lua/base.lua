-- KEYS[1] is what all keys of one queue begin with; it has the hash tag, so they share a slot. A "place" is a digit for the
-- priority (0 HIGH, 1 MEDIUM, 2 LOW) and the topic.
--   b            HASH  id -> record, of every live message: that an id is here is what makes it unique
--   r:<place>    LIST  ids of ready messages, first in line on the left
--   t            SET   places whose list is not empty
--   d            ZSET  "<place>\n<id>" of delayed messages, by due time in ms and a fraction that keeps their order
--   s            ZSET  sessions, by the end of their lease in ms
--   h:<session>  HASH  handle -> mark and place, of what the session holds; the handle is the id, of dead ones the number
--   e            HASH  session -> epoch of the fetches that it still waits for
--   l            HASH  session -> what else it is to be told of: a of ready, d of delayed, x of dead messages of any topic
--   c            HASH  id -> how many workers have died with it
--   x, xb        ZSET, HASH  number -> when a message died; number -> id, death and record
--   n            the number of the last delayed or dead message
--   p            SET   topics that have ever had a ready message
--   g            HASH  of the last heartbeat, and until when no session is to be ended
--   w:<topic>, w!<session>, wd  ZSET  markers: each wakes one of the consumers that wait for it. wd rings when another message
--                      is the next to fall due
local call, B = redis.call, KEYS[1]

local function clock()
  local time = call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function tell(kind)
  if call('EXISTS', B .. 'l') == 1 then
    local listeners = call('HGETALL', B .. 'l')
    for i = 1, #listeners, 2 do
      if listeners[i + 1] == kind then
        call('ZADD', B .. 'w!' .. listeners[i], 0, '')
      end
    end
  end
end

local function ring(place)
  call('ZADD', B .. 'w:' .. string.sub(place, 2), 0, '')
  tell('a')
end

local function push(side, place, ids)
  for from = 1, #ids, 1000 do -- Lua's stack has a limit
    call(side, B .. 'r:' .. place, unpack(ids, from, math.min(from + 999, #ids)))
  end
  if call('SADD', B .. 't', place) == 1 then
    call('SADD', B .. 'p', string.sub(place, 2))
  end
  ring(place)
end
