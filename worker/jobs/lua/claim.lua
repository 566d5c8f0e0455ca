-- ARGV owner token, lease_ms, free GPUs, '1' if the worker has any, worker (JSON), its name
-- -> {} or {id, epoch, kind, run, gpus, spec}. The same token gets the same job again, should the reply have got lost.
local owner = ARGV[1]
local token = P .. 'owner:' .. owner
local id = redis.call('GET', token)
if not (id and get(id, 'owner') == owner and holds(id, get(id, 'epoch'))) then
  id = first_fit(tonumber(ARGV[3]), ARGV[4] == '1')
  if not id then return {} end
  redis.call('HINCRBY', key(id), 'epoch', 1)
  set(id, 'owner', owner, 'worker', ARGV[5])
  redis.call('SET', token, id, 'PX', ARGV[2])
  lease(id, ARGV[2])
  move(id, 'running', 'claimed by ' .. ARGV[6])
end
return {id, get(id, 'epoch'), get(id, 'kind'), get(id, 'run'), get(id, 'gpus'), get(id, 'spec')}
