-- Forgets a data set that no job needs any more, and notes what is to be removed after it. A job is accepted only while
-- the record is there, so none slips in.
-- KEYS: record, ids of all data sets, ids of its name, jobs on it, removals
-- ARGV: data set id, states that are over (JSON {state: true}), prefix of job hashes, member, what is to be removed (JSON)
-- Answers {'ok'}, or {'busy', job, its state}.
for _, job in ipairs(redis.call('ZRANGE', KEYS[4], 0, -1)) do
  local state = redis.call('HGET', ARGV[3] .. job, 'state')
  if state and not cjson.decode(ARGV[2])[state] then return {'busy', job, state} end
end
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('HSET', KEYS[5], ARGV[4], ARGV[5])
return {'ok'}
