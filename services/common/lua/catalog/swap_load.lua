-- Replaces the record of a load.
-- KEYS: load. ARGV: load (JSON) as read, as changed. Returns 1, or 0 if it has changed since it was read.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1
