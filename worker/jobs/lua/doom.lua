-- ARGV id, '1' if its run, its dataset or its export goes too -> {verdict, fact}; verdict: ok, missing, refused (status) or busy (a job)
-- A job that is being deleted can do nothing else; whoever began may have died, so this may be asked again.
local id = ARGV[1]
local status = get(id, 'status')
if not status then return {'missing', ''} end
if not ACTIONS.delete[status] then return {'refused', status} end
local what, name = made_by(id)
local user = ARGV[2] == '1' and what and user_of(what .. ':' .. name, id)
if user then return {'busy', user} end
if not get(id, 'doomed') then
  set(id, 'doomed', 1)
  revised(id)
  if status ~= 'succeeded' then settle(id) end
end
return {'ok', ''}
