-- One step of a shared limit. Every process runs this script for every change, so that each change is atomic.
--
-- held      hash: "member:n" -> a lease as "weight priority cost tenant", "m:member" -> the end of a member's lease,
--             and
--             e epoch of this state     u weight in flight       b part of u with background priority
--             n last arrival number     s admissions since the longest waiter's turn
--             v service of the tenant served last                h average milliseconds that a lease is held
--             c members                 x no member's lease ends before
--             r end of the recovery, 0: none                     k members that the recovery waits for, 0: there was none
--             g the epoch if nobody waits and there is no recovery: acquire.lua may be used
-- queue     zset: all waiters, ordered by priority, tenant, arrival
-- waiting   hash: "member:n" -> its entry in queue
-- arrivals  zset: "member:n" -> arrival number
-- service   hash: tenant -> service received, in weight times milliseconds
-- tenants   one zset per priority: a tenant that waits -> its service
--
-- A lease belongs to the process that holds it. A process repeats what it holds and what waits with each sync, so
-- that the state can be lost at any time.

local held, queue, waiting, arrivals, service = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local tenants = {[0] = KEYS[6], [1] = KEYS[7], [2] = KEYS[8]}
local me, ttl, limit, background = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local known_epoch, known_members = ARGV[5], tonumber(ARGV[6])
local call = redis.call

local time = call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local state = call('HMGET', held, 'e', 'u', 'b', 's', 'v', 'h', 'c', 'x', 'r', 'k')
local epoch = state[1]
if not epoch then -- new or lost
  call('DEL', unpack(KEYS))
  epoch = time[1] .. '.' .. time[2]
  call('HSET', held, 'e', epoch)
  state = {}
end
local used, used_background, since = tonumber(state[2] or 0), tonumber(state[3] or 0), tonumber(state[4] or 0)
local virtual, average = tonumber(state[5] or 0), tonumber(state[6] or 0)
local members, earliest = tonumber(state[7] or 0), tonumber(state[8] or 0)
local recovery, expected = tonumber(state[9] or 0), tonumber(state[10] or 0)
local granted = {} -- ids, by member

local function member_of(id) return string.match(id, '^(.*):%d+$') end

local function count(priority, weight)
  used = used + weight
  if priority == 0 then used_background = used_background + weight end
end

-- charge adds to the service that a tenant has received.
local function charge(tenant, amount)
  local s = call('HINCRBYFLOAT', service, tenant, string.format('%.3f', amount))
  for p = 0, 2 do
    if call('ZSCORE', tenants[p], tenant) then call('ZADD', tenants[p], s, tenant) end
  end
end

-- An entry of queue: priority (1 byte), tenant (16), arrival (16), weight (16), id.
local function parse(entry)
  return tonumber(string.sub(entry, 1, 1)), string.sub(entry, 2, 17), tonumber(string.sub(entry, 34, 49)), string.sub(entry, 50)
end

-- first returns the entry that has waited longest of a tenant with a priority.
local function first(priority, tenant)
  local prefix = priority .. tenant
  local entry = call('ZRANGEBYLEX', queue, '[' .. prefix, '+', 'LIMIT', 0, 1)[1]
  if entry and string.sub(entry, 1, 17) == prefix then return entry end
end

local function unqueue(id)
  local entry = call('HGET', waiting, id)
  if not entry then return end
  call('HDEL', waiting, id)
  call('ZREM', queue, entry)
  call('ZREM', arrivals, id)
  local priority, tenant = parse(entry)
  if not first(priority, tenant) then call('ZREM', tenants[priority], tenant) end
end

local function enqueue(id, weight, priority, tenant)
  local entry = call('HGET', waiting, id)
  if not entry then
    entry = priority .. tenant .. string.format('%016d%016d', call('HINCRBY', held, 'n', 1), weight) .. id
    call('HSET', waiting, id, entry)
  end
  -- Each of these may have been evicted by itself.
  call('ZADD', queue, 0, entry)
  call('ZADD', arrivals, tonumber(string.sub(entry, 18, 33)), id)
  if not call('ZSCORE', tenants[priority], tenant) then
    local s = math.max(tonumber(call('HGET', service, tenant) or 0), virtual) -- nobody saves up service while idle
    call('HSET', service, tenant, string.format('%.3f', s))
    -- Of equals, the one that came first is served first.
    call('ZADD', tenants[priority], string.format('%.6f', s + string.sub(entry, 28, 33) / 1e6), tenant)
  end
end

local function hold(id, weight, priority, cost, tenant)
  call('HSET', held, id, string.format('%d %d %.3f %s', weight, priority, cost, tenant))
  count(priority, weight)
end

-- release gives back a lease, or a place in the queue. took is the time it was held, or negative.
local function release(id, took)
  local lease = call('HGET', held, id)
  if not lease then return unqueue(id) end
  local weight, priority, cost, tenant = string.match(lease, '^(%d+) (%d) (%S+) (.*)$')
  weight, priority = tonumber(weight), tonumber(priority)
  call('HDEL', held, id)
  count(priority, -weight)
  if took < 0 then return end
  took = math.max(took, 1)
  average = average == 0 and took or average + (math.min(took, 4 * average) - average) / 8
  if call('EXISTS', queue) == 1 then charge(tenant, weight * took - tonumber(cost)) end
end

-- drop removes a member and all it has.
local function drop(member)
  members = members - call('HDEL', held, 'm:' .. member)
  for _, key in ipairs({held, waiting}) do
    for _, id in ipairs(call('HKEYS', key)) do
      if member_of(id) == member then release(id, -1) end
    end
  end
end

local function join()
  members = members + call('HSET', held, 'm:' .. me, now + ttl)
  -- Another process may have a longer lease, and the clock may have been set back.
  earliest = earliest == 0 and now + ttl or math.min(earliest, now + ttl)
end

local function fits(priority, weight)
  return used + weight <= limit
    and (priority > 0 or background < 0 or used_background == 0 or used_background + weight <= background)
end

-- next_entry returns the entry to be served next.
local function next_entry()
  if since >= 9 then -- one of ten admissions goes to the longest waiter
    local id = call('ZRANGE', arrivals, 0, 0)[1]
    local entry = id and call('HGET', waiting, id)
    if entry then
      local priority, _, weight = parse(entry)
      if priority > 0 or fits(0, weight) then return entry, true end
    end
  end
  for priority = 2, 0, -1 do
    local tenant = call('ZRANGE', tenants[priority], 0, 0)[1]
    while tenant do
      local entry = first(priority, tenant)
      if entry then return entry end
      call('ZREM', tenants[priority], tenant)
      tenant = call('ZRANGE', tenants[priority], 0, 0)[1]
    end
  end
end

-- serve admits the waiters whose turn it is. None overtakes the one whose turn it is, because large weights would
-- starve otherwise.
local function serve()
  if used >= limit or recovery > 0 or call('EXISTS', queue) == 0 then return end
  while used < limit do
    local entry, longest = next_entry()
    if not entry then break end
    local priority, tenant, weight, id = parse(entry)
    if not fits(priority, weight) then break end
    virtual = tonumber(call('HGET', service, tenant) or 0)
    unqueue(id)
    local cost = weight * math.max(average, 1)
    charge(tenant, cost)
    hold(id, weight, priority, cost, tenant)
    since = longest and 0 or since + 1
    local member = member_of(id)
    granted[member] = granted[member] or {}
    table.insert(granted[member], id)
  end
  if call('EXISTS', queue) == 0 then since = 0 end
end

if now >= earliest and earliest > 0 then -- a member may have died
  local fields = call('HGETALL', held)
  earliest = now + ttl
  for i = 1, #fields, 2 do
    local member = string.match(fields[i], '^m:(.*)$')
    local ends = tonumber(fields[i + 1])
    if member and ends <= now and member ~= me then
      drop(member)
    elseif member then
      earliest = math.min(earliest, ends)
    end
  end
end

local at = 8
for _ = 1, tonumber(ARGV[7]) do
  release(ARGV[at], tonumber(ARGV[at + 1]))
  at = at + 2
end

local op, status, result = ARGV[at], 0, {}
if op ~= 'sync' and op ~= 'leave' then
  local stranger = call('HEXISTS', held, 'm:' .. me) == 0
  if stranger and known_epoch == '' then -- it holds nothing
    join()
    if expected > 0 then expected = expected + 1 end
  elseif stranger or known_epoch ~= epoch then
    status = -1
  end
end

if op == 'acquire' and status == 0 then
  local id, weight, priority, tenant = ARGV[at + 1], tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]), ARGV[at + 4]
  if call('HEXISTS', held, id) == 1 then
    status = 1
  elseif call('EXISTS', queue) == 0 and fits(priority, weight) and recovery == 0 then
    hold(id, weight, priority, 0, tenant)
    status = 1
  else
    enqueue(id, weight, priority, tenant)
    serve()
    local mine = granted[me] or {}
    for i, got in ipairs(mine) do
      if got == id then
        status = 1
        table.remove(mine, i)
        break
      end
    end
  end
elseif op == 'sync' then
  if known_epoch ~= '' and known_epoch ~= epoch and expected == 0 then -- the state was lost
    recovery, expected = now + ttl, members + known_members
    call('PUBLISH', held, 'sync') -- so that all report now
  end
  join()
  if members >= expected or now >= recovery then recovery = 0 end
  local below = tonumber(ARGV[at + 1]) -- numbers from here on are younger than this sync
  local mine, waits = {}, {}
  at = at + 2
  for _, list in ipairs({mine, waits}) do
    local n = tonumber(ARGV[at])
    at = at + 1
    for _ = 1, n do
      local id, weight, priority, tenant = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), ARGV[at + 3]
      at = at + 4
      list[id] = true
      local has = call('HEXISTS', held, id) == 1
      if list == mine then
        if not has then
          unqueue(id)
          hold(id, weight, priority, 0, tenant)
        end
      elseif not has then
        enqueue(id, weight, priority, tenant)
      end
    end
  end
  for _, id in ipairs(call('HKEYS', held)) do
    local member, n = string.match(id, '^(.*):(%d+)$')
    if member == me and tonumber(n) < below and not mine[id] and not waits[id] then release(id, -1) end
  end
  serve()
  granted[me] = nil
  for id in pairs(waits) do
    if call('HEXISTS', held, id) == 1 then table.insert(result, id) end
  end
  if call('HLEN', service) > 10000 then call('DEL', service) end
elseif op == 'leave' then
  drop(me)
  serve()
else
  serve()
end

local queued = call('ZCARD', queue)
call('HSET', held, 'u', used, 'b', used_background, 's', since, 'v', string.format('%.3f', virtual),
  'h', string.format('%.3f', average), 'c', members, 'x', earliest, 'r', recovery, 'k', expected,
  'g', queued == 0 and recovery == 0 and epoch or '')
for member, ids in pairs(granted) do
  if #ids > 0 then call('PUBLISH', held .. ':' .. member, table.concat(ids, ' ')) end
end
if op == 'sync' and call('PTTL', held) < 10 * ttl then -- a process with a longer lease may have set a longer time
  for _, key in ipairs(KEYS) do call('PEXPIRE', key, 10 * ttl) end
end
return {epoch, status, members, queued, result}
