-- ARGV GPUs, bytes of memory -> {}, or what the known workers have if none could run that (see room.lua)
return shortage(tonumber(ARGV[1]), tonumber(ARGV[2])) or {}
