-- ARGV after id or '', how many, status, kind, run, dataset ('': any)
-- -> {'ok', views newest first, outlook, whether there are more} or {'missing'}
-- Walks the narrowest sorted set; never SCAN.
local after, count = ARGV[1], tonumber(ARGV[2])
local wanted = {status = ARGV[3], kind = ARGV[4], run = ARGV[5], dataset = ARGV[6]}
local walked = P .. 'jobs'
for _, field in ipairs({'run', 'dataset', 'status', 'kind'}) do
  if wanted[field] ~= '' then walked = walked .. ':' .. field .. ':' .. wanted[field] break end
end
local highest = '+inf'
if after ~= '' then
  local seq = get(after, 'seq')
  if not seq then return {'missing'} end
  highest = '(' .. seq
end
local function matches(id)
  for field, value in pairs(wanted) do
    if value ~= '' and get(id, field) ~= value then return false end
  end
  return true
end
local found, offset = {}, 0
repeat
  local ids = redis.call('ZREVRANGEBYSCORE', walked, highest, '-inf', 'LIMIT', offset, 200)
  for _, id in ipairs(ids) do
    if #found < count and matches(id) then found[#found + 1] = id end
  end
  offset = offset + 200
until #ids < 200 or #found >= count
local more = #found == count
if more then found[#found] = nil end
return {'ok', views(found), outlook(), more and 1 or 0}
