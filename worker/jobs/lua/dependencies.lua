-- What a job waits for: the jobs that it depends on, and the job that prepares its dataset. After lib.lua.
--
-- No queued job waits for one that is over or unknown. It fails as soon as such a job ends without success, and whatever
-- is queued again looks at each of them first. A job whose preparation was lost then looks for its dataset: it may be
-- ready by now, another job may be preparing it, or it is prepared anew.

-- Why a job will not succeed, as a clause; nil if it may yet, or has.
local function loss_of(id)
  local status = get(id, 'status')
  if not status then return 'does not exist any more' end
  if status == 'succeeded' then return nil end
  if get(id, 'doomed') then return 'was deleted' end
  return ({failed = 'failed', cancelled = 'was cancelled'})[status]
end

-- Whether a job prepares the dataset of another one. Records of earlier versions do not name their preparation.
local function prepares_for(awaited, id)
  local dataset = get(id, 'dataset') or ''
  if dataset == '' or kind_of(id).makes == 'dataset' then return false end
  if awaited == get(id, 'preparation') then return true end
  return kind_of(awaited).makes == 'dataset' and get(awaited, 'dataset') == dataset
end

-- Whether a job waits for another one, directly or through others.
local function awaits(id, other)
  local open, seen = {id}, {}
  while #open > 0 do
    for awaited in words(get(table.remove(open), 'waiting_for')) do
      if awaited == other then return true end
      if not seen[awaited] then
        seen[awaited] = true
        open[#open + 1] = awaited
      end
    end
  end
  return false
end

-- Whether the job that makes a dataset makes one of this recipe; for a job that only reads it the seed does not count.
local function makes_same(maker, recipe, is_exact)
  local made = get(maker, 'recipe')
  return made == recipe or (not is_exact and string.match(made, '^%x+') == string.match(recipe, '^%x+'))
end

-- What a client can do. Only clients write depends_on; earlier versions added the preparation to it.
local function hint_about(id, awaited, loss)
  if prepares_for(awaited, id) then
    return 'retry this job: it takes the dataset if that is there by then, else it is prepared again'
  end
  if not get(awaited, 'id') and not get(id, 'preparation') then return 'submit this job again' end
  local without = 'submit this job again without ' .. awaited .. ' in depends_on'
  local action = ({failed = 'retry', ['was cancelled'] = 'resume'})[loss]
  return action and action .. ' ' .. awaited .. ', then retry this job; or ' .. without or without
end

local function fail_dependent(id, awaited)
  local loss = loss_of(awaited)
  local why = loss == 'failed' and get(awaited, 'error')
  local reason = why and cjson.decode(why) or {}
  local hint = hint_about(id, awaited, loss)
  if type(reason.hint) == 'string' and reason.code ~= 'dependency_failed' then hint = reason.hint .. '; then ' .. hint end
  local detail = 'it waits for ' .. awaited .. ', which ' .. loss .. (reason.detail and ': ' .. reason.detail or '')
  set(id, 'error', cjson.encode({code = 'dependency_failed', detail = detail, hint = hint}))
  move(id, 'failed', awaited .. ' ' .. loss)
end

local function add_awaited(awaited, id)
  for _, other in ipairs(awaited) do
    if other == id then return end
  end
  awaited[#awaited + 1] = id
end

-- Let a job wait for others, which notify it when they are over.
local function wait_for(id, awaited)
  set(id, 'waiting_for', table.concat(awaited, ' '))
  for _, other in ipairs(awaited) do redis.call('SADD', key(other) .. ':dependents', id) end
end

-- Remove a job from those that another one awaits; the last one makes it ready.
local function satisfy(id, awaited)
  local left = {}
  for other in words(get(id, 'waiting_for')) do
    if other ~= awaited then left[#left + 1] = other end
  end
  set(id, 'waiting_for', table.concat(left, ' '))
  if #left == 0 and get(id, 'status') == 'queued' then enqueue(id) end
  revised(id)
end

-- Satisfy the dependents of a job that succeeded and fail those of another one, which fails theirs in turn: a loop, because
-- a chain of jobs may be longer than the stack.
local ended, is_notifying = {}, false
function notify_dependents(id)
  ended[#ended + 1] = id
  if is_notifying then return end
  is_notifying = true
  while #ended > 0 do
    local awaited = table.remove(ended)
    local loss = loss_of(awaited)
    for _, other in ipairs(redis.call('SMEMBERS', key(awaited) .. ':dependents')) do
      local waits = string.find(get(other, 'waiting_for') or '', awaited, 1, true)
      if waits and not loss then
        satisfy(other, awaited)
      elseif waits and get(other, 'status') == 'queued' then
        fail_dependent(other, awaited)
      end
    end
  end
  is_notifying = false
end

-- What a job that is not queued would wait for if it were: `awaited`; `lost`, the first of them that will not succeed; and
-- whether its dataset must be prepared by a job that it does not await yet: `is_unprepared`.
local function look_again(id, is_dataset_ready)
  local found = {awaited = {}, is_unprepared = (get(id, 'preparation_spec') or '') ~= ''}
  for other in words(get(id, 'waiting_for')) do
    local loss, prepares = loss_of(other), prepares_for(other, id)
    if loss and prepares then
      found.is_unprepared, found.preparation = true, other
    elseif get(other, 'status') ~= 'succeeded' then
      found.awaited[#found.awaited + 1] = other
      if prepares then found.is_prepared = true end
      if loss then found.lost = found.lost or other end
    end
  end
  found.is_unprepared = found.is_unprepared and not found.is_prepared and not is_dataset_ready
  return found
end

-- Repair the queued jobs that wait for nothing that will come, or that nobody would notify: records of the jobs that they
-- await were lost, or an earlier version left them so.
local function repair_waiting()
  local queued, ready = P .. 'jobs:status:queued', P .. 'ready'
  if redis.call('ZCARD', queued) == redis.call('ZCARD', ready) then return end
  for _, id in ipairs(redis.call('ZDIFF', 2, queued, ready)) do
    for awaited in words(get(id, 'waiting_for')) do
      if get(id, 'status') ~= 'queued' then break end
      if loss_of(awaited) then
        fail_dependent(id, awaited)
      elseif get(awaited, 'status') == 'succeeded' then
        satisfy(id, awaited)
      else
        redis.call('SADD', key(awaited) .. ':dependents', id)
      end
    end
  end
end
