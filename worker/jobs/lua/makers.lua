-- ARGV datasets -> {the last job that makes or made each: its view, or the view of nothing; outlook}
local found = {}
for i, dataset in ipairs(ARGV) do
  found[i] = view(redis.call('ZREVRANGE', P .. 'makers:' .. dataset, 0, 0)[1] or '')
end
return {found, outlook()}
