-- Applies one verb to a job: checks state, owner, and attempt, then changes record, events, and indexes; all or nothing.
-- KEYS: job hash, events stream, queue, leases, state index prefix, feed, jobs whose streams move to the storage
-- ARGV: job id, member, allowed moves (JSON {from: to}), owner ('' = any), attempt ('' = any),
--       changes (JSON {field: string}), event type, event data (JSON), delay before the next claim (s), maximum length of the feed,
--       most seconds of running time to count
-- Returns {'ok', new state} or {'missing'} / {'state', current} / {'stale', current attempt, current owner}.
local state = redis.call('HGET', KEYS[1], 'state')
if not state then return {'missing'} end
if ARGV[5] ~= '' and redis.call('HGET', KEYS[1], 'attempt') ~= ARGV[5] then
  return {'stale', redis.call('HGET', KEYS[1], 'attempt'), redis.call('HGET', KEYS[1], 'owner') or ''}
end
if ARGV[4] ~= '' and redis.call('HGET', KEYS[1], 'owner') ~= ARGV[4] then
  return {'stale', redis.call('HGET', KEYS[1], 'attempt'), redis.call('HGET', KEYS[1], 'owner') or ''}
end
local target = cjson.decode(ARGV[3])[state]
if not target then return {'state', state} end

local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
local stamp = string.format('%.6f', now)
for field, value in pairs(cjson.decode(ARGV[6])) do
  if value == cjson.null then redis.call('HDEL', KEYS[1], field) else redis.call('HSET', KEYS[1], field, value) end
end
redis.call('HSET', KEYS[1], 'state', target, 'updated_at', stamp)
if target ~= state then
  local priority = redis.call('HGET', KEYS[1], 'priority') or '0'
  local queue = priority == '0' and KEYS[3] or KEYS[3] .. ':' .. priority
  redis.call('ZREM', KEYS[5] .. state, ARGV[1])
  redis.call('ZADD', KEYS[5] .. target, 0, ARGV[1])
  redis.call('ZREM', queue, ARGV[2])
  if target == 'queued' then
    -- A job that was submitted earlier starts earlier, whether or not it ran before.
    redis.call('ZADD', queue, redis.call('HGET', KEYS[1], 'created_at') or stamp, ARGV[2])
    if tonumber(ARGV[9]) > 0 then
      redis.call('HSET', KEYS[1], 'due_at', string.format('%.6f', now + tonumber(ARGV[9])))
    else
      redis.call('HDEL', KEYS[1], 'due_at')
    end
  end
  if target ~= 'running' and target ~= 'pausing' and target ~= 'cancelling' then
    redis.call('ZREM', KEYS[4], ARGV[2])
    local since = redis.call('HGET', KEYS[1], 'running_since')
    if since then
      local ran = tonumber(redis.call('HGET', KEYS[1], 'ran_seconds') or '0')
      ran = ran + math.max(0, math.min(now - tonumber(since), tonumber(ARGV[11])))
      redis.call('HSET', KEYS[1], 'ran_seconds', string.format('%.6f', ran))
    end
    redis.call('HDEL', KEYS[1], 'owner', 'lease_until', 'running_since', 'waiting')
    local progress = redis.call('HGET', KEYS[1], 'progress')
    if progress then
      -- The rate and the time left belong to the attempt that has ended.
      progress = cjson.decode(progress)
      progress.rate, progress.eta_seconds, progress.stage_eta_seconds = nil, nil, nil
      redis.call('HSET', KEYS[1], 'progress', cjson.encode(progress))
    end
  end
  if target == 'succeeded' or target == 'failed' or target == 'cancelled' then
    redis.call('HSET', KEYS[1], 'finished_at', stamp)
    redis.call('SADD', KEYS[7], ARGV[2])
  end
end
local function record(type, data)
  local seq = redis.call('HINCRBY', KEYS[1], 'last_event', 1)
  redis.call('XADD', KEYS[2], seq .. '-0', 'type', type, 'at', stamp, 'attempt', redis.call('HGET', KEYS[1], 'attempt'), 'data', data)
  redis.call('XADD', KEYS[6], 'MAXLEN', '~', ARGV[10], '*', 'job', ARGV[2], 'seq', seq, 'type', type)
end
record(ARGV[7], ARGV[8])
-- A job that does not run is paused or cancelled at once, but has both events: the request and its completion.
local done = 'job.' .. target
if (target == 'paused' or target == 'cancelled') and ARGV[7] ~= done then record(done, '{}') end
return {'ok', target}
