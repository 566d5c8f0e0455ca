-- ARGV id, epoch, progress (JSON), step, tail length, what it resumed from (JSON) or '', then seq and JSON of each event
-- -> what is wished, or 'fenced'. An event told twice is kept once.
local id = ARGV[1]
if not holds(id, ARGV[2]) then return 'fenced' end
local last, news = number(id, 'mirrored'), false
for i = 7, #ARGV, 2 do
  local seq = tonumber(ARGV[i])
  if seq > last then
    redis.call('XADD', key(id) .. ':events', 'MAXLEN', '~', ARGV[5], ARGV[i] .. '-0', 'event', ARGV[i + 1])
    last, news = seq, true
  end
end
if news then
  set(id, 'mirrored', last, 'progress', ARGV[3], 'busy', 0)
  if ARGV[6] ~= '' then set(id, 'resumed', ARGV[6]) end
  if tonumber(ARGV[4]) > number(id, 'step') then set(id, 'step', ARGV[4]) end
  changed(id)
end
return get(id, 'desired')
