-- ARGV id, status, created_at, then fields and values of the record -> 1, or 0 if the id is known or its name kept
local id, status, created_at = ARGV[1], ARGV[2], ARGV[3]
if get(id, 'id') then return 0 end
for i = 4, #ARGV, 2 do set(id, ARGV[i], ARGV[i + 1]) end
if not TERMINAL[status] and not keep_name(id) then
  redis.call('DEL', key(id))
  return 0
end
local seq = redis.call('INCR', P .. 'seq')
set(id, 'id', id, 'seq', seq, 'status', status, 'created_at', created_at, 'revision', 1)
enlist(id)
redis.call('ZADD', P .. 'jobs:status:' .. status, seq, id)
for awaited in words(get(id, 'waiting_for')) do redis.call('SADD', key(awaited) .. ':dependents', id) end
redis.call('RPUSH', key(id) .. ':history', cjson.encode({time = now(), to = status, reason = 'restored from disk'}))
changed(id)
return 1
