-- Shared by every script. Before it stand P, the prefix of every key, VIEW, the fields of a job that clients see, and
-- states.py's ARROWS, ACTIONS, TERMINAL and HOLDING. Time is the server's. A job's status changes in `move` alone, so what must
-- hold together is written once: ready <=> queued and nothing awaited, lease <=> running or stopping, one status set,
-- a run's name kept while its job is not over.
local HISTORY, ATTEMPTS, DURATIONS, CHANGES = 200, 100, 50, 10000

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

local function changed(id)
  redis.call('XADD', P .. 'changes', 'MAXLEN', '~', CHANGES, '*', 'job', id)
end

-- Something changed that a client may have decided by.
local function revised(id)
  redis.call('HINCRBY', key(id), 'revision', 1)
  changed(id)
end

-- What a client sees of a job: its record as one text, and its place in the line, which changes when others do. A reply
-- of many small parts takes Python longer to read than all the rest.
local function view(id)
  local record = redis.call('HMGET', key(id), unpack(VIEW))
  local place = record[4] == 'queued' and redis.call('ZRANK', P .. 'ready', id)
  return {cjson.encode({record, redis.call('LRANGE', key(id) .. ':history', 0, -1)}), place}
end

local function views(ids)
  local every = {}
  for i, id in ipairs(ids) do every[i] = view(id) end
  return every
end

local function outlook() return redis.call('GET', P .. 'outlook') or '' end

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

-- Ready jobs stand in line twice: all together, where places are counted, and by the GPUs they need, where they are taken.
local function class(id) return P .. 'ready:' .. get(id, 'class') end

local function line_up(id)
  -- A higher priority comes first, then the lower number; both fit a double exactly.
  local place = number(id, 'seq') - number(id, 'priority') * 2 ^ 40
  redis.call('ZADD', P .. 'ready', place, id)
  redis.call('ZADD', class(id), place, id)
end

local function step_out(id)
  redis.call('ZREM', P .. 'ready', id)
  redis.call('ZREM', class(id), id)
end

-- Write down the attempt that ends, and free what it held.
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
  end
end

local settle

local function move(id, to, reason)
  local from = get(id, 'status')
  if from == to then return end
  if from and not ARROWS[from .. '>' .. to] then
    error('no way from ' .. from .. ' to ' .. to)
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
    if (get(id, 'waiting_for') or '') == '' then line_up(id) end
  else
    step_out(id)
  end
  if to == 'running' then redis.call('HSETNX', key(id), 'started_at', t) end
  if TERMINAL[to] then
    set(id, 'finished_at', t)
    let_name_go(id)
  else
    clear(id, 'finished_at')
  end
  revised(id)
  if TERMINAL[to] then settle(id) end
end

local function fail_for(id, awaited, how)
  if how == 'cancelled' then how = 'was cancelled' end
  set(id, 'error', cjson.encode({code = 'dependency_failed', detail = 'it waits for ' .. awaited .. ', which ' .. how,
    hint = 'bring that job to success and retry this one, or submit it again without depends_on'}))
  move(id, 'failed', awaited .. ' ' .. how)
end

-- One job fewer to wait for.
local function release(id, awaited)
  local left = {}
  for other in words(get(id, 'waiting_for')) do
    if other ~= awaited then left[#left + 1] = other end
  end
  set(id, 'waiting_for', table.concat(left, ' '))
  if #left == 0 and get(id, 'status') == 'queued' then line_up(id) end
  revised(id)
end

-- Tell the jobs that wait for one that it is over: it succeeded, or it fails them, and they in turn fail others.
local ended, settling = {}, false
function settle(id)
  ended[#ended + 1] = id
  if settling then return end
  settling = true
  while #ended > 0 do
    local awaited = table.remove(ended)
    local how = get(awaited, 'doomed') and 'was deleted' or get(awaited, 'status')
    for _, other in ipairs(redis.call('SMEMBERS', key(awaited) .. ':dependents')) do
      local waits = string.find(get(other, 'waiting_for') or '', awaited, 1, true)
      if waits and how == 'succeeded' then
        release(other, awaited)
      elseif waits and get(other, 'status') == 'queued' then
        fail_for(other, awaited, how)
      end
    end
  end
  settling = false
end

-- The holder's word counts while its attempt is the present one.
local function holds(id, epoch)
  return get(id, 'epoch') == epoch and HOLDING[get(id, 'status')]
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
