-- Compresses the record of an ended job, and removes its artifacts and checkpoints from the lists that jobs share.
-- KEYS: job hash, artifacts of the job, ended jobs, published artifacts
-- ARGV: member, packed fields ('' = none), names of these fields (JSON list), artifacts of the record (JSON list of
--       [id, entry]), its checkpoints (JSON list of [artifact, reference]), prefix of lists of checkpoints
-- A record without `spec` is compressed already, maybe by another coordinator after this one has read it.
if redis.call('HEXISTS', KEYS[1], 'spec') == 1 and ARGV[2] ~= '' then
  redis.call('HSET', KEYS[1], 'packed', ARGV[2])
  for _, field in ipairs(cjson.decode(ARGV[3])) do redis.call('HDEL', KEYS[1], field) end
  for _, entry in ipairs(cjson.decode(ARGV[4])) do
    redis.call('SREM', KEYS[2], entry[1])
    if redis.call('HGET', KEYS[4], entry[1]) == entry[2] then redis.call('HDEL', KEYS[4], entry[1]) end
  end
  for _, entry in ipairs(cjson.decode(ARGV[5])) do redis.call('LREM', ARGV[6] .. entry[1], 0, entry[2]) end
end
redis.call('ZREM', KEYS[3], ARGV[1])
return 1
