-- Returns ready, in progress, delayed, dead.
local running, dead = 0, 0
for _, session in ipairs(call('ZRANGE', B .. 's', 0, -1)) do
  local held = call('HLEN', B .. 'h:' .. session)
  if string.sub(session, 1, 1) == 'x' then
    dead = dead + held
  else
    running = running + held
  end
end
local delayed = call('ZCARD', B .. 'd')
return { call('HLEN', B .. 'b') - delayed - running, running + dead, delayed, call('ZCARD', B .. 'x') }
