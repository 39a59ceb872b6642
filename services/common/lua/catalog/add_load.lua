-- Records a load of a corpus that has no open load.
-- KEYS: load, all corpora, loads of the corpus, open loads. ARGV: load (JSON), its id, corpus, tenant and slash.
-- Returns {'ok'}, or {'open', id of an open load of this corpus}.
for _, id in ipairs(redis.call('ZRANGE', KEYS[3], 0, -1)) do
  if redis.call('SISMEMBER', KEYS[4], ARGV[4] .. id) == 1 then return {'open', id} end
end
redis.call('SET', KEYS[1], ARGV[1])
redis.call('ZADD', KEYS[2], 0, ARGV[3])
redis.call('ZADD', KEYS[3], 0, ARGV[2])
redis.call('SADD', KEYS[4], ARGV[4] .. ARGV[2])
return {'ok'}
