-- Creates a job, once per idempotency key.
-- KEYS: job hash, events stream, idempotency key ('' if none), queue, feed, names, then the indexes
--       of the job
-- ARGV: job id, member, record fields (JSON object), event data (JSON), body digest, time to live of the key (s),
--       priority, prefix of job hashes, maximum length of the feed, keys that must exist (JSON list), name ('' = none)
-- Returns {'created', id}, {'same', id of the earlier job}, {'mismatch', id of the earlier job} or {'gone', key}.
if KEYS[3] ~= '' then
  local earlier = redis.call('GET', KEYS[3])
  if earlier then
    local seen = cjson.decode(earlier)
    -- The key of a deleted job is free again.
    if redis.call('EXISTS', ARGV[8] .. seen.id) == 1 then
      if seen.digest == ARGV[5] then return {'same', seen.id} end
      return {'mismatch', seen.id}
    end
  end
end
for _, needed in ipairs(cjson.decode(ARGV[10])) do
  if redis.call('EXISTS', needed) == 0 then return {'gone', needed} end
end
if KEYS[3] ~= '' then redis.call('SET', KEYS[3], cjson.encode({id = ARGV[1], digest = ARGV[5]}), 'EX', ARGV[6]) end
local time = redis.call('TIME')
local now = time[1] .. '.' .. string.format('%06d', time[2])
for field, value in pairs(cjson.decode(ARGV[3])) do redis.call('HSET', KEYS[1], field, value) end
redis.call('HSET', KEYS[1], 'state', 'queued', 'attempt', 0, 'failures', 0, 'priority', ARGV[7], 'created_at', now, 'updated_at', now, 'last_event', 1)
redis.call('XADD', KEYS[2], '1-0', 'type', 'job.submitted', 'at', now, 'attempt', 0, 'data', ARGV[4])
redis.call('XADD', KEYS[5], 'MAXLEN', '~', ARGV[9], '*', 'job', ARGV[2], 'seq', 1, 'type', 'job.submitted')
if ARGV[11] ~= '' then redis.call('HSET', KEYS[6], ARGV[1], ARGV[11]) end
for index = 7, #KEYS do redis.call('ZADD', KEYS[index], 0, ARGV[1]) end
redis.call('ZADD', ARGV[7] == '0' and KEYS[4] or KEYS[4] .. ':' .. ARGV[7], now, ARGV[2])
return {'created', ARGV[1]}
