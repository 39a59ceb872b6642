-- Records a report on an attempt by a worker or coordinator: progress, metric points, events, log lines, artifacts.
-- KEYS: job hash, events stream, metrics stream, logs stream, artifacts hash, checkpoints of the artifact (or ''),
--       artifacts of the job, jobs whose streams move to the storage
-- ARGV: attempt, active states (JSON {state: true}), progress (JSON or ''), metrics (JSON list of JSON texts),
--       events (JSON list of [type, JSON text]), log lines (JSON list), artifact id ('' = none), entry to publish,
--       maximum number of lines and points, submissions by group (JSON or ''; null deletes one, other groups stay),
--       node to exclude from the cache ('' = none), group and its beat (JSON [group, beat] or ''; beat.report is the id
--       of this report, or ''),
--       '1' if the workers must write a checkpoint and end, else '', member, length of a stream above which it moves
-- Returns {'ok', state}, {'missing'}, {'state', state} or {'stale', attempt}. A published artifact never changes.
local state = redis.call('HGET', KEYS[1], 'state')
if not state then return {'missing'} end
local attempt = redis.call('HGET', KEYS[1], 'attempt')
if attempt ~= ARGV[1] then return {'stale', attempt} end
if not cjson.decode(ARGV[2])[state] then return {'state', state} end

local time = redis.call('TIME')
local stamp = string.format('%.6f', tonumber(time[1]) + tonumber(time[2]) / 1e6)
redis.call('HSET', KEYS[1], 'updated_at', stamp)
if ARGV[3] ~= '' then
  local progress, last = ARGV[3], cjson.decode(redis.call('HGET', KEYS[1], 'progress') or '{}')
  -- Each group of workers computes the share from its own nodes. Only here are the shares of all groups known, so the
  -- share never falls within an attempt. `move` removes the time left of an attempt that has ended.
  local risen = cjson.decode(progress)
  if last.eta_seconds and last.share > risen.share then
    risen.share = last.share
    progress = cjson.encode(risen)
  end
  redis.call('HSET', KEYS[1], 'progress', progress)
end
if ARGV[10] ~= '' then
  local submissions = cjson.decode(redis.call('HGET', KEYS[1], 'submissions') or '{}')
  for group, submission in pairs(cjson.decode(ARGV[10])) do
    submissions[group] = submission ~= cjson.null and submission or nil
  end
  redis.call('HSET', KEYS[1], 'submissions', cjson.encode(submissions))
end
if ARGV[13] ~= '' then redis.call('HSET', KEYS[1], 'draining', ARGV[13]) end
local points, lines, events = cjson.decode(ARGV[4]), cjson.decode(ARGV[6]), cjson.decode(ARGV[5])
if ARGV[12] ~= '' then
  local group, beat = unpack(cjson.decode(ARGV[12]))
  local beats = cjson.decode(redis.call('HGET', KEYS[1], 'beats') or '{}')
  beat.at = tonumber(stamp)
  -- The sender repeats a report whose answer was lost. It is the group's last report.
  if beats[group] and beat.report and beat.report ~= '' and beats[group].report == beat.report then
    points, lines, events = {}, {}, {}
  end
  -- A late report that the submission waits must not replace a report of its workers.
  if beat.phase ~= 'waiting' or not beats[group] or beats[group].phase == 'waiting' then
    beats[group] = beat
    redis.call('HSET', KEYS[1], 'beats', cjson.encode(beats))
  end
end
for _, point in ipairs(points) do
  redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[9], '*', 'attempt', attempt, 'at', stamp, 'data', point)
end
for _, line in ipairs(lines) do
  redis.call('XADD', KEYS[4], 'MAXLEN', '~', ARGV[9], '*', 'attempt', attempt, 'at', stamp, 'line', line)
end
-- Mark the streams to move: a stage has ended, or a stream is long.
if (ARGV[7] ~= '' and KEYS[6] == '') or math.max(redis.call('XLEN', KEYS[3]), redis.call('XLEN', KEYS[4])) > tonumber(ARGV[15]) then
  redis.call('SADD', KEYS[8], ARGV[14])
end
if ARGV[11] ~= '' then
  local excluded = cjson.decode(redis.call('HGET', KEYS[1], 'excluded_from_cache') or '[]')
  table.insert(excluded, ARGV[11])
  redis.call('HSET', KEYS[1], 'excluded_from_cache', cjson.encode(excluded))
end
if ARGV[7] ~= '' then
  local new, published = redis.call('SADD', KEYS[7], ARGV[7]) == 1, nil
  if KEYS[6] ~= '' then
    published = redis.call('LREM', KEYS[6], 0, ARGV[8]) > 0 -- by an earlier try, whose answer was lost
    redis.call('RPUSH', KEYS[6], ARGV[8])
  else
    published = redis.call('HSETNX', KEYS[5], ARGV[7], ARGV[8]) == 0
  end
  if published then return {'ok', state} end
  -- The job has advanced, so earlier losses no longer count. An artifact that it computed again is no advance.
  if new or KEYS[6] ~= '' then redis.call('HDEL', KEYS[1], 'losses', 'hub_losses') end
end
-- Returns whether the attempt already waits for an equal reason, or has already reported an equal error or submission,
-- in an earlier try, whose answer was lost.
local function is_repeated(type, data)
  if type == 'job.waiting' then return redis.call('HGET', KEYS[1], 'waiting') == data end
  local once = type == 'attempt.error' or type == 'workers.submitted'
  local last = once and redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 50) or {}
  for _, event in ipairs(last) do
    local fields = event[2] -- in the order of XADD below
    if fields[2] == type and fields[6] == attempt and fields[8] == data then return true end
  end
  return false
end
local waiting = nil
for _, event in ipairs(events) do
  if event[1] == 'job.waiting' then waiting = event[2] end
  if not is_repeated(event[1], event[2]) then
    local seq = redis.call('HINCRBY', KEYS[1], 'last_event', 1)
    redis.call('XADD', KEYS[2], seq .. '-0', 'type', event[1], 'at', stamp, 'attempt', attempt, 'data', event[2])
  end
end
-- Any other event and each new progress show that the attempt no longer waits.
if waiting then redis.call('HSET', KEYS[1], 'waiting', waiting)
elseif ARGV[3] ~= '' or #events > 0 then redis.call('HDEL', KEYS[1], 'waiting') end
return {'ok', state}
