-- Which job a worker should take next: for the two scripts that ask. After lib.lua.
local KEEP_MS, LOOK = 10000, 100

-- GPUs of a list that no attempt holds, whichever worker of their host it runs on, and the place of the job
-- that each is kept for.
local function free_of(gpus)
  local free = {}
  for gpu in words(gpus) do
    if not redis.call('HGET', P .. 'gpus', gpu) then
      local id = redis.call('HGET', P .. 'kept', gpu)
      local place = id and number(id, 'kept_until') > now() and redis.call('ZSCORE', P .. 'ready', id)
      free[#free + 1] = {gpu = gpu, kept_at = place and tonumber(place) or math.huge}
    end
  end
  return free
end

-- Those of them that the job at a place may have: none that is kept for a job before it.
local function open_to(place, free)
  local open = {}
  for _, one in ipairs(free) do
    if one.kept_at >= place then open[#open + 1] = one.gpu end
  end
  return open
end

-- The first of a class that may run now.
local function head_of(class_name, need)
  local line = redis.call('ZRANGE', P .. 'ready:' .. class_name, 0, LOOK - 1, 'WITHSCORES')
  for i = 1, #line, 2 do
    if number(line[i], 'not_before') <= now() then
      return {id = line[i], place = tonumber(line[i + 1]), need = need}
    end
  end
end

-- Heads of the classes that a worker with so many GPUs could ever run, in the order of the queue.
local function heads(total)
  local found = {head_of('any', math.min(total, 1))}
  for need = 0, total do
    found[#found + 1] = head_of(tostring(need), need)
  end
  table.sort(found, function(one, other) return one.place < other.place end)
  return found
end

-- Keep GPUs for a job that needs more than are free, unless another worker does so already.
local function keep(id, worker, gpus)
  local other = get(id, 'kept_by')
  if other and other ~= worker and number(id, 'kept_until') > now() then return end
  set(id, 'kept_by', worker, 'kept_until', now() + KEEP_MS)
  for _, gpu in ipairs(gpus) do redis.call('HSET', P .. 'kept', gpu, id) end
end

-- The first job that fits, with the GPUs it gets, or nil. A large job in front keeps what is free, so that small ones
-- behind it cannot starve it; those that need no GPU pass.
local function first_fit(worker, gpus, total)
  for _, head in ipairs(heads(total)) do
    local open = open_to(head.place, free_of(gpus))
    if head.need <= #open then return head.id, {unpack(open, 1, head.need)} end
    keep(head.id, worker, open)
  end
end
