-- Unpublishes an artifact, so that its stage runs again.
-- KEYS: artifacts hash
-- ARGV: artifact id, reference (JSON) that must still be in force ('' = any)
if ARGV[2] == '' or redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then redis.call('HDEL', KEYS[1], ARGV[1]) end
