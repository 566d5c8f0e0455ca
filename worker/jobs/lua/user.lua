-- ARGV dataset -> a job that needs or makes it and is not over, or ''
return user_of('dataset:' .. ARGV[1]) or ''
