-- ARGV owner token, lease_ms, idle GPUs, how many GPUs in all, worker (JSON), its name
-- -> {} or {epoch, id, kind, run, dataset, devices, spec, gpus, priority, metadata, warnings, depends_on, created_at,
-- seq_after}.
-- The same token gets the same job again, should the reply have got lost.
local owner, worker = ARGV[1], ARGV[6]
local token = P .. 'owner:' .. owner
local id, gpus = redis.call('GET', token), nil
if not (id and get(id, 'owner') == owner and holds(id, get(id, 'epoch'))) then
  id, gpus = first_fit(worker, ARGV[3], tonumber(ARGV[4]))
  if not id then return {} end
  local epoch = redis.call('HINCRBY', key(id), 'epoch', 1)
  for _, gpu in ipairs(gpus) do
    redis.call('HSET', P .. 'gpus', gpu, id)
    redis.call('HDEL', P .. 'kept', gpu)
  end
  set(id, 'owner', owner, 'worker', ARGV[5], 'devices', table.concat(gpus, ' '), 'claimed_at', now(), 'claimed_epoch', epoch)
  clear(id, 'kept_by', 'kept_until')
  redis.call('SET', token, id, 'PX', ARGV[2])
  lease(id, ARGV[2])
  move(id, 'running', 'claimed by ' .. worker)
end
return redis.call('HMGET', key(id), 'epoch', 'id', 'kind', 'run', 'dataset', 'devices', 'spec', 'gpus', 'priority', 'metadata',
  'warnings', 'depends_on', 'created_at', 'seq_after')
