-- What the known workers could run: GPUs of the one that has most, and the largest memory for one job, which is a worker's
-- or its largest GPU's. Nil where nobody can say. For the two scripts that ask. After lib.lua.
local function room_of(worker)
  local largest = tonumber(worker.memory_bytes) or 0
  for _, gpu in ipairs(worker.gpus or {}) do largest = math.max(largest, tonumber(gpu.memory_bytes) or 0) end
  return largest > 0 and largest or math.huge
end

local function capacity()
  local gpus, room
  for _, id in ipairs(redis.call('SMEMBERS', P .. 'workers')) do
    local facts = redis.call('GET', P .. 'workers:' .. id)
    if facts then
      local worker = cjson.decode(facts)
      gpus = math.max(gpus or 0, #(worker.gpus or {}))
      room = math.max(room or 0, room_of(worker))
    end
  end
  return gpus, room
end

local function told_capacity(gpus, room)
  return {gpus or '', room and room < math.huge and string.format('%.0f', room) or ''}
end
