-- Deletes the record of a dataset that no unfinished job needs, and records what remains to be deleted. A job is
-- accepted only while the record exists, so no job can start to need the dataset during this step.
-- KEYS: record, ids of all datasets, ids of its name, jobs on it, removals
-- ARGV: dataset id, final states (JSON {state: true}), prefix of job hashes, member, what remains to be deleted (JSON)
-- Returns {'ok'}, or {'busy', job, its state}.
for _, job in ipairs(redis.call('ZRANGE', KEYS[4], 0, -1)) do
  local state = redis.call('HGET', ARGV[3] .. job, 'state')
  if state and not cjson.decode(ARGV[2])[state] then return {'busy', job, state} end
end
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('HSET', KEYS[5], ARGV[4], ARGV[5])
return {'ok'}
