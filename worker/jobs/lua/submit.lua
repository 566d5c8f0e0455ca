-- ARGV id, key hash or '', fingerprint, kind, run, gpus or '', priority, spec, warnings, metadata, taken ('1': the run
-- exists on disk), max_queued, ids it waits for, lacking ('1': the disk lacks what it needs), bytes of memory it needs
-- or '' (whether a worker could run it is not asked) -> {verdict, fact, view, outlook}; with verdict 'unfit', fact is what
-- the known workers could run. A reply that got lost is asked for again with the same id, and a known key comes before
-- everything that stands against the request now.
local id, hash, fingerprint, kind, run, gpus = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local function told(verdict, job) return {verdict, job, view(job), outlook()} end

if get(id, 'id') then return told('duplicate', id) end
local idempotency = P .. 'key:' .. hash
if hash ~= '' then
  local known = redis.call('HMGET', idempotency, 'job', 'fingerprint')
  if known[1] then
    if known[2] ~= fingerprint then return {'conflict', known[1]} end
    return told('duplicate', known[1])
  end
end
if ARGV[14] == '1' then return {'lacking', ''} end
local short = ARGV[15] ~= '' and shortage(tonumber(gpus) or 0, tonumber(ARGV[15]))
if short then return {'unfit', short} end
if kind == 'train' and (ARGV[11] == '1' or keeper(run)) then return {'run_exists', run} end
if redis.call('ZCARD', P .. 'jobs:status:queued') >= tonumber(ARGV[12]) then return {'full', ''} end

local waiting, lost = {}, nil
for awaited in words(ARGV[13]) do
  local status = get(awaited, 'status')
  if not status or get(awaited, 'doomed') then return {'no_dependency', awaited} end
  if status ~= 'succeeded' then waiting[#waiting + 1] = awaited end
  if status == 'failed' or status == 'cancelled' then lost = lost or awaited end
end

local seq = redis.call('INCR', P .. 'seq')
set(id, 'id', id, 'seq', seq, 'kind', kind, 'run', run, 'gpus', gpus, 'class', gpus == '' and 'any' or gpus,
  'priority', ARGV[7], 'spec', ARGV[8], 'warnings', ARGV[9], 'metadata', ARGV[10], 'created_at', now(), 'epoch', 0,
  'step', 0, 'key', hash, 'depends_on', ARGV[13], 'waiting_for', table.concat(waiting, ' '))
for _, set_key in ipairs({'jobs', 'jobs:kind:' .. kind, 'jobs:run:' .. run}) do
  redis.call('ZADD', P .. set_key, seq, id)
end
for _, awaited in ipairs(waiting) do redis.call('SADD', key(awaited) .. ':dependents', id) end
if hash ~= '' then
  redis.call('HSET', idempotency, 'job', id, 'fingerprint', fingerprint)
  redis.call('EXPIRE', idempotency, 86400)
end
keep_name(id)
move(id, 'queued', 'submitted')
if lost then fail_for(id, lost, get(lost, 'status')) end
return told('created', id)
