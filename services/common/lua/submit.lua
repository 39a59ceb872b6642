-- Creates a job, once per idempotency key.
-- KEYS: job hash, events stream, idempotency key ('' if none), jobs index, queue
-- ARGV: job id, member, record fields (JSON object), event data (JSON), body digest, time to live of the key (s), state index
-- Answers {'created', id}, {'same', id of the earlier job} or {'mismatch', id of the earlier job}.
if KEYS[3] ~= '' then
  local earlier = redis.call('GET', KEYS[3])
  if earlier then
    local seen = cjson.decode(earlier)
    if seen.digest == ARGV[5] then return {'same', seen.id} end
    return {'mismatch', seen.id}
  end
  redis.call('SET', KEYS[3], cjson.encode({id = ARGV[1], digest = ARGV[5]}), 'EX', ARGV[6])
end
local time = redis.call('TIME')
local now = time[1] .. '.' .. string.format('%06d', time[2])
for field, value in pairs(cjson.decode(ARGV[3])) do redis.call('HSET', KEYS[1], field, value) end
redis.call('HSET', KEYS[1], 'state', 'queued', 'attempt', 0, 'failures', 0, 'created_at', now, 'updated_at', now, 'last_event', 1)
redis.call('XADD', KEYS[2], '1-0', 'type', 'job.submitted', 'at', now, 'attempt', 0, 'data', ARGV[4])
redis.call('ZADD', KEYS[4], 0, ARGV[1])
redis.call('ZADD', ARGV[7], 0, ARGV[1])
redis.call('ZADD', KEYS[5], now, ARGV[2])
return {'created', ARGV[1]}
