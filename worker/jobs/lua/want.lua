-- ARGV id, action, new run or '' (retry from scratch), the last event number of the old one
-- -> {verdict, fact, view, outlook}; verdict: changed, same, missing, refused (fact: status), run_exists (fact: run) or
-- dataset_exists (fact: dataset)
local id, action, run = ARGV[1], ARGV[2], ARGV[3]
local from = get(id, 'status')
if not from then return {'missing', ''} end
local to, desired = ACTIONS[action][from], get(id, 'desired')
if not to or get(id, 'doomed') or (from == 'stopping' and action == 'pause' and desired ~= 'pause') then
  return {'refused', from}
end
local verdict = from == to and 'same' or 'changed'

if to == 'queued' and from ~= 'queued' then
  if run ~= '' then
    if keeper('run', run) then return {'run_exists', run} end
    let_name_go(id)
    redis.call('ZREM', P .. 'jobs:run:' .. get(id, 'run'), id)
    redis.call('ZADD', P .. 'jobs:run:' .. run, number(id, 'seq'), id)
    local told = math.max(number(id, 'mirrored'), tonumber(ARGV[4]))
    set(id, 'run', run, 'step', 0, 'crash_step', 0, 'busy_ms', 0, 'mirrored', told, 'seq_after', told)
    clear(id, 'progress')
  end
  if not keep_name(id) then
    local what, name = made_by(id)
    return {what .. '_exists', name}
  end
  set(id, 'failures', 0, 'not_before', 0)
end
if to == 'stopping' and desired ~= action then
  set(id, 'desired', action)
  if from == to then
    verdict = 'changed'
    revised(id)
  end
end
move(id, to, action .. ' was asked')
for awaited in words(to == 'queued' and get(id, 'waiting_for') or '') do
  if get(id, 'status') == 'queued' and (not get(awaited, 'id') or get(awaited, 'doomed')) then
    fail_for(id, awaited, 'was deleted')
  end
end
return {verdict, '', view(id), outlook()}
