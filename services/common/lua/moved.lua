-- Removes the entries of a job's streams that are now in the storage.
-- KEYS: job hash, jobs whose streams move to the storage, ended jobs, then the streams
-- ARGV: member, reference (JSON) of what was in the storage before ('' = nothing), reference of what is there now,
--       final states (JSON {state: true}), then the first id of each stream to keep ('' = all)
-- Returns 1, or 0 if another process moved the streams first or the job was deleted.
local state = redis.call('HGET', KEYS[1], 'state')
if not state then
  redis.call('SREM', KEYS[2], ARGV[1])
  redis.call('ZREM', KEYS[3], ARGV[1])
  return 0
end
if (redis.call('HGET', KEYS[1], 'history') or '') ~= ARGV[2] then return 0 end
if ARGV[3] ~= '' then redis.call('HSET', KEYS[1], 'history', ARGV[3]) end
local left = 0
for index = 4, #KEYS do
  if ARGV[index + 1] ~= '' then redis.call('XTRIM', KEYS[index], 'MINID', ARGV[index + 1]) end
  left = left + redis.call('XLEN', KEYS[index])
end
if not cjson.decode(ARGV[4])[state] then
  redis.call('SREM', KEYS[2], ARGV[1])
elseif left == 0 then
  redis.call('SREM', KEYS[2], ARGV[1])
  redis.call('ZADD', KEYS[3], redis.call('TIME')[1], ARGV[1])
  for index = 4, #KEYS do redis.call('DEL', KEYS[index]) end
end
return 1
