-- ARGV id -> {view, outlook, the fields of DETAIL and the attempts that have ended, as one text}
local id = ARGV[1]
local more = cjson.encode({redis.call('HMGET', key(id), unpack(DETAIL)), redis.call('LRANGE', key(id) .. ':attempts', 0, -1)})
return {view(id), outlook(), more}
