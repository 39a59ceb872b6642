-- Records a load of a corpus that has no open load, once per request that creates it from uploads.
-- KEYS: load, all corpora, loads of the corpus, open loads, request ('' if none). ARGV: load (JSON), its id, corpus,
-- tenant and slash, time to live of the request (s), prefix of loads.
-- Returns {'ok', id}, {'ok', id of the load that an equal request has created}, or {'open', id of an open load of this
-- corpus}.
local earlier = KEYS[5] ~= '' and redis.call('GET', KEYS[5])
if earlier and redis.call('EXISTS', ARGV[6] .. earlier) == 1 then return {'ok', earlier} end
for _, id in ipairs(redis.call('ZRANGE', KEYS[3], 0, -1)) do
  if redis.call('SISMEMBER', KEYS[4], ARGV[4] .. id) == 1 then return {'open', id} end
end
if KEYS[5] ~= '' then redis.call('SET', KEYS[5], ARGV[2], 'EX', ARGV[5]) end
redis.call('SET', KEYS[1], ARGV[1])
redis.call('ZADD', KEYS[2], 0, ARGV[3])
redis.call('ZADD', KEYS[3], 0, ARGV[2])
redis.call('SADD', KEYS[4], ARGV[4] .. ARGV[2])
return {'ok', ARGV[2]}
