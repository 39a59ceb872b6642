-- Records a dataset, once per request that creates it from uploads.
-- KEYS: record, all datasets, ids of its name, request ('' if none). ARGV: id, record (JSON), version, time to live of
-- the request (s), prefix of records. Returns the id, or the id of the dataset that an equal request has created.
local earlier = KEYS[4] ~= '' and redis.call('GET', KEYS[4])
if earlier and redis.call('EXISTS', ARGV[5] .. earlier) == 1 then return earlier end
if KEYS[4] ~= '' then redis.call('SET', KEYS[4], ARGV[1], 'EX', ARGV[4]) end
redis.call('SET', KEYS[1], ARGV[2])
redis.call('ZADD', KEYS[2], 0, ARGV[1])
redis.call('ZADD', KEYS[3], ARGV[3], ARGV[1])
return ARGV[1]
