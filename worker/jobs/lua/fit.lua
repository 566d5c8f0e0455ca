-- Which job a worker should take next: for the two scripts that ask. After lib.lua.
local KEEP_MS, LOOK = 10000, 100

-- GPUs of a list that no attempt holds, whichever worker of their host it runs on.
local function free_of(gpus)
  local free = {}
  for gpu in words(gpus) do
    if not redis.call('HGET', P .. 'gpus', gpu) then free[#free + 1] = gpu end
  end
  return free
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

-- Keep the worker's GPUs for a job that needs more than are free; another worker may do so already.
local function keep_for(id, worker)
  local other = get(id, 'kept_by')
  if other and other ~= worker and number(id, 'kept_until') > now() then return false end
  set(id, 'kept_by', worker, 'kept_until', now() + KEEP_MS)
  return true
end

-- The first job that fits, with the GPUs it gets, or nil. A large job in front keeps what is free for itself, so that
-- small ones behind it cannot starve it; those that need no GPU pass.
local function first_fit(worker, gpus, total)
  local free, keeping = free_of(gpus), false
  for _, head in ipairs(heads(total)) do
    if head.need == 0 or (not keeping and head.need <= #free) then
      return head.id, {unpack(free, 1, head.need)}
    end
    keeping = keeping or keep_for(head.id, worker)
  end
end
