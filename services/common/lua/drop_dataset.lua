-- Deletes the record of a dataset that no unfinished job needs, and records what remains to be deleted. A job is
-- accepted only while the record exists, so no job can start to need the dataset during this step.
-- KEYS: record, ids of all datasets, ids of its name, jobs on it, removals, then the jobs of each unfinished state
-- ARGV: dataset id, member, what remains to be deleted (JSON), then the unfinished states
-- Returns {'ok'}, or {'busy', job, its state}.
for index = 6, #KEYS do
  local few, many = KEYS[4], KEYS[index]
  if redis.call('ZCARD', few) > redis.call('ZCARD', many) then few, many = many, few end
  for _, job in ipairs(redis.call('ZRANGE', few, 0, -1)) do
    if redis.call('ZSCORE', many, job) then return {'busy', job, ARGV[index - 2]} end
  end
end
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('HSET', KEYS[5], ARGV[2], ARGV[3])
return {'ok'}
