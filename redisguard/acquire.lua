-- The short way to a slot: when there is room, nobody waits, and no call has background priority. It returns 1, or 0
-- to ask limiter.lua, without any change.
--
-- KEYS: held, see limiter.lua. ARGV: "m:member", epoch, limit, weight, lease, id, and the ids to be released.

local state = redis.call('HMGET', KEYS[1], 'g', 'u', ARGV[1], unpack(ARGV, 6))
if state[4] then return 1 end -- the client has repeated the command
if state[1] ~= ARGV[2] or not state[3] then return 0 end
local more = ARGV[4]
for i = 5, #ARGV - 2 do
  if state[i] then more = more - string.match(state[i], '^%d+') end
end
if state[2] + more > tonumber(ARGV[3]) then return 0 end
if ARGV[7] then redis.call('HDEL', KEYS[1], unpack(ARGV, 7)) end
redis.call('HSET', KEYS[1], ARGV[6], ARGV[5])
if more ~= 0 then redis.call('HINCRBY', KEYS[1], 'u', more) end
return 1
