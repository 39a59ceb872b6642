-- Saves the progress of a load, and saves or deletes its version.
-- KEYS: lease, load, corpus hash, open loads. ARGV: owner, load (JSON), version ('' = none), version record (JSON;
-- '' = delete it), member of the open loads if the load has ended ('' = it has not), state of the load. Returns 1,
-- or 0 if the owner does not hold the lease, or -1 if the load is cancelling and the new state is not `cancelled`.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
local current = redis.call('GET', KEYS[2])
if current and cjson.decode(current).state == 'cancelling' and ARGV[6] ~= 'cancelled' then return -1 end
redis.call('SET', KEYS[2], ARGV[2])
if ARGV[3] ~= '' and ARGV[4] ~= '' then redis.call('HSET', KEYS[3], ARGV[3], ARGV[4]) end
if ARGV[3] ~= '' and ARGV[4] == '' then redis.call('HDEL', KEYS[3], ARGV[3]) end
if ARGV[5] ~= '' then redis.call('SREM', KEYS[4], ARGV[5]) redis.call('DEL', KEYS[1]) end
return 1
