-- Extends the lease of a job that the owner holds.
-- KEYS: job hash, leases. ARGV: owner, lease (s), member. Returns 1, or 0 if the owner does not hold the job.
if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[1] then return 0 end
local time = redis.call('TIME')
local lease = string.format('%.6f', tonumber(time[1]) + tonumber(time[2]) / 1e6 + tonumber(ARGV[2]))
redis.call('HSET', KEYS[1], 'lease_until', lease)
redis.call('ZADD', KEYS[2], lease, ARGV[3])
return 1
