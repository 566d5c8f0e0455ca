-- Which job a worker takes next, and whether any worker could ever run a job. After lib.lua.
local RESERVE_MS, LOOKAHEAD = 10000, 100

-- GPUs of a list that no attempt holds, on whichever worker of the host, each with the score of the ready job that it is
-- reserved for.
local function free_gpus(gpus)
  local free = {}
  for _, gpu in ipairs(gpus) do
    if not redis.call('HGET', P .. 'gpus', gpu) then
      local id = redis.call('HGET', P .. 'kept', gpu)
      local score = id and number(id, 'kept_until') > now() and redis.call('ZSCORE', P .. 'ready', id)
      free[#free + 1] = {gpu = gpu, reserved_at = score and tonumber(score) or math.huge}
    end
  end
  return free
end

-- Those that a job with that score may take: none that is reserved for a job before it.
local function available_to(score, free)
  local available = {}
  for _, one in ipairs(free) do
    if one.reserved_at >= score then available[#available + 1] = one.gpu end
  end
  return available
end

-- The first job of a class that is not delayed.
local function head_of(class, need)
  local queue = redis.call('ZRANGE', P .. 'ready:' .. class, 0, LOOKAHEAD - 1, 'WITHSCORES')
  for i = 1, #queue, 2 do
    if number(queue[i], 'not_before') <= now() then
      return {id = queue[i], score = tonumber(queue[i + 1]), need = need}
    end
  end
end

-- The first jobs of all classes that a worker with so many GPUs could run, in queue order.
local function heads(total)
  local found = {head_of('any', math.min(total, 1))}
  for need = 0, total do
    found[#found + 1] = head_of(tostring(need), need)
  end
  table.sort(found, function(one, other) return one.score < other.score end)
  return found
end

-- Reserve GPUs for a job that needs more than are free, unless another worker reserves some for it.
local function reserve(id, worker, gpus)
  local other = get(id, 'kept_by')
  if other and other ~= worker and number(id, 'kept_until') > now() then return end
  set(id, 'kept_by', worker, 'kept_until', now() + RESERVE_MS)
  for _, gpu in ipairs(gpus) do redis.call('HSET', P .. 'kept', gpu, id) end
end

-- The first job that fits, with the GPUs it gets, or nil. A large job in front reserves what is free, so that small ones
-- behind it cannot starve it; jobs without GPUs overtake it.
local function schedule(worker, idle, total)
  for _, head in ipairs(heads(total)) do
    local available = available_to(head.score, free_gpus(idle))
    if head.need <= #available then return head.id, {unpack(available, 1, head.need)} end
    reserve(head.id, worker, available)
  end
end

-- Memory for one job in bytes: the worker's, or its largest GPU's; infinite if unknown.
local function memory_of(worker)
  local largest = tonumber(worker.memory_bytes) or 0
  for _, gpu in ipairs(worker.gpus or {}) do largest = math.max(largest, tonumber(gpu.memory_bytes) or 0) end
  return largest > 0 and largest or math.huge
end

-- What the workers that are alive announced.
local function known_workers()
  local found = {}
  for _, id in ipairs(redis.call('SMEMBERS', P .. 'workers')) do
    local info = redis.call('GET', P .. 'workers:' .. id)
    if info then found[#found + 1] = cjson.decode(info) end
  end
  return found
end

-- Nil if some known worker has enough GPUs and one enough memory, or if no worker is known. Otherwise the largest GPU count
-- and memory of the known workers; no memory_bytes if that is unbounded.
local function insufficient_capacity(gpus, memory_bytes)
  local most_gpus, most_memory
  for _, worker in ipairs(known_workers()) do
    most_gpus = math.max(most_gpus or 0, #(worker.gpus or {}))
    most_memory = math.max(most_memory or 0, memory_of(worker))
  end
  if not most_gpus or (gpus <= most_gpus and memory_bytes <= most_memory) then return nil end
  -- As text: cjson writes numbers with 14 digits.
  return {gpus = most_gpus, memory_bytes = most_memory < math.huge and string.format('%.0f', most_memory) or nil}
end

-- worker (name), idle (GPU ids), gpus (how many in all) -> is_runnable: whether `claim` would find a job.
function commands.has_runnable(args)
  return {is_runnable = schedule(args.worker, args.idle, args.gpus) ~= nil}
end

-- The ready jobs that would precede a new one; nil if it would wait for others first.
local function jobs_before(priority, depends_on)
  for _, id in ipairs(depends_on) do
    if get(id, 'status') ~= 'succeeded' then return nil end
  end
  local seq = tonumber(redis.call('GET', P .. 'seq') or 0) + 1
  return redis.call('ZCOUNT', P .. 'ready', '-inf', string.format('(%.0f', score_of(seq, priority)))
end

-- gpus, memory_bytes, priority, depends_on (ids) and, of a training, shape of a job that is not submitted
-- -> capacity: what the known workers have, if none of them could run it; jobs_ahead: absent if it would wait for others;
-- forecast, as of `with_jobs`; samples (JSON each): how long trainings of that shape took; hosts of the known workers.
function commands.preview(args)
  local hosts = {}
  for _, worker in ipairs(known_workers()) do hosts[#hosts + 1] = worker.host end
  return {
    capacity = insufficient_capacity(args.gpus, args.memory_bytes), hosts = hosts,
    jobs_ahead = jobs_before(args.priority, args.depends_on), forecast = redis.call('GET', P .. 'outlook') or '',
    samples = args.shape and redis.call('LRANGE', P .. 'durations:' .. args.shape, 0, -1) or {}}
end

-- -> durations_ms of the jobs that succeeded lately; running: progress (JSON) and age_ms of each running job.
function commands.forecast_inputs()
  local running = {}
  for _, status in ipairs({'running', 'stopping'}) do
    for _, id in ipairs(redis.call('ZRANGE', P .. 'jobs:status:' .. status, 0, 999)) do
      running[#running + 1] = {progress = get(id, 'progress') or nil, age_ms = now() - number(id, 'claimed_at')}
    end
  end
  return {durations_ms = redis.call('LRANGE', P .. 'durations', 0, -1), running = running}
end
