-- ARGV kind -> what the processes of that kind which are there have announced (JSON each), by id
local ids = redis.call('SMEMBERS', P .. ARGV[1])
table.sort(ids)
local found = {}
for _, id in ipairs(ids) do
  local facts = redis.call('GET', P .. ARGV[1] .. ':' .. id)
  if facts then found[#found + 1] = facts else redis.call('SREM', P .. ARGV[1], id) end
end
return found
