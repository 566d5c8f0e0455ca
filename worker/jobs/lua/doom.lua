-- ARGV id, '1' if its run goes too -> {verdict, fact}; verdict: ok, missing, refused (status) or busy (a job)
-- A job that is being deleted can do nothing else; whoever began may have died, so this may be asked again.
local id = ARGV[1]
local status = get(id, 'status')
if not status then return {'missing', ''} end
if not ACTIONS.delete[status] then return {'refused', status} end
if ARGV[2] == '1' and get(id, 'kind') == 'train' then
  for _, other in ipairs(redis.call('ZRANGE', P .. 'jobs:run:' .. get(id, 'run'), 0, -1)) do
    if other ~= id and not TERMINAL[get(other, 'status')] then return {'busy', other} end
  end
end
if not get(id, 'doomed') then
  set(id, 'doomed', 1)
  revised(id)
  if status ~= 'succeeded' then settle(id) end
end
return {'ok', ''}
