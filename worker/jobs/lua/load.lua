-- -> {milliseconds that jobs took which succeeded lately, {progress (JSON) or '', milliseconds since its claim} of each
-- running job}
local running = {}
for _, status in ipairs({'running', 'stopping'}) do
  for _, id in ipairs(redis.call('ZRANGE', P .. 'jobs:status:' .. status, 0, 999)) do
    running[#running + 1] = {get(id, 'progress') or '', now() - number(id, 'claimed_at')}
  end
end
return {redis.call('LRANGE', P .. 'durations', 0, -1), running}
