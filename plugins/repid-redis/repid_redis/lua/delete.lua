-- Remove the queue. Who holds something of it is told so at its next call.
for _, place in ipairs(call('SMEMBERS', B .. 't')) do
  call('UNLINK', B .. 'r:' .. place)
end
for _, topic in ipairs(call('SMEMBERS', B .. 'p')) do
  call('UNLINK', B .. 'w:' .. topic)
end
for _, session in ipairs(call('ZRANGE', B .. 's', 0, -1)) do
  call('UNLINK', B .. 'h:' .. session, B .. 'w!' .. session)
end
for key in string.gmatch('b t d s e l c x xb n p g wd', '%S+') do
  call('UNLINK', B .. key)
end
return 1
