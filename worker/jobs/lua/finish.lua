-- ARGV id, epoch, result, reason, error (JSON) or '', crash budget -> the status it led to, or 'fenced'
local id, epoch, result, reason = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
if not holds(id, epoch) then
  return get(id, 'ended') == epoch and get(id, 'status') or 'fenced'  -- said before, but the reply got lost
end
set(id, 'ended', epoch)
if result == 'succeeded' then
  move(id, 'succeeded', reason)
elseif result == 'failed' then
  set(id, 'error', ARGV[5])
  move(id, 'failed', reason)
elseif obeyed(id, reason) then
  -- cancelled or paused, as was wished
elseif result == 'stopped' then
  again(id, reason, 0)
elseif result == 'busy' then
  local times = redis.call('HINCRBY', key(id), 'busy', 1)
  again(id, reason, math.min(30000, 500 * 2 ^ math.min(times, 10)))
else
  crashed(id, reason, ARGV[5], ARGV[6])
end
return get(id, 'status')
