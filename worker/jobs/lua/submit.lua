-- ARGV id, key hash or '', fingerprint, kind, run or '', gpus or '', priority, spec, warnings, metadata, taken ('1': what it
-- makes exists on disk, 'ready': an export that does, or a dataset made in the same way), max_queued, ids it waits for,
-- lacking ('1': the disk lacks what it needs), bytes of memory it needs or '' (whether a worker could run it is not asked),
-- dataset, recipe of that dataset or '' (it is there), id and spec of the job that makes it, should none be at it, and the
-- export that it makes or ''.
-- -> {verdict, fact, view, outlook}; with verdict 'unfit', fact is what the known workers could run. A reply that got
-- lost is asked for again with the same id, and a known key comes before everything that stands against the request now.
local id, hash, fingerprint, kind, run, gpus = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local taken, dataset, recipe, export = ARGV[11], ARGV[16], ARGV[17], ARGV[20]
local makes, shares_identical = KINDS[kind].makes, KINDS[kind].shares_identical
local function told(verdict, job) return {verdict, job, view(job), outlook()} end

local idempotency = P .. 'key:' .. hash
local function remember(job)
  if hash == '' then return end
  redis.call('HSET', idempotency, 'job', job, 'fingerprint', fingerprint)
  redis.call('EXPIRE', idempotency, 86400)
end

if get(id, 'id') then return told('duplicate', id) end
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
if makes == 'run' and (taken == '1' or keeper('run', run)) then return {'run_exists', run} end
if taken == 'ready' then return {'ready', ''} end
local maker = recipe ~= '' and keeper('dataset', dataset)
local function is_as_wanted(made)
  return made == recipe or (makes ~= 'dataset' and string.match(made, '^%x+') == string.match(recipe, '^%x+'))
end
if (makes == 'dataset' and taken == '1') or (maker and not is_as_wanted(get(maker, 'recipe'))) then
  return {'dataset_exists', maker or ''}
end
-- The job under way that was asked for the same; an export with another licence has another card.
local function identical()
  if makes == 'dataset' then return maker end
  if makes == 'export' then return user_of('export:' .. export, nil, ARGV[8]) end
end
local same = shares_identical and identical()
if same then
  remember(same)
  return told('duplicate', same)
end
if redis.call('ZCARD', P .. 'jobs:status:queued') >= tonumber(ARGV[12]) then return {'full', ''} end

local depends_on, waiting, lost = {}, {}, nil
local function await(awaited)
  local status = get(awaited, 'status')
  if not status or get(awaited, 'doomed') then return false end
  depends_on[#depends_on + 1] = awaited
  if status ~= 'succeeded' then waiting[#waiting + 1] = awaited end
  if status == 'failed' or status == 'cancelled' then lost = lost or awaited end
  return true
end
for awaited in words(ARGV[13]) do
  if not await(awaited) then return {'no_dependency', awaited} end
end

local function record(job, fields)
  set(job, 'id', job, 'seq', redis.call('INCR', P .. 'seq'), 'dataset', dataset, 'priority', ARGV[7],
    'created_at', now(), 'epoch', 0, 'step', 0, unpack(fields))
  enlist(job)
  keep_name(job)
end

if recipe ~= '' and makes ~= 'dataset' then
  if not maker then
    maker = ARGV[18]
    record(maker, {'kind', DATASET_MAKER, 'run', '', 'gpus', 0, 'class', 0, 'spec', ARGV[19], 'warnings', '[]',
      'metadata', '{}', 'key', '', 'depends_on', '', 'waiting_for', '', 'recipe', recipe})
    move(maker, 'queued', 'submitted for ' .. id)
  end
  if not string.find(ARGV[13], maker, 1, true) then await(maker) end
end
record(id, {'kind', kind, 'run', run, 'gpus', gpus, 'class', gpus == '' and 'any' or gpus, 'spec', ARGV[8],
  'warnings', ARGV[9], 'metadata', ARGV[10], 'key', hash, 'depends_on', table.concat(depends_on, ' '),
  'waiting_for', table.concat(waiting, ' '), 'recipe', makes == 'dataset' and recipe or '', 'export', export})
for _, awaited in ipairs(waiting) do redis.call('SADD', key(awaited) .. ':dependents', id) end
remember(id)
move(id, 'queued', 'submitted')
if lost then fail_for(id, lost, get(lost, 'status')) end
return told('created', id)
