-- Shared by every script. Before it stand P, the prefix of every key, VIEW, the fields of a job that clients see, and
-- states.py's ARROWS, ACTIONS, TERMINAL and HOLDING, and kinds.py's KINDS and DATASET_MAKER. Time is the server's. A job's status changes in `move` alone, so what must
-- hold together is written once: ready <=> queued and nothing awaited, lease <=> running or stopping, one status set,
-- a name kept while its job is not over: a run's by the training that makes it, a dataset's by its preparation.
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

-- The job that keeps the name of a 'run' or of a 'dataset', or false.
local function keeper(what, name) return redis.call('GET', P .. what .. ':' .. name) end

-- A job's row of KINDS; empty for a kind that this version does not know.
local function kind_of(id) return KINDS[get(id, 'kind')] or {} end

-- What a job makes: 'run', 'dataset' or 'export', and its name; nothing of a job that only reads.
local function made_by(id)
  local what = kind_of(id).makes
  return what, what and get(id, what) or ''
end

local function keep_name(id)
  if not kind_of(id).is_exclusive then return true end
  local what, name = made_by(id)
  local other = keeper(what, name)
  if other and other ~= id then return false end
  redis.call('SET', P .. what .. ':' .. name, id)
  return true
end

local function let_name_go(id)
  if not kind_of(id).is_exclusive then return end
  local what, name = made_by(id)
  if keeper(what, name) == id then redis.call('DEL', P .. what .. ':' .. name) end
end

-- The lists of jobs that a job stands in, beside that of its status. A preparation has no run, and jobs from before
-- there were any have no dataset.
local function lists_of(id)
  local run, dataset, index = get(id, 'run') or '', get(id, 'dataset') or '', kind_of(id).index
  local lists = {P .. 'jobs', P .. 'jobs:kind:' .. get(id, 'kind')}
  if run ~= '' then lists[#lists + 1] = P .. 'jobs:run:' .. run end
  if dataset ~= '' then lists[#lists + 1] = P .. 'jobs:dataset:' .. dataset end
  if index then
    local _, name = made_by(id)
    lists[#lists + 1] = P .. index .. name
  end
  return lists
end

local function enlist(id)
  for _, list in ipairs(lists_of(id)) do redis.call('ZADD', list, get(id, 'seq'), id) end
  if kind_of(id).makes == 'dataset' then redis.call('ZADD', P .. 'datasets', 0, get(id, 'dataset')) end
end

local function strike(id)
  for _, list in ipairs(lists_of(id)) do redis.call('ZREM', list, id) end
  redis.call('ZREM', P .. 'jobs:status:' .. get(id, 'status'), id)
  local dataset = get(id, 'dataset') or ''
  if redis.call('EXISTS', P .. 'makers:' .. dataset) == 0 then redis.call('ZREM', P .. 'datasets', dataset) end
end

-- A job of a list, other than one, that is not over, and where a spec is given asks for just that; or nil.
local function user_of(list, except, spec)
  for _, other in ipairs(redis.call('ZRANGE', P .. 'jobs:' .. list, 0, -1)) do
    local is_meant = other ~= except and (not spec or get(other, 'spec') == spec)
    if is_meant and not TERMINAL[get(other, 'status')] then return other end
  end
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
  local why = how == 'failed' and get(awaited, 'error')
  if how == 'cancelled' then how = 'was cancelled' end
  local detail = 'it waits for ' .. awaited .. ', which ' .. how .. (why and ': ' .. cjson.decode(why).detail or '')
  set(id, 'error', cjson.encode({code = 'dependency_failed', detail = detail,
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
