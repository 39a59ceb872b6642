-- Deletes a finished job with its log, and records what remains to be deleted; all or nothing.
-- KEYS: job hash, events, metrics, logs, artifacts of the job, removals, names, mark of the deletion, aliases,
--       then the indexes of the job
-- ARGV: job id, final states (JSON {state: true}), member, what remains to be deleted (JSON), lifetime of the mark (s)
-- Returns {'ok', its state}, {'missing'}, {'state', current} or {'alias', an alias of the job}.
local state = redis.call('HGET', KEYS[1], 'state')
if not state then return {'missing'} end
if not cjson.decode(ARGV[2])[state] then return {'state', state} end
local aliases = redis.call('HGETALL', KEYS[9])
for index = 1, #aliases, 2 do
  if aliases[index + 1] == ARGV[1] then return {'alias', aliases[index]} end
end
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5])
redis.call('HDEL', KEYS[7], ARGV[1])
redis.call('SET', KEYS[8], '', 'EX', ARGV[5])
for index = 10, #KEYS do redis.call('ZREM', KEYS[index], ARGV[1]) end
redis.call('HSET', KEYS[6], ARGV[3], ARGV[4])
return {'ok', state}
