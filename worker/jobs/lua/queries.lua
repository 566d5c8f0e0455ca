-- Commands that only read. After lib.lua. `jobs` stands for what `with_jobs` adds. cjson writes an empty list as {}.

-- ids -> jobs.
function commands.get_many(args)
  return with_jobs({}, args.ids)
end

-- The jobs that a job waits for: fields of each, and the ready jobs before it if it is ready.
local function awaited_by(id)
  local found = {}
  for awaited in words(get(id, 'waiting_for')) do
    local fields = fields_of(awaited, {'id', 'kind', 'run', 'dataset', 'status', 'progress'})
    fields.jobs_ahead = redis.call('ZRANK', P .. 'ready', awaited) or nil
    if fields.id then found[#found + 1] = fields end
  end
  return found
end

-- id -> jobs (one), detail (JSON): DETAIL_FIELDS and the attempts that ended; waiting_on: the jobs that it waits for.
function commands.get_detail(args)
  local detail = fields_of(args.id, DETAIL_FIELDS)
  detail.attempts = redis.call('LRANGE', key(args.id) .. ':attempts', 0, -1)
  return with_jobs({detail = cjson.encode(detail), waiting_on = awaited_by(args.id)}, {args.id})
end

-- The smallest sorted set that holds every job that a filter matches; never SCAN.
local function narrowest_index(filter)
  for _, field in ipairs({'run', 'dataset', 'status', 'kind'}) do
    if filter[field] then return P .. 'jobs:' .. field .. ':' .. filter[field] end
  end
  return P .. 'jobs'
end

local function matches(id, filter)
  for field, value in pairs(filter) do
    if get(id, field) ~= value then return false end
  end
  return true
end

-- after (id, optional), limit, filter: status, kind, run, dataset (all optional)
-- -> jobs, newest first, has_more; or error 'missing': there is no job `after`.
function commands.list(args)
  local highest = '+inf'
  if args.after then
    local seq = get(args.after, 'seq')
    if not seq then return {error = 'missing'} end
    highest = '(' .. seq
  end
  local index_name, found, offset = narrowest_index(args.filter), {}, 0
  repeat
    local ids = redis.call('ZREVRANGEBYSCORE', index_name, highest, '-inf', 'LIMIT', offset, 200)
    for _, id in ipairs(ids) do
      if #found <= args.limit and matches(id, args.filter) then found[#found + 1] = id end
    end
    offset = offset + 200
  until #ids < 200 or #found > args.limit
  local has_more = #found > args.limit
  if has_more then found[#found] = nil end
  return with_jobs({has_more = has_more}, found)
end

-- names -> jobs: the last job that makes or made each dataset.
function commands.dataset_jobs(args)
  local ids = {}
  for i, name in ipairs(args.names) do
    ids[i] = redis.call('ZREVRANGE', P .. 'makers:' .. name, 0, 0)[1] or ''
  end
  return with_jobs({}, ids)
end

-- after (name, optional), limit -> names, in order, of datasets that some job makes or made.
function commands.dataset_names(args)
  local from = args.after and '(' .. args.after or '-'
  return {names = redis.call('ZRANGEBYLEX', P .. 'datasets', from, '+', 'LIMIT', 0, args.limit)}
end

-- run, start (texts that a spec contains if its training starts from that run) -> id of a job that makes, reads or starts
-- from the run and is not terminal, if there is one.
function commands.run_user(args)
  local user = active_job('run:' .. args.run)
  if user then return {id = user} end
  for _, status in ipairs({'queued', 'running', 'stopping', 'paused'}) do
    for _, id in ipairs(redis.call('ZRANGE', P .. 'jobs:status:' .. status, 0, -1)) do
      local spec = get(id, 'spec') or ''
      for _, text in ipairs(args.start) do
        if string.find(spec, text, 1, true) then return {id = id} end
      end
    end
  end
  return {}
end

-- dataset -> id of a job that makes or reads it and is not terminal, if there is one.
function commands.active_user(args)
  return {id = active_job('dataset:' .. args.dataset)}
end

-- dataset -> spec (JSON) of the job that is making it; absent if none is.
function commands.preparation(args)
  local maker = name_owner('dataset', args.dataset)
  return {spec = maker and get(maker, 'spec') or nil}
end

-- Changes ---------------------------------------------------------------------------------------------------------

local REPLAYED, NEWEST, READY = 2000, 100, 100

-- The entries of the stream of changes after one of them; nil if it is no longer there, or too many follow.
local function entries_after(after)
  local changes = P .. 'changes'
  local is_known = after == '0-0' and redis.call('XLEN', changes) < CHANGES
    or #redis.call('XRANGE', changes, after, after) > 0
  local entries = is_known and redis.call('XRANGE', changes, '(' .. after, '+', 'COUNT', REPLAYED + 1)
  if entries and #entries <= REPLAYED then return entries end
end

-- The newest jobs, those that run, and those that are ready first.
local function current_jobs()
  return {
    redis.call('ZREVRANGE', P .. 'jobs', 0, NEWEST - 1), redis.call('ZRANGE', P .. 'jobs:status:running', 0, -1),
    redis.call('ZRANGE', P .. 'jobs:status:stopping', 0, -1), redis.call('ZRANGE', P .. 'ready', 0, READY - 1)}
end

-- after (id in the stream of changes, optional), with_snapshot, only (ids of jobs, optional)
-- -> last: the newest id of that stream; is_known: whether `after` is still there; transitions since then; queue: queued,
-- running, ready (ids); jobs: those that changed since then, and with `with_snapshot` the `only` or the current ones.
function commands.changes(args)
  local newest = redis.call('XREVRANGE', P .. 'changes', '+', '-', 'COUNT', 1)[1]
  local found = args.after and entries_after(args.after)
  local transitions, ids, seen = {}, {}, {}
  local function add(id)
    if not seen[id] then ids[#ids + 1], seen[id] = id, true end
  end
  for _, entry in ipairs(found or {}) do
    local fields = {id = entry[1]}
    for i = 1, #entry[2], 2 do fields[entry[2][i]] = entry[2][i + 1] end
    if fields.to then transitions[#transitions + 1] = fields end
    add(fields.job)
  end
  if args.with_snapshot then
    for _, group in ipairs(args.only and {args.only} or current_jobs()) do
      for _, id in ipairs(group) do add(id) end
    end
  end
  local queue = {queued = redis.call('ZCARD', P .. 'jobs:status:queued'), ready = redis.call('ZRANGE', P .. 'ready', 0, READY - 1),
    running = redis.call('ZCARD', P .. 'jobs:status:running') + redis.call('ZCARD', P .. 'jobs:status:stopping')}
  return with_jobs({last = newest and newest[1] or '0-0', is_known = found and true or false, queue = queue,
    transitions = transitions}, ids)
end
