-- ARGV id, action -> {verdict, fact}; verdict: ok (fact: changed or same), missing, refused (status) or run_exists (run)
local id, action = ARGV[1], ARGV[2]
local from = get(id, 'status')
if not from then return {'missing', ''} end
local to, desired = ACTIONS[action][from], get(id, 'desired')
if not to or (from == 'stopping' and action == 'pause' and desired ~= 'pause') then return {'refused', from} end
if to == 'queued' and from ~= 'queued' then
  if not keep_name(id) then return {'run_exists', get(id, 'run')} end
  set(id, 'failures', 0, 'not_before', 0)
end
if to == 'stopping' and desired ~= action then
  set(id, 'desired', action)
  if from == to then changed(id) end
end
move(id, to, action .. ' was asked')
return {'ok', get(id, 'status') == from and 'same' or 'changed'}
