-- ARGV free GPUs, '1' if the worker has any -> 1 if a ready job fits, else 0
return first_fit(tonumber(ARGV[1]), ARGV[2] == '1') and 1 or 0
