-- The short way to a slot: when there is room and nobody waits. It returns 1, or 0 to ask limiter.lua, without any
-- change.
--
-- KEYS: held, see limiter.lua. ARGV: "m:member", epoch, limit, background limit, id, weight, priority, tenant, and the
-- ids to be released.

local state = redis.call('HMGET', KEYS[1], 'e', 'u', 'b', 'q', 'r', ARGV[1], unpack(ARGV, 9))
if state[1] ~= ARGV[2] or not state[6] or state[4] ~= '0' or state[5] ~= '0' then return 0 end
local used, background = 0, 0 -- how much they change
for i = 9, #ARGV do
  local lease = state[i - 2]
  if lease then
    local weight, priority = string.match(lease, '^(%d+) (%d)')
    used = used - weight
    if priority == '0' then background = background - weight end
  end
end
used = used + ARGV[6]
if state[2] + used > tonumber(ARGV[3]) then return 0 end
if ARGV[7] == '0' then
  local before, most = state[3] + background, tonumber(ARGV[4])
  if most >= 0 and before > 0 and before + ARGV[6] > most then return 0 end
  background = background + ARGV[6]
end
if #ARGV > 8 then redis.call('HDEL', KEYS[1], unpack(ARGV, 9)) end
redis.call('HSET', KEYS[1], ARGV[5], ARGV[6] .. ' ' .. ARGV[7] .. ' 0 ' .. ARGV[8])
if used ~= 0 then redis.call('HINCRBY', KEYS[1], 'u', used) end
if background ~= 0 then redis.call('HINCRBY', KEYS[1], 'b', background) end
return 1
