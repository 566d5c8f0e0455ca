-- Shared by every script. Before it stand P, the prefix of every key, and states.py's ARROWS, ACTIONS and TERMINAL.
-- Time is the server's. A job's status changes in `move` alone, so what must hold together is written once:
-- ready <=> queued, lease <=> running or stopping, one status set, a run's name kept while its job is not over.
local HISTORY, CHANGES = 200, 10000

local function now()
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
end

local function key(id) return P .. 'job:' .. id end
local function get(id, field) return redis.call('HGET', key(id), field) end
local function set(id, ...) redis.call('HSET', key(id), ...) end
local function number(id, field) return tonumber(get(id, field) or 0) end

local function changed(id)
  redis.call('XADD', P .. 'changes', 'MAXLEN', '~', CHANGES, '*', 'job', id)
end

-- Name of the job that keeps a run's name, or false.
local function keeper(run) return redis.call('GET', P .. 'run:' .. run) end

local function keep_name(id)
  if get(id, 'kind') ~= 'train' then return true end
  local run = get(id, 'run')
  local other = keeper(run)
  if other and other ~= id then return false end
  redis.call('SET', P .. 'run:' .. run, id)
  return true
end

local function let_name_go(id)
  local run = get(id, 'run')
  if keeper(run) == id then redis.call('DEL', P .. 'run:' .. run) end
end

-- Before its number, so that a higher priority runs first; both fit a double exactly.
local function place(id) return number(id, 'seq') - number(id, 'priority') * 2 ^ 40 end

local function move(id, to, reason)
  local from = get(id, 'status')
  if from == to then return end
  if from and not ARROWS[from .. '>' .. to] then
    error('no way from ' .. from .. ' to ' .. to)
  end
  local t, seq = now(), number(id, 'seq')
  if from then redis.call('ZREM', P .. 'jobs:status:' .. from, id) end
  redis.call('ZADD', P .. 'jobs:status:' .. to, seq, id)
  set(id, 'status', to)
  local entry = cjson.encode({time = t, from = from or nil, to = to, reason = reason})
  redis.call('RPUSH', key(id) .. ':history', entry)
  redis.call('LTRIM', key(id) .. ':history', -HISTORY, -1)

  if to == 'queued' then
    set(id, 'desired', 'run', 'owner', '')
    redis.call('HDEL', key(id), 'worker', 'error')
    redis.call('ZADD', P .. 'ready', place(id), id)
  else
    redis.call('ZREM', P .. 'ready', id)
  end
  if to == 'running' then redis.call('HSETNX', key(id), 'started_at', t) end
  if to ~= 'running' and to ~= 'stopping' then redis.call('ZREM', P .. 'leases', id) end
  if TERMINAL[to] then
    set(id, 'finished_at', t)
    let_name_go(id)
  else
    redis.call('HDEL', key(id), 'finished_at')
  end
  changed(id)
end

-- The holder's word counts while its attempt is the present one.
local function holds(id, epoch)
  local status = get(id, 'status')
  return get(id, 'epoch') == epoch and (status == 'running' or status == 'stopping')
end

local function lease(id, lease_ms)
  redis.call('ZADD', P .. 'leases', now() + tonumber(lease_ms), id)
end

local function again(id, reason, delay_ms)
  set(id, 'not_before', now() + delay_ms)
  move(id, 'queued', reason)
end

-- An attempt ended without a word: again, unless too many did in a row without a new step.
local function crashed(id, reason, error_json, budget)
  local step, failures = number(id, 'step'), 0
  if step > number(id, 'crash_step') then
    set(id, 'failures', 0, 'crash_step', step)
  else
    failures = redis.call('HINCRBY', key(id), 'failures', 1)
  end
  if failures >= tonumber(budget) then
    set(id, 'error', error_json)
    move(id, 'failed', reason)
  else
    again(id, reason, 0)
  end
end

-- What was wished while it ran comes before what happened to it.
local function obeyed(id, reason)
  local desired = get(id, 'desired')
  if desired == 'cancel' then move(id, 'cancelled', reason)
  elseif desired == 'pause' then move(id, 'paused', reason)
  else return false end
  return true
end

local function fits(id, free_gpus, has_gpus)
  local gpus = get(id, 'gpus')
  if number(id, 'not_before') > now() then return false end
  if gpus == '' then return not has_gpus or free_gpus >= 1 end
  return tonumber(gpus) <= free_gpus
end

-- The first ready job that fits, or nil.
local function first_fit(free_gpus, has_gpus)
  for offset = 0, 900, 100 do
    local ids = redis.call('ZRANGE', P .. 'ready', offset, offset + 99)
    for _, id in ipairs(ids) do
      if fits(id, free_gpus, has_gpus) then return id end
    end
    if #ids < 100 then return nil end
  end
end
