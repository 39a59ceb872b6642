-- Deletes the records of a corpus without an open load, or of one version.
-- KEYS: corpus hash, all corpora, loads of the corpus, open loads. ARGV: version ('' = the corpus with all versions),
-- corpus, tenant and slash, prefix of load records. Returns {'ok'}, or {'open', id of an open load of this corpus}.
local ids = redis.call('ZRANGE', KEYS[3], 0, -1)
for _, id in ipairs(ids) do
  if redis.call('SISMEMBER', KEYS[4], ARGV[3] .. id) == 1 then return {'open', id} end
end
if ARGV[1] ~= '' then redis.call('HDEL', KEYS[1], ARGV[1]) return {'ok'} end
for _, id in ipairs(ids) do redis.call('DEL', ARGV[4] .. id) end
redis.call('DEL', KEYS[1], KEYS[3])
redis.call('ZREM', KEYS[2], ARGV[2])
return {'ok'}
