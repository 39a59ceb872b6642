-- Unpublishes an artifact, so that its stage runs again, or a checkpoint.
-- KEYS: artifacts hash or list of checkpoints, hash of the job that invalidates it ('' = the gateway, on deletion)
-- ARGV: artifact id ('' = a checkpoint), entry to unpublish ('' = any), attempt of the job,
--       active states (JSON {state: true})
-- Returns {'ok', state}, {'missing'}, {'state', state} or {'stale', attempt}.
local state = ''
if KEYS[2] ~= '' then
  state = redis.call('HGET', KEYS[2], 'state')
  if not state then return {'missing'} end
  local attempt = redis.call('HGET', KEYS[2], 'attempt')
  if attempt ~= ARGV[3] then return {'stale', attempt} end
  if not cjson.decode(ARGV[4])[state] then return {'state', state} end
end
if ARGV[1] == '' then
  redis.call('LREM', KEYS[1], 0, ARGV[2])
elseif ARGV[2] == '' or redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then
  redis.call('HDEL', KEYS[1], ARGV[1])
end
return {'ok', state}
