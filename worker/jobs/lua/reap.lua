-- ARGV crash budget, error (JSON) -> ids of the jobs whose lease ran out and was nobody's
local expired = redis.call('ZRANGEBYSCORE', P .. 'leases', '-inf', now(), 'LIMIT', 0, 100)
for _, id in ipairs(expired) do
  redis.call('HINCRBY', key(id), 'epoch', 1)  -- fences whoever held it
  if not obeyed(id, 'the worker was lost') then
    crashed(id, 'the worker was lost', ARGV[2], ARGV[1])
  end
end
return expired
