-- ARGV id -> 1 if there was a doomed job of that id. Nothing of it stays.
local id = ARGV[1]
if not get(id, 'doomed') then return 0 end
strike(id)
local idempotency = P .. 'key:' .. (get(id, 'key') or '')
if redis.call('HGET', idempotency, 'job') == id then redis.call('DEL', idempotency) end
changed(id)
redis.call('DEL', key(id), key(id) .. ':history', key(id) .. ':attempts', key(id) .. ':events', key(id) .. ':dependents')
return 1
