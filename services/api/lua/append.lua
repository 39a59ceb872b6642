-- Records a part of an upload, and moves the offset of the upload to the end of the part.
-- KEYS: record of the upload, list of its parts.
-- ARGV: first byte of the part, length in bytes, file name of the part, seconds until both keys expire.
-- Returns {'ok', new offset}, {'missing', ''} if the upload does not exist, or {'offset', offset} if the part does not
-- begin at the offset of the upload.
local offset = redis.call('HGET', KEYS[1], 'offset')
if not offset then return {'missing', ''} end
if offset ~= ARGV[1] then return {'offset', offset} end
local now = redis.call('HINCRBY', KEYS[1], 'offset', ARGV[2])
redis.call('RPUSH', KEYS[2], ARGV[3])
redis.call('EXPIRE', KEYS[1], ARGV[4])
redis.call('EXPIRE', KEYS[2], ARGV[4])
return {'ok', tostring(now)}
