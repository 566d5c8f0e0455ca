-- Shared by every command. commands.py renders constants in front of this file: P, the prefix of every key; RECORD_FIELDS
-- and DETAIL_FIELDS, the fields of a job that clients see; TRANSITIONS, ACTIONS, TERMINAL and HOLDING of states.py; KINDS of
-- kinds.py. Every command is a function of the table `commands`: it takes its arguments by name and returns its reply
-- by name, both as JSON; an absent argument is nil. Records of jobs, which are JSON already, follow the reply as they are.
-- Time is the server's.
--
-- A job's status changes in `move` alone, which keeps these together: a job is in the queue if and only if it is queued and
-- awaits nothing; it has a lease if and only if it is running or stopping; it is in one set of jobs by status; the job that
-- makes a run or a dataset owns its name until it is terminal.
local HISTORY, ATTEMPTS, DURATIONS, CHANGES = 200, 100, 50, 10000
-- Durations of trainings that are kept by shape, and for how long after the last one.
local SAMPLES, SAMPLES_S = 10, 90 * 86400
-- Runs have one of so many colours; a new one has the colour that the fewest of the newest so many runs have.
local COLOURS, COMPARED, REMEMBERED = 8, 16, 200
local commands = {}

local function now()
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
end

local function key(id) return P .. 'job:' .. id end
local function get(id, field) return redis.call('HGET', key(id), field) end
local function set(id, ...) redis.call('HSET', key(id), ...) end
local function clear(id, ...) redis.call('HDEL', key(id), ...) end
local function number(id, field) return tonumber(get(id, field) or 0) end
local function words(text) return string.gmatch(text or '', '%S+') end

-- Fields of a job by name; those that it does not have are left out.
local function fields_of(id, names)
  local values, fields = redis.call('HMGET', key(id), unpack(names)), {}
  for i, name in ipairs(names) do
    if values[i] then fields[name] = values[i] end
  end
  return fields
end

-- Notify those who follow the job; of a change of status, the further fields of the entry.
local function changed(id, ...)
  redis.call('XADD', P .. 'changes', 'MAXLEN', '~', CHANGES, '*', 'job', id, ...)
end

-- Something changed that a client may base a decision on: the job's ETag changes.
local function revised(id, ...)
  redis.call('HINCRBY', key(id), 'revision', 1)
  changed(id, ...)
end

-- The colour of a new run. `colours` has the colour of each run, `coloured` the newest runs by their time.
local function new_colour(run)
  redis.call('ZREM', P .. 'coloured', run)
  local counts, best = {}, 0
  for colour = 0, COLOURS - 1 do counts[colour] = 0 end
  local newest = redis.call('ZREVRANGE', P .. 'coloured', 0, COMPARED - 1)
  for _, taken in ipairs(#newest > 0 and redis.call('HMGET', P .. 'colours', unpack(newest)) or {}) do
    local colour = tonumber(taken or nil)
    if counts[colour or ''] then counts[colour] = counts[colour] + 1 end
  end
  for colour = 1, COLOURS - 1 do
    if counts[colour] < counts[best] then best = colour end
  end
  return best
end

-- Keep the colour of a run.
local function keep_colour(run, colour, created_at)
  redis.call('HSET', P .. 'colours', run, colour)
  redis.call('ZADD', P .. 'coloured', created_at, run)
  redis.call('ZREMRANGEBYRANK', P .. 'coloured', 0, -REMEMBERED - 1)
end

-- Give a run that is to be made a colour, whatever a run of that name had.
local function recolour(run, created_at)
  local colour = new_colour(run)
  keep_colour(run, colour, created_at)
  return colour
end

local function forget_colour(run)
  redis.call('HDEL', P .. 'colours', run)
  redis.call('ZREM', P .. 'coloured', run)
end

-- Keep the colour that a run has on disk, unless one is known.
local function restore_colour(run, colour, created_at)
  if redis.call('HEXISTS', P .. 'colours', run) == 0 then keep_colour(run, colour, created_at) end
end

-- The colour of a run as text; a run without one gets it now.
local function colour_of(run, created_at)
  local colour = redis.call('HGET', P .. 'colours', run)
  if colour then return colour end
  return tostring(recolour(run, created_at))
end

-- What the record of an earlier version lacks: the colour of its run, which it keeps from now on, and the model, of which
-- its specification has the numbers. A job that reads a run has its colour, if that is known.
local function complete(id, record)
  local kind, run = KINDS[record.kind] or {}, record.run or ''
  if not kind.has_model or run == '' then return end
  if not record.colour then
    record.colour = kind.makes == 'run' and colour_of(run, record.created_at) or redis.call('HGET', P .. 'colours', run) or nil
    if record.colour then set(id, 'colour', record.colour) end
  end
  if not record.model then record.spec = get(id, 'spec') or nil end
end

-- Add jobs to a reply: their records, as texts that clients cache; the number of ready jobs before each of them, which
-- changes when others do, false if it is not ready; and when ready jobs will start, as the workers estimated it last. No
-- record has fields if there is no such job.
local function with_jobs(reply, ids)
  reply.records, reply.jobs_ahead, reply.forecast = {}, {}, redis.call('GET', P .. 'outlook') or ''
  for i, id in ipairs(ids) do
    local record = fields_of(id, RECORD_FIELDS)
    complete(id, record)
    record.history = redis.call('LRANGE', key(id) .. ':history', 0, -1)
    reply.records[i] = cjson.encode(record)
    reply.jobs_ahead[i] = record.status == 'queued' and redis.call('ZRANK', P .. 'ready', id)
  end
  return reply
end

-- Names -----------------------------------------------------------------------------------------------------------

-- A job's row of KINDS; empty for a kind that this version does not know.
local function kind_of(id) return KINDS[get(id, 'kind')] or {} end

-- The job that owns the name of a 'run' or of a 'dataset', or false.
local function name_owner(resource, name) return redis.call('GET', P .. resource .. ':' .. name) end

-- The resource that a job makes, 'run', 'dataset', 'export' or 'ablation', and its name; nil for a job that only reads.
local function made_by(id)
  local resource = kind_of(id).makes
  return resource, resource and get(id, resource) or ''
end

-- False if another job owns the name of what the job makes.
local function take_name(id)
  if not kind_of(id).is_exclusive then return true end
  local resource, name = made_by(id)
  local owner = name_owner(resource, name)
  if owner and owner ~= id then return false end
  redis.call('SET', P .. resource .. ':' .. name, id)
  return true
end

-- Whatever the kind, because another version may have taken the name.
local function release_name(id)
  for _, resource in ipairs({'run', 'dataset'}) do
    local name = get(id, resource) or ''
    if name_owner(resource, name) == id then redis.call('DEL', P .. resource .. ':' .. name) end
  end
end

-- Indexes ---------------------------------------------------------------------------------------------------------

-- The sorted sets of jobs that hold a job, beside the one of its status. A preparation has no run, and the oldest jobs
-- have no dataset.
local function indexes_of(id)
  local run, dataset, makers = get(id, 'run') or '', get(id, 'dataset') or '', kind_of(id).index
  local indexes = {P .. 'jobs', P .. 'jobs:kind:' .. get(id, 'kind')}
  if run ~= '' then indexes[#indexes + 1] = P .. 'jobs:run:' .. run end
  if dataset ~= '' then indexes[#indexes + 1] = P .. 'jobs:dataset:' .. dataset end
  if makers then
    local _, name = made_by(id)
    indexes[#indexes + 1] = P .. makers .. name
  end
  return indexes
end

local function index(id)
  for _, name in ipairs(indexes_of(id)) do redis.call('ZADD', name, get(id, 'seq'), id) end
  if kind_of(id).makes == 'dataset' then redis.call('ZADD', P .. 'datasets', 0, get(id, 'dataset')) end
end

local function unindex(id)
  for _, name in ipairs(indexes_of(id)) do redis.call('ZREM', name, id) end
  redis.call('ZREM', P .. 'jobs:status:' .. get(id, 'status'), id)
  local dataset = get(id, 'dataset') or ''
  if redis.call('EXISTS', P .. 'makers:' .. dataset) == 0 then redis.call('ZREM', P .. 'datasets', dataset) end
end

-- The first job of an index that is not terminal, or nil; never `except`, and with the same spec if one is given.
local function active_job(name, except, spec)
  for _, id in ipairs(redis.call('ZRANGE', P .. 'jobs:' .. name, 0, -1)) do
    local is_meant = id ~= except and (not spec or get(id, 'spec') == spec)
    if is_meant and not TERMINAL[get(id, 'status')] then return id end
  end
end

-- Queue -----------------------------------------------------------------------------------------------------------

-- A ready job is in two sorted sets: `ready` gives positions, `ready:CLASS` (the GPUs it needs) is where jobs are taken.
local function class_queue(id) return P .. 'ready:' .. get(id, 'class') end

-- Higher priority first, then the lower number; both fit a double exactly.
local function score_of(seq, priority) return seq - priority * 2 ^ 40 end

local function enqueue(id)
  local score = score_of(number(id, 'seq'), number(id, 'priority'))
  redis.call('ZADD', P .. 'ready', score, id)
  redis.call('ZADD', class_queue(id), score, id)
end

local function dequeue(id)
  redis.call('ZREM', P .. 'ready', id)
  redis.call('ZREM', class_queue(id), id)
end

-- Status ----------------------------------------------------------------------------------------------------------

-- Keep how long a training took, by which those of the same shape are estimated. A record of an earlier version has no shape.
local function keep_duration(id, busy_ms)
  local shape, tokens, worker = get(id, 'shape') or '', number(id, 'tokens'), get(id, 'worker')
  if shape == '' or tokens == 0 or not worker then return end
  local samples = P .. 'durations:' .. shape
  redis.call('LPUSH', samples, cjson.encode({host = cjson.decode(worker).host, tokens = tokens, busy_ms = busy_ms}))
  redis.call('LTRIM', samples, 0, SAMPLES - 1)
  redis.call('EXPIRE', samples, SAMPLES_S)
end

-- Record the attempt that ends, and release its GPUs and its lease.
local function end_attempt(id, to, reason, t)
  local took = t - number(id, 'claimed_at')
  local busy = redis.call('HINCRBY', key(id), 'busy_ms', took)
  redis.call('RPUSH', key(id) .. ':attempts', cjson.encode({
    attempt = number(id, 'claimed_epoch'), run = get(id, 'run'), worker = get(id, 'worker'), started_at = t - took,
    ended_at = t, result = to, reason = reason, step = number(id, 'step'), resumed_from = get(id, 'resumed')}))
  redis.call('LTRIM', key(id) .. ':attempts', -ATTEMPTS, -1)
  for gpu in words(get(id, 'devices')) do redis.call('HDEL', P .. 'gpus', gpu) end
  clear(id, 'devices', 'resumed')
  redis.call('ZREM', P .. 'leases', id)
  if to == 'succeeded' then
    redis.call('LPUSH', P .. 'durations', busy)
    redis.call('LTRIM', P .. 'durations', 0, DURATIONS - 1)
    keep_duration(id, busy)
  end
end

local notify_dependents  -- in dependencies.lua

local function move(id, to, reason)
  local from = get(id, 'status')
  if from == to then return end
  if from and not TRANSITIONS[from .. '>' .. to] then
    error('no transition from ' .. from .. ' to ' .. to)
  end
  local t, seq = now(), number(id, 'seq')
  if HOLDING[from] and not HOLDING[to] then end_attempt(id, to, reason, t) end
  if from then redis.call('ZREM', P .. 'jobs:status:' .. from, id) end
  redis.call('ZADD', P .. 'jobs:status:' .. to, seq, id)
  set(id, 'status', to)
  local entry = cjson.encode({time = t, from = from or nil, to = to, reason = reason})
  redis.call('RPUSH', key(id) .. ':history', entry)
  redis.call('LTRIM', key(id) .. ':history', -HISTORY, -1)

  if to == 'queued' then
    set(id, 'desired', 'run', 'owner', '')
    clear(id, 'worker', 'error')
    if (get(id, 'waiting_for') or '') == '' then enqueue(id) end
  else
    dequeue(id)
  end
  if to == 'running' then redis.call('HSETNX', key(id), 'started_at', t) end
  if TERMINAL[to] then
    set(id, 'finished_at', t)
    release_name(id)
  else
    clear(id, 'finished_at')
  end
  revised(id, 'to', to, 'time', t, 'reason', reason, 'attempt', number(id, 'epoch'))
  if TERMINAL[to] then notify_dependents(id) end
end

-- Attempts --------------------------------------------------------------------------------------------------------

-- A worker's reports count while its attempt is the current one.
local function is_current(id, epoch)
  return number(id, 'epoch') == epoch and HOLDING[get(id, 'status')]
end

local function lease(id, lease_ms)
  redis.call('ZADD', P .. 'leases', now() + lease_ms, id)
end

local function requeue(id, reason, delay_ms)
  set(id, 'not_before', now() + delay_ms)
  move(id, 'queued', reason)
end

-- The process ended without an outcome: requeue, unless it happened too often in a row without a new step.
local function crashed(id, reason, error_json, budget)
  local step, failures = number(id, 'step'), 0
  if step > number(id, 'crash_step') then
    set(id, 'failures', 0, 'crash_step', step)
  else
    failures = redis.call('HINCRBY', key(id), 'failures', 1)
  end
  if failures >= budget then
    set(id, 'error', error_json)
    move(id, 'failed', reason)
  else
    requeue(id, reason, 0)
  end
end

-- A requested cancel or pause takes precedence over how the attempt ended.
local function apply_pending_action(id, reason)
  local desired = get(id, 'desired')
  if desired == 'cancel' then move(id, 'cancelled', reason)
  elseif desired == 'pause' then move(id, 'paused', reason)
  else return false end
  return true
end
