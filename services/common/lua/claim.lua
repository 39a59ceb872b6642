-- Assigns one job to a coordinator: a job whose lease has expired (same attempt), or else the oldest of the due jobs
-- with the highest priority (next attempt).
-- KEYS: queue (of priority 0; the keys of other priorities end in the priority), leases, feed
-- ARGV: owner, lease (s), prefix of all keys, highest priority (the lowest is its negative), maximum length of the feed,
--       'any', 'leased' (only a job whose lease has expired) or 'stopping' (such a job that is pausing or cancelling)
-- Returns the member 'tenant/job id', or nil if there is nothing to do.
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
local stamp = string.format('%.6f', now)
local lease = string.format('%.6f', now + tonumber(ARGV[2]))

local function keys_of(member)
  local tenant, id = string.match(member, '^([^/]+)/(.+)$')
  local base = ARGV[3] .. ':{' .. tenant .. '}'
  return base .. ':job:' .. id, base .. ':events:' .. id, base .. ':state:', id
end

-- Returns whether a member has a valid record. Removes a member without a valid record: it would stop every claim.
local function exists(index, member)
  local job = keys_of(member)
  if redis.call('TYPE', job).ok == 'hash' and string.find(redis.call('HGET', job, 'attempt') or '', '^%d+$') then return true end
  redis.call('ZREM', index, member)
  return false
end

local function record(member, job, events, type, data)
  local seq = redis.call('HINCRBY', job, 'last_event', 1)
  redis.call('XADD', events, seq .. '-0', 'type', type, 'at', stamp, 'attempt', redis.call('HGET', job, 'attempt'), 'data', cjson.encode(data))
  redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[5], '*', 'job', member, 'seq', seq, 'type', type)
end

-- Returns whether the newest event of a job is an adoption. Then a new adoption adds no event: a record that no
-- coordinator can read is adopted whenever its lease expires.
local function is_adopted(events)
  local newest = redis.call('XREVRANGE', events, '+', '-', 'COUNT', 1)[1]
  return newest and newest[2][2] == 'job.adopted' -- the fields are type, at, attempt, data
end

-- Returns the member of a queue that was submitted first among those without a delay. If the clock went back after
-- the job was queued, its delay is over.
local function first_due(queue)
  local from, members = 0, nil
  repeat
    members = redis.call('ZRANGE', queue, from, from + 99)
    for _, member in ipairs(members) do
      if exists(queue, member) then
        local times = redis.call('HMGET', (keys_of(member)), 'due_at', 'updated_at')
        if now >= (tonumber(times[1]) or 0) or now < (tonumber(times[2]) or 0) then return member end
      end
    end
    from = from + 100
  until #members < 100
end

local leases = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', stamp)
-- A lease that ends this late was set before the clock went back. An owner that is alive renews it.
for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], lease + 600, '+inf')) do
  table.insert(leases, member)
end
for _, expired in ipairs(leases) do
  local job, events = keys_of(expired)
  if exists(KEYS[2], expired) and (ARGV[6] ~= 'stopping' or redis.call('HGET', job, 'state') ~= 'running') then
    redis.call('HSET', job, 'owner', ARGV[1], 'lease_until', lease, 'updated_at', stamp)
    redis.call('ZADD', KEYS[2], lease, expired)
    if not is_adopted(events) then record(expired, job, events, 'job.adopted', {owner = ARGV[1]}) end
    return expired
  end
end
if ARGV[6] ~= 'any' then return false end

for priority = tonumber(ARGV[4]), -tonumber(ARGV[4]), -1 do
  local queue = priority == 0 and KEYS[1] or KEYS[1] .. ':' .. priority
  local due = first_due(queue)
  if due then
    local job, events, state, id = keys_of(due)
    -- A full Redis rejects this write. It must come before the removals, which a full Redis accepts and never undoes.
    redis.call('HINCRBY', job, 'attempt', 1)
    redis.call('ZREM', queue, due)
    redis.call('HDEL', job, 'submissions', 'beats', 'draining', 'due_at')
    redis.call('HSETNX', job, 'started_at', stamp)
    redis.call('HSET', job, 'state', 'running', 'owner', ARGV[1], 'lease_until', lease, 'updated_at', stamp, 'running_since', stamp)
    redis.call('ZREM', state .. 'queued', id)
    redis.call('ZADD', state .. 'running', 0, id)
    redis.call('ZADD', KEYS[2], lease, due)
    record(due, job, events, 'job.claimed', {owner = ARGV[1]})
    return due
  end
end
return false
