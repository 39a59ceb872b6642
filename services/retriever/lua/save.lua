-- Saves the status of a run, or deletes its entry.
-- KEYS: entry. ARGV: run, prefix, status ('' = delete the entry), seconds. Returns 1, or 0 if the run must stop.
local run = redis.call('HGET', KEYS[1], 'run')
if run and run ~= ARGV[1] then return 0 end
if ARGV[3] == '' then redis.call('DEL', KEYS[1]) return 1 end
redis.call('HSET', KEYS[1], 'run', ARGV[1], 'prefix', ARGV[2], 'status', ARGV[3])
redis.call('EXPIRE', KEYS[1], ARGV[4])
return redis.call('HEXISTS', KEYS[1], 'stop') == 0 and 1 or 0
