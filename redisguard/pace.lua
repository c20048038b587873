-- A shared rate limit: two token buckets per model, of requests and tokens. A reservation takes what it needs at once,
-- if need be from the future, and returns how long to wait for it.
--
-- KEYS: buckets (hash: r requests, t tokens, ra and ta when they were computed), members (zset: process -> when it was last
-- seen). ARGV: process, requests per minute, tokens per minute (0: no limit), burst as a fraction of a minute's amount,
-- requests and tokens to be taken (negative: given back), longest wait in milliseconds.
-- It returns the wait in milliseconds, or its negative if it is too long and nothing was taken, and the processes seen
-- in the last minute.

local buckets, members = KEYS[1], KEYS[2]
local burst, longest = tonumber(ARGV[4]), tonumber(ARGV[7])
local time = redis.call('TIME')
local now = time[1] * 1000 + time[2] / 1000
local state = redis.call('HMGET', buckets, 'r', 't', 'ra', 'ta')
local wait, changes = 0, {}
for i = 1, 2 do
  local rate, take = tonumber(ARGV[i + 1]) / 60000, tonumber(ARGV[i + 4])
  if rate > 0 then
    local size = math.max(rate * 60000 * burst, 1)
    local age = math.max(now - tonumber(state[i + 2] or now), 0)
    local level = math.min(tonumber(state[i] or size) + age * rate, size)
    if take > 0 then wait = math.max(wait, (math.min(take, size) - level) / rate) end
    local name = i == 1 and 'r' or 't' -- a process with one limit leaves the other as it is
    for _, v in ipairs({name, string.format('%.6f', math.min(level - take, size)), name .. 'a', string.format('%.3f', now)}) do
      table.insert(changes, v)
    end
  end
end
wait = math.ceil(wait - 0.000001)
redis.call('ZADD', members, now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', members, '-inf', now - 60000)
redis.call('EXPIRE', members, 120)
local count = redis.call('ZCARD', members)
if wait > longest then return {-wait, count} end
redis.call('HSET', buckets, unpack(changes))
redis.call('PEXPIRE', buckets, 120000 + math.max(wait, 0))
return {wait, count}
