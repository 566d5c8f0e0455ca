-- Commands that only read. After lib.lua. `jobs` stands for what `with_jobs` adds. cjson writes an empty list as {}.

-- ids -> jobs.
function commands.get_many(args)
  return with_jobs({}, args.ids)
end

-- id -> jobs (one), detail (JSON): DETAIL_FIELDS and the attempts that ended.
function commands.get_detail(args)
  local detail = fields_of(args.id, DETAIL_FIELDS)
  detail.attempts = redis.call('LRANGE', key(args.id) .. ':attempts', 0, -1)
  return with_jobs({detail = cjson.encode(detail)}, {args.id})
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
