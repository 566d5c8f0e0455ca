-- ARGV id, revision that must be the present one or '', priority, metadata (JSON)
-- -> {'ok', '', view, outlook}, {'missing'} or {'revised', present revision}. What is so already needs no revision.
local id, priority, metadata = ARGV[1], ARGV[3], ARGV[4]
if not get(id, 'id') then return {'missing', ''} end
if get(id, 'priority') ~= priority or get(id, 'metadata') ~= metadata then
  local revision = get(id, 'revision')
  if ARGV[2] ~= '' and ARGV[2] ~= revision then return {'revised', revision} end
  set(id, 'priority', priority, 'metadata', metadata)
  if redis.call('ZSCORE', P .. 'ready', id) then line_up(id) end
  revised(id)
end
return {'ok', '', view(id), outlook()}
