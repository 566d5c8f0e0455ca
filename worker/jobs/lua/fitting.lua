-- ARGV worker's name, idle GPUs, how many GPUs in all -> 1 if a ready job fits, else 0
return first_fit(ARGV[1], ARGV[2], tonumber(ARGV[3])) and 1 or 0
