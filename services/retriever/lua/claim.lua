-- Claims the entry of a load or selection for a run.
-- KEYS: entry. ARGV: new run, run that it replaces ('' = none), prefix, status, seconds. Returns 1, or 0 if another
-- run holds the entry.
if (redis.call('HGET', KEYS[1], 'run') or '') ~= ARGV[2] then return 0 end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'run', ARGV[1], 'prefix', ARGV[3], 'status', ARGV[4])
redis.call('EXPIRE', KEYS[1], ARGV[5])
return 1
