-- Adds charges to what was spent, all of them or none. KEYS: one hash per charge, slot -> amount. ARGV: for each charge
-- slot, since, until, amount, max. Amounts are strings, because Lua's numbers are exact only to 2^53. It returns
-- whether it was spent, and for each charge the slots and their amounts.

local function each(f)
  for i, key in ipairs(KEYS) do
    local at = 5 * (i - 1)
    f(key, ARGV[at + 1], tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]), ARGV[at + 4], tonumber(ARGV[at + 5]))
  end
end

local spent, changes = 1, false
each(function(key, _, since, _, amount, max)
  changes = changes or amount ~= '0'
  if tonumber(amount) <= 0 then return end
  local sum = 0
  local slots = redis.call('HGETALL', key)
  for i = 1, #slots, 2 do
    if tonumber(slots[i]) >= since then sum = sum + tonumber(slots[i + 1]) end
  end
  if sum > max - tonumber(amount) then spent = 0 end
end)

if spent == 1 and changes then
  each(function(key, slot, since, till, amount)
    local by = tonumber(amount)
    local before = tonumber(redis.call('HGET', key, slot) or 0)
    if by == 0 or by < 0 and before == 0 then return end
    if before + by <= 0 then
      redis.call('HDEL', key, slot)
    elseif before + by >= 9.2e18 then
      redis.call('HSET', key, slot, '9223372036854775807')
    else
      redis.call('HINCRBY', key, slot, amount)
    end
    if by < 0 then return end
    for _, old in ipairs(redis.call('HKEYS', key)) do
      if tonumber(old) < since then redis.call('HDEL', key, old) end
    end
    local ends = redis.call('TIME')[1] + math.max(redis.call('TTL', key), 0)
    redis.call('EXPIREAT', key, string.format('%d', math.max(till + 3600, ends))) -- clocks differ, and calls end late
  end)
end

local all = {}
for i, key in ipairs(KEYS) do all[i] = redis.call('HGETALL', key) end
return {spent, all}
