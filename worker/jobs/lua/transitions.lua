-- Commands that change a job. After the other files. Each may be repeated, because a command whose reply got lost may have
-- run. `jobs` stands for what `with_jobs` adds; a reply with `error` changed nothing.
local IDEMPOTENCY_S, MOST_DELAY_MS = 86400, 30000

-- Submission ------------------------------------------------------------------------------------------------------

local function remember_key(args, id)
  if not args.key_hash then return end
  local idempotency = P .. 'key:' .. args.key_hash
  redis.call('HSET', idempotency, 'job', id, 'fingerprint', args.fingerprint)
  redis.call('EXPIRE', idempotency, IDEMPOTENCY_S)
end

local function submitted(id, created)
  return with_jobs({id = id, created = created}, {id})
end

-- The reply to a request that came before: with this id, because the first reply got lost, or with this key; nil to a new
-- one.
local function repeated(args)
  if get(args.id, 'id') then return submitted(args.id, true) end
  local known = args.key_hash and redis.call('HMGET', P .. 'key:' .. args.key_hash, 'job', 'fingerprint')
  if not known or not known[1] then return nil end
  if known[2] ~= args.fingerprint then return {error = 'conflict', id = known[1]} end
  return submitted(known[1], false)
end

-- The error that stands against a new job, or nil. `maker`: the active job that makes its dataset.
local function rejection(args, maker)
  if args.is_lacking then return {error = 'lacking'} end
  local capacity = args.memory_bytes and insufficient_capacity(args.gpus or 0, args.memory_bytes)
  if capacity then return {error = 'unfit', capacity = capacity} end
  local makes = KINDS[args.kind].makes
  if makes == 'run' and (args.taken == 'exists' or name_owner('run', args.run)) then return {error = 'run_exists'} end
  if args.taken == 'ready' then return {error = 'ready'} end
  if (makes == 'dataset' and args.taken == 'exists') or (maker and not makes_same(maker, args.recipe, makes == 'dataset')) then
    return {error = 'dataset_exists', maker = maker or nil}
  end
end

-- An active job that does what is requested, for kinds that share it.
local function identical_job(args, maker)
  local kind = KINDS[args.kind]
  if not kind.shares_identical then return nil end
  if kind.is_exclusive then return maker end
  return active_job(kind.makes .. ':' .. args[kind.makes], nil, args.spec)
end

local function record(id, args, fields)
  set(id, 'id', id, 'seq', redis.call('INCR', P .. 'seq'), 'dataset', args.dataset or '', 'priority', args.priority,
    'created_at', now(), 'epoch', 0, 'step', 0, unpack(fields))
  index(id)
  take_name(id)
end

-- Record the job that prepares a dataset. preparation: id, spec, recipe.
local function record_preparation(preparation, dataset, priority, reason)
  local id = preparation.id
  record(id, {dataset = dataset, priority = priority}, {'kind', DATASET_MAKER, 'run', '', 'gpus', 0, 'class', 0,
    'spec', preparation.spec, 'warnings', '[]', 'metadata', '{}', 'key', '', 'depends_on', '', 'waiting_for', '',
    'recipe', preparation.recipe})
  move(id, 'queued', reason)
  return id
end

-- The jobs of a request that have not succeeded, as `awaited`, and the first of them that will not, as `lost`; `unknown`:
-- the first that there is not.
local function read_dependencies(ids)
  local found = {awaited = {}}
  for _, id in ipairs(ids) do
    local status = get(id, 'status')
    if not status or get(id, 'doomed') then return {unknown = id} end
    if status ~= 'succeeded' then table.insert(found.awaited, id) end
    if loss_of(id) then found.lost = found.lost or id end
  end
  return found
end

-- id, kind, run, dataset, export, ablation, gpus, priority, spec, warnings and metadata (JSON), depends_on (ids),
-- key_hash, fingerprint, max_queued; taken: 'exists' (the disk has what the job makes) or 'ready' (an export, an ablation
-- or an equal dataset that is there); is_lacking: the disk lacks what the job needs; memory_bytes: absent if capacity is not checked; recipe of the
-- dataset that must be made; preparation (id, spec): the job that makes it unless one is active; of a training, shape and
-- tokens, by which its duration is kept.
-- -> jobs (one), id, created; or error: conflict (id), lacking, unfit (capacity), run_exists, ready, dataset_exists
-- (maker), full, no_dependency (id). A known key precedes whatever stands against the request now.
function commands.submit(args)
  local reply = repeated(args)
  if reply then return reply end
  local maker = args.recipe and name_owner('dataset', args.dataset)
  local obstacle = rejection(args, maker)
  if obstacle then return obstacle end
  local identical = identical_job(args, maker)
  if identical then
    remember_key(args, identical)
    return submitted(identical, false)
  end
  if redis.call('ZCARD', P .. 'jobs:status:queued') >= args.max_queued then return {error = 'full'} end

  local dependencies = read_dependencies(args.depends_on)
  if dependencies.unknown then return {error = 'no_dependency', id = dependencies.unknown} end
  local preparation = args.preparation or {}
  if args.preparation and not dependencies.lost then
    preparation.recipe = args.recipe
    maker = maker or record_preparation(preparation, args.dataset, args.priority, 'submitted for ' .. args.id)
    add_awaited(dependencies.awaited, maker)
  end
  local kind = KINDS[args.kind]
  local recipe = kind.makes == 'dataset' and args.recipe or ''
  record(args.id, args, {'kind', args.kind, 'run', args.run or '', 'gpus', args.gpus or '', 'class', args.gpus or 'any',
    'spec', args.spec, 'warnings', args.warnings, 'metadata', args.metadata, 'key', args.key_hash or '',
    'depends_on', table.concat(args.depends_on, ' '), 'recipe', recipe, 'export', args.export or '',
    'ablation', args.ablation or '', 'model', args.model, 'shape', args.shape or '', 'tokens', args.tokens or 0,
    'preparation', args.preparation and maker or '', 'preparation_spec', preparation.spec or '',
    'preparation_recipe', args.preparation and args.recipe or ''})
  if kind.has_model and kind.makes == 'run' then set(args.id, 'colour', recolour(args.run, now())) end
  wait_for(args.id, dependencies.awaited)
  remember_key(args, args.id)
  move(args.id, 'queued', 'submitted')
  if dependencies.lost then fail_dependent(args.id, dependencies.lost) end
  return submitted(args.id, true)
end

-- id, status, created_at (ms), fields of the record -> restored: false if the id is known or another job owns the name.
function commands.restore(args)
  local id = args.id
  if get(id, 'id') then return {restored = false} end
  for name, value in pairs(args.fields) do set(id, name, value) end
  if not TERMINAL[args.status] and not take_name(id) then
    redis.call('DEL', key(id))
    return {restored = false}
  end
  local seq = redis.call('INCR', P .. 'seq')
  set(id, 'id', id, 'seq', seq, 'status', args.status, 'created_at', args.created_at, 'revision', 1)
  index(id)
  local colour = made_by(id) == 'run' and get(id, 'colour')
  if colour then restore_colour(get(id, 'run'), colour, args.created_at) end
  redis.call('ZADD', P .. 'jobs:status:' .. args.status, seq, id)
  for awaited in words(get(id, 'waiting_for')) do redis.call('SADD', key(awaited) .. ':dependents', id) end
  local t, reason = now(), 'restored from disk'
  redis.call('RPUSH', key(id) .. ':history', cjson.encode({time = t, to = args.status, reason = reason}))
  changed(id, 'to', args.status, 'time', t, 'reason', reason, 'attempt', number(id, 'epoch'))
  return {restored = true}
end

-- Requests of clients ---------------------------------------------------------------------------------------------

-- Give a job a new run for a retry from scratch; its events go on after those of the run before.
local function start_over_in(id, run, last_seq)
  release_name(id)
  redis.call('ZREM', P .. 'jobs:run:' .. get(id, 'run'), id)
  redis.call('ZADD', P .. 'jobs:run:' .. run, number(id, 'seq'), id)
  local seq = math.max(number(id, 'mirrored'), last_seq or 0)
  if run ~= get(id, 'run') then set(id, 'colour', recolour(run, now())) end
  set(id, 'run', run, 'step', 0, 'crash_step', 0, 'busy_ms', 0, 'mirrored', seq, 'seq_after', seq)
  clear(id, 'progress')
end

-- How the dataset of a job is prepared whose preparation was lost: `spec` and `recipe`, and `maker`, if a job makes it
-- already; or the error that prevents it. Empty if the recipe was lost too.
local function plan_preparation(id, former)
  local plan = {spec = get(id, 'preparation_spec') or '', recipe = get(id, 'preparation_recipe')}
  if plan.spec == '' then plan = {spec = get(former, 'spec') or nil, recipe = get(former, 'recipe')} end
  if not (plan.spec and plan.recipe) then return {} end
  local dataset = get(id, 'dataset')
  plan.maker = name_owner('dataset', dataset)
  if plan.maker and (not makes_same(plan.maker, plan.recipe) or awaits(plan.maker, id)) then
    return {error = 'dataset_exists', name = dataset}
  end
  return plan
end

-- Take the names that a job needs to run once more; the error that prevents it, or nil.
local function retake_names(args)
  local id = args.id
  if args.run then
    if name_owner('run', args.run) then return {error = 'run_exists', name = args.run} end
    start_over_in(id, args.run, args.last_seq)
  end
  if not take_name(id) then
    local resource, name = made_by(id)
    return {error = resource .. '_exists', name = name}
  end
end

-- Make a job ready to be queued once more. -> the error that prevents it, or nil; the job that it awaits in vain, or nil.
local function prepare_requeue(args)
  local id, found = args.id, look_again(args.id, args.is_dataset_ready)
  local plan = found.is_unprepared and not found.lost and plan_preparation(id, found.preparation) or {}
  local obstacle = plan.error and plan or retake_names(args)
  if obstacle then return obstacle end
  set(id, 'failures', 0, 'not_before', 0)
  if plan.spec then
    plan.id = args.preparation_id
    local reason = 'submitted for ' .. id
    local maker = plan.maker or record_preparation(plan, get(id, 'dataset'), number(id, 'priority'), reason)
    set(id, 'preparation', maker, 'preparation_spec', plan.spec, 'preparation_recipe', plan.recipe)
    add_awaited(found.awaited, maker)
  elseif found.is_unprepared and found.preparation then  -- the next retry looks for it again
    add_awaited(found.awaited, found.preparation)
    found.lost = found.lost or found.preparation
  end
  wait_for(id, found.awaited)
  return nil, found.lost
end

-- id, action, run (of a start at step 0), last_seq of the run before; is_dataset_ready: the disk has the dataset of the
-- job; preparation_id: of the job that prepares it anew, if it is needed
-- -> jobs (one), is_new: whether something changed; or error: missing, refused (status), run_exists, dataset_exists (name).
function commands.request_action(args)
  local id, action = args.id, args.action
  local from = get(id, 'status')
  if not from then return {error = 'missing'} end
  local to, desired = ACTIONS[action][from], get(id, 'desired')
  if not to or get(id, 'doomed') or (from == 'stopping' and action == 'pause' and desired ~= 'pause') then
    return {error = 'refused', status = from}
  end
  local is_new, lost = from ~= to, nil
  if to == 'queued' and is_new then
    local obstacle
    obstacle, lost = prepare_requeue(args)
    if obstacle then return obstacle end
  end
  if to == 'stopping' and desired ~= action then
    set(id, 'desired', action)
    if not is_new then revised(id) end
    is_new = true
  end
  move(id, to, action .. ' was asked')
  if lost then fail_dependent(id, lost) end
  return with_jobs({is_new = is_new}, {id})
end

-- id, priority, metadata (JSON), revision that must be the current one
-- -> jobs (one); or error: missing, revised (revision). Values that are so already need no revision.
function commands.update(args)
  local id = args.id
  if not get(id, 'id') then return {error = 'missing'} end
  if number(id, 'priority') ~= args.priority or get(id, 'metadata') ~= args.metadata then
    local revision = number(id, 'revision')
    if args.revision ~= revision then return {error = 'revised', revision = revision} end
    set(id, 'priority', args.priority, 'metadata', args.metadata)
    if redis.call('ZSCORE', P .. 'ready', id) then enqueue(id) end
    revised(id)
  end
  return with_jobs({}, {id})
end

-- id, with_artifacts: whether what the job made is deleted too -> {} or error: missing, refused (status), busy (id).
-- A job that is marked accepts no action; whoever marked it may have died, so this may be repeated.
function commands.mark_deleted(args)
  local id = args.id
  local status = get(id, 'status')
  if not status then return {error = 'missing'} end
  if not ACTIONS.delete[status] then return {error = 'refused', status = status} end
  local resource, name = made_by(id)
  local user = args.with_artifacts and resource and active_job(resource .. ':' .. name, id)
  if user then return {error = 'busy', id = user} end
  if not get(id, 'doomed') then
    set(id, 'doomed', 1)
    revised(id)
    if status ~= 'succeeded' then notify_dependents(id) end
  end
  return {}
end

-- Colours of runs --------------------------------------------------------------------------------------------------

-- run, created_at (ms), colour that it has on disk (optional) -> colour.
function commands.keep_colour(args)
  if args.colour then restore_colour(args.run, args.colour, args.created_at) end
  return {colour = tonumber(colour_of(args.run, args.created_at))}
end

-- run, which was deleted.
function commands.forget_colour(args)
  forget_colour(args.run)
  return {}
end

-- id, keeps_run: whether the run that it made stays -> purged: whether there was such a job, marked as deleted. Nothing of
-- it stays.
function commands.purge(args)
  local id = args.id
  if not get(id, 'doomed') then return {purged = false} end
  unindex(id)
  local run = get(id, 'run') or ''
  if not args.keeps_run and made_by(id) == 'run' and redis.call('EXISTS', P .. 'jobs:run:' .. run) == 0 then
    forget_colour(run)
  end
  local idempotency = P .. 'key:' .. (get(id, 'key') or '')
  if redis.call('HGET', idempotency, 'job') == id then redis.call('DEL', idempotency) end
  changed(id)
  redis.call('DEL', key(id), key(id) .. ':history', key(id) .. ':attempts', key(id) .. ':events', key(id) .. ':dependents')
  return {purged = true}
end

-- Reports of workers ----------------------------------------------------------------------------------------------

local function assign(id, gpus, args)
  local epoch = redis.call('HINCRBY', key(id), 'epoch', 1)
  for _, gpu in ipairs(gpus) do
    redis.call('HSET', P .. 'gpus', gpu, id)
    redis.call('HDEL', P .. 'kept', gpu)
  end
  set(id, 'owner', args.owner, 'worker', args.worker_info, 'devices', table.concat(gpus, ' '), 'claimed_at', now(),
    'claimed_epoch', epoch)
  clear(id, 'kept_by', 'kept_until')
  complete(id, fields_of(id, {'kind', 'run', 'created_at', 'colour', 'model'}))
  redis.call('SET', P .. 'owner:' .. args.owner, id, 'PX', args.lease_ms)
  lease(id, args.lease_ms)
  move(id, 'running', 'claimed by ' .. args.worker)
end

-- owner (a token), worker (name), worker_info (JSON), lease_ms, idle (GPU ids), gpus (how many in all)
-- -> claim: CLAIM_FIELDS of the job; absent if none fits. The same token gets the same job, in case the reply got lost.
function commands.claim(args)
  local id, gpus = redis.call('GET', P .. 'owner:' .. args.owner), nil
  if not (id and get(id, 'owner') == args.owner and is_current(id, number(id, 'epoch'))) then
    id, gpus = schedule(args.worker, args.idle, args.gpus)
    if not id then return {} end
    assign(id, gpus, args)
  end
  return {claim = fields_of(id, CLAIM_FIELDS)}
end

-- id, epoch, lease_ms, worker_info (JSON, optional) -> desired: run, pause, cancel or fenced. A late heartbeat renews the
-- lease if nobody took over.
function commands.heartbeat(args)
  local id = args.id
  if not is_current(id, args.epoch) then return {desired = 'fenced'} end
  lease(id, args.lease_ms)
  if args.worker_info and args.worker_info ~= get(id, 'worker') then
    set(id, 'worker', args.worker_info)
    changed(id)
  end
  return {desired = get(id, 'desired')}
end

-- id, epoch, events (each seq and text), tail: events to keep, progress (JSON), step, resumed_from (JSON, optional)
-- -> desired, as of `heartbeat`. An event that is reported twice is kept once.
function commands.mirror(args)
  local id = args.id
  if not is_current(id, args.epoch) then return {desired = 'fenced'} end
  local last, is_new = number(id, 'mirrored'), false
  for _, event in ipairs(args.events) do
    if event.seq > last then
      local entry = string.format('%d-0', event.seq)
      redis.call('XADD', key(id) .. ':events', 'MAXLEN', '~', args.tail, entry, 'event', event.text)
      last, is_new = event.seq, true
    end
  end
  if is_new then
    set(id, 'mirrored', last, 'progress', args.progress, 'busy', 0)
    if args.resumed_from then set(id, 'resumed', args.resumed_from) end
    if args.step > number(id, 'step') then set(id, 'step', args.step) end
    changed(id)
  end
  return {desired = get(id, 'desired')}
end

-- id, epoch, result, reason, error (JSON), crash_budget -> status: what the job became, or fenced.
function commands.finish(args)
  local id, result, reason = args.id, args.result, args.reason
  if not is_current(id, args.epoch) then
    local is_repeated = number(id, 'ended') == args.epoch
    return {status = is_repeated and get(id, 'status') or 'fenced'}
  end
  set(id, 'ended', args.epoch)
  if result == 'succeeded' then
    move(id, 'succeeded', reason)
  elseif result == 'failed' then
    set(id, 'error', args.error)
    move(id, 'failed', reason)
  elseif not apply_pending_action(id, reason) then
    if result == 'stopped' then
      requeue(id, reason, 0)
    elseif result == 'busy' then
      local times = redis.call('HINCRBY', key(id), 'busy', 1)
      requeue(id, reason, math.min(MOST_DELAY_MS, 500 * 2 ^ math.min(times, 10)))
    else
      crashed(id, reason, args.error, args.crash_budget)
    end
  end
  return {status = get(id, 'status')}
end

-- crash_budget, error (JSON) -> ids of the jobs whose lease expired.
function commands.reap(args)
  repair_waiting()
  local expired = redis.call('ZRANGEBYSCORE', P .. 'leases', '-inf', now(), 'LIMIT', 0, 100)
  for _, id in ipairs(expired) do
    redis.call('HINCRBY', key(id), 'epoch', 1)  -- fences the holder
    if not apply_pending_action(id, 'the worker was lost') then
      crashed(id, 'the worker was lost', args.error, args.crash_budget)
    end
  end
  return {ids = expired}
end
