-- Extends the lease of a job that the owner holds, and counts its running time since the last renewal.
-- KEYS: job hash, leases. ARGV: owner, lease (s), member, most seconds to count. Returns 1, or 0 if the owner does not hold the job.
if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[1] then return 0 end
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
local lease = string.format('%.6f', now + tonumber(ARGV[2]))
-- A jump of the clock must not count as running time: the job could exceed its max_runtime_seconds.
local since = tonumber(redis.call('HGET', KEYS[1], 'running_since')) or now
local ran = tonumber(redis.call('HGET', KEYS[1], 'ran_seconds')) or 0
ran = ran + math.max(0, math.min(now - since, tonumber(ARGV[4])))
redis.call('HSET', KEYS[1], 'ran_seconds', string.format('%.6f', ran), 'running_since', string.format('%.6f', now))
redis.call('HSET', KEYS[1], 'lease_until', lease)
redis.call('ZADD', KEYS[2], lease, ARGV[3])
return 1
