-- ARGV after (a name or ''), how many -> names of datasets that some job makes or made, in order
local from = ARGV[1] == '' and '-' or '(' .. ARGV[1]
return redis.call('ZRANGEBYLEX', P .. 'datasets', from, '+', 'LIMIT', 0, ARGV[2])
