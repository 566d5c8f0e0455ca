-- What the known workers could run. For the two scripts that ask. After lib.lua.

-- Memory for one job: a worker's, or its largest GPU's; without a number there is room.
local function room_of(worker)
  local largest = tonumber(worker.memory_bytes) or 0
  for _, gpu in ipairs(worker.gpus or {}) do largest = math.max(largest, tonumber(gpu.memory_bytes) or 0) end
  return largest > 0 and largest or math.huge
end

-- Nil if some known worker has as many GPUs and one as much memory, or if none is known, so that nobody can say. Else
-- GPUs of the worker that has most, and the largest memory for one job, '' where there is no bound.
local function shortage(gpus, bytes)
  local most, room
  for _, id in ipairs(redis.call('SMEMBERS', P .. 'workers')) do
    local facts = redis.call('GET', P .. 'workers:' .. id)
    if facts then
      local worker = cjson.decode(facts)
      most = math.max(most or 0, #(worker.gpus or {}))
      room = math.max(room or 0, room_of(worker))
    end
  end
  if not most or (gpus <= most and bytes <= room) then return nil end
  return {most, room < math.huge and string.format('%.0f', room) or ''}
end
