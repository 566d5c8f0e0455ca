-- ARGV id, epoch, lease_ms, worker (JSON) or '' -> what is wished, or 'fenced'. A late beat renews, if nobody took over.
local id = ARGV[1]
if not holds(id, ARGV[2]) then return 'fenced' end
lease(id, ARGV[3])
if ARGV[4] ~= '' and ARGV[4] ~= get(id, 'worker') then
  set(id, 'worker', ARGV[4])
  changed(id)
end
return get(id, 'desired')
