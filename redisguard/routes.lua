-- Merges what a process has learned about routes, and tells the others.
--
-- KEYS: a hash, route -> "paused_until down_until probe_at tokens tokens_at reopened", in milliseconds of the server's
-- clock. ARGV: tokens of a full retry budget, milliseconds until a token comes back, and for each route its name,
-- pause, down, probe, reopened, tokens, spent. Without routes it returns all that are paused, down, or have spent
-- retries.

local routes, full, refill = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local down_for = 60000 -- an outage that no process confirms is forgotten

local function read(value)
  local state = {}
  for number in string.gmatch(value, '%S+') do table.insert(state, tonumber(number)) end
  if #state ~= 6 then return {0, 0, 0, full, now, 0} end
  state[4] = math.min(full, state[4] + math.max(now - state[5], 0) / refill)
  state[5] = now
  return state
end

local function tell(route, state)
  return {route, math.max(state[1] - now, 0), state[2] > now, math.max(state[3] - now, 0), state[6] == 1, state[4]}
end

local function is_news(state) return state[1] > now or state[2] > now or state[6] == 1 or state[4] < full end

local news = {}
if #ARGV == 2 then
  local all = redis.call('HGETALL', routes)
  for i = 1, #all, 2 do
    local state = read(all[i + 1])
    if is_news(state) then
      table.insert(news, tell(all[i], state))
    else
      redis.call('HDEL', routes, all[i])
    end
  end
  return #news > 0 and cjson.encode(news) or '[]'
end

for i = 3, #ARGV, 7 do
  local route, pause, down, probe, reopened = ARGV[i], tonumber(ARGV[i + 1]), ARGV[i + 2], tonumber(ARGV[i + 3]), ARGV[i + 4]
  local tokens, spent = tonumber(ARGV[i + 5]), tonumber(ARGV[i + 6])
  local old = redis.call('HGET', routes, route)
  local state = old and read(old) or {0, 0, 0, tokens + spent, now, 0}
  if reopened == '1' then state[1], state[2], state[3], state[6] = 0, 0, 0, 1 end
  if pause > 0 then state[1] = math.max(state[1], now + pause) end
  if down == '1' then state[2] = now + down_for end
  if pause > 0 or down == '1' then
    state[3] = math.max(state[3], now + probe)
    state[6] = 0
  end
  state[4] = math.max(math.min(full, state[4] - spent), -full)
  redis.call('HSET', routes, route, string.format('%.0f %.0f %.0f %.4f %.0f %d', unpack(state)))
  table.insert(news, tell(route, state))
end
redis.call('PEXPIRE', routes, 86400000)
redis.call('PUBLISH', routes, cjson.encode(news))
return '[]'
