-- Removes the entries of a job's streams that are now in the storage, and references of an ended job.
-- KEYS: job hash, jobs whose streams move to the storage, ended jobs, artifacts of the job, then the streams
-- ARGV: member, reference (JSON) of what was in the storage before ('' = nothing), reference of what is there now,
--       final states (JSON {state: true}), prefix of lists of checkpoints, packed result without references ('' =
--       unchanged), artifacts and checkpoints whose references are in the storage (JSON lists of id and of
--       [artifact, reference]), then, for each stream, the first id that remains ('' = all)
-- Returns 1, or 0 if another process moved the streams first or the job was deleted.
local state = redis.call('HGET', KEYS[1], 'state')
if not state then
  redis.call('SREM', KEYS[2], ARGV[1])
  redis.call('ZREM', KEYS[3], ARGV[1])
  return 0
end
if (redis.call('HGET', KEYS[1], 'history') or '') ~= ARGV[2] then return 0 end
if ARGV[3] ~= '' then redis.call('HSET', KEYS[1], 'history', ARGV[3]) end
if ARGV[6] ~= '' then
  redis.call('HSET', KEYS[1], 'packed', ARGV[6])
  redis.call('HDEL', KEYS[1], 'result') -- An earlier release did not pack it.
end
for _, artifact in ipairs(cjson.decode(ARGV[7])) do redis.call('SREM', KEYS[4], artifact) end
for _, entry in ipairs(cjson.decode(ARGV[8])) do redis.call('LREM', ARGV[5] .. entry[1], 0, entry[2]) end
local left = 0
for index = 5, #KEYS do
  if ARGV[index + 4] ~= '' then redis.call('XTRIM', KEYS[index], 'MINID', ARGV[index + 4]) end
  left = left + redis.call('XLEN', KEYS[index])
end
if not cjson.decode(ARGV[4])[state] then
  redis.call('SREM', KEYS[2], ARGV[1])
elseif left == 0 then
  redis.call('SREM', KEYS[2], ARGV[1])
  redis.call('ZADD', KEYS[3], redis.call('TIME')[1], ARGV[1])
  for index = 5, #KEYS do redis.call('DEL', KEYS[index]) end
end
return 1
