-- ARGV id, key hash or '', fingerprint, kind, run, gpus or '', priority, spec, warnings, metadata, taken ('1': the run
-- exists on disk), max_queued -> {verdict, id}. A reply that got lost is asked for again with the same id.
local id, hash, fingerprint, kind, run = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
if get(id, 'id') then return {'duplicate', id} end
local idempotency = P .. 'key:' .. hash
if hash ~= '' then
  local known = redis.call('HMGET', idempotency, 'job', 'fingerprint')
  if known[1] then
    return {known[2] == fingerprint and 'duplicate' or 'conflict', known[1]}
  end
end
if kind == 'train' and (ARGV[11] == '1' or keeper(run)) then return {'run_exists', ''} end
if redis.call('ZCARD', P .. 'ready') >= tonumber(ARGV[12]) then return {'full', ''} end

local seq = redis.call('INCR', P .. 'seq')
set(id, 'id', id, 'seq', seq, 'kind', kind, 'run', run, 'gpus', ARGV[6], 'priority', ARGV[7], 'spec', ARGV[8],
  'warnings', ARGV[9], 'metadata', ARGV[10], 'created_at', now(), 'epoch', 0, 'step', 0)
for _, set_key in ipairs({'jobs', 'jobs:kind:' .. kind, 'jobs:run:' .. run}) do
  redis.call('ZADD', P .. set_key, seq, id)
end
if hash ~= '' then
  redis.call('HSET', idempotency, 'job', id, 'fingerprint', fingerprint)
  redis.call('EXPIRE', idempotency, 86400)
end
keep_name(id)
move(id, 'queued', 'submitted')
return {'created', id}
