-- Acquires or renews the lease of a load.
-- KEYS: lease. ARGV: owner, seconds. Returns 1 if this owner holds the lease now.
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return 1
