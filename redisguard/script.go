package redisguard

import (
	"context"
	_ "embed"
	"fmt"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/aiguard-go/aiguard/internal/line"
)

//go:embed acquire.lua
var acquireSource string

//go:embed limiter.lua
var limiterSource string

var acquireScript, limiterScript = redis.NewScript(acquireSource), redis.NewScript(limiterSource)

// limiterKeys returns the KEYS of limiter.lua. The braces put them into one hash slot.
func limiterKeys(key string) []string {
	keys := make([]string, 0, 8)
	for _, part := range [...]string{"held", "queue", "waiting", "arrivals", "service", "tenants0", "tenants1", "tenants2"} {
		keys = append(keys, "aiguard:{"+key+"}:"+part)
	}
	return keys
}

// id is the name of a call in Redis.
func id(member string, number uint64) string { return member + ":" + strconv.FormatUint(number, 10) }

// numberOf returns the number of a call of this member.
func numberOf(member, id string) (number uint64, ok bool) {
	text, ok := strings.CutPrefix(id, member+":")
	if !ok {
		return 0, false
	}
	number, err := strconv.ParseUint(text, 10, 64)
	return number, err == nil
}

const (
	statusStranger = -1 // Redis does not know this process, or has lost its state: sync
	statusGranted  = 1
)

// answer is the reply of limiter.lua.
type answer struct {
	epoch           string
	status          int64
	members, queued int64
	granted         []string
}

// maxAlong is how many releases acquire.lua takes along.
const maxAlong = 100

// take runs acquire.lua. It reports false if the call must ask limiter.lua.
func (l *Limiter) take(ctx context.Context, w *waiter, along []release, epoch string) (bool, error) {
	l.commands.Add(1)
	weight := strconv.FormatInt(w.weight, 10)
	args := make([]any, 0, 6+len(along))
	args = append(args, l.field, epoch, l.limit, weight, weight+" "+strconv.Itoa(int(w.priority))+" 0 "+w.tenant, id(l.member, w.number))
	for _, r := range along {
		args = append(args, id(l.member, r.number))
	}
	took, err := acquireScript.Run(ctx, l.client, l.keys[:1], args...).Int()
	return took == 1, err
}

// short reports whether acquire.lua may help: it knows no background calls.
func short(w *waiter, along []release) bool {
	if w.priority == line.Background || len(along) > maxAlong {
		return false
	}
	for _, r := range along {
		if r.background {
			return false
		}
	}
	return true
}

// run runs one step of limiter.lua.
func (l *Limiter) run(ctx context.Context, along []release, op ...any) (answer, error) {
	l.commands.Add(1)
	l.mu.Lock()
	epoch, members := l.epoch, l.members
	l.mu.Unlock()
	args := make([]any, 0, 7+2*len(along)+len(op))
	args = append(args, l.member, l.cfg.Lease.Milliseconds(), l.cfg.Limit, l.cfg.MaxBackground, epoch, members, len(along))
	for _, r := range along {
		took := int64(-1)
		if r.took >= 0 {
			took = r.took.Milliseconds()
		}
		args = append(args, id(l.member, r.number), took)
	}
	reply, err := limiterScript.Run(ctx, l.client, l.keys, append(args, op...)...).Slice()
	if err != nil {
		return answer{}, err
	}
	return parseAnswer(reply)
}

func parseAnswer(reply []any) (a answer, err error) {
	if len(reply) != 5 {
		return a, fmt.Errorf("redisguard: reply has %d parts; want 5", len(reply))
	}
	epoch, ok0 := reply[0].(string)
	status, ok1 := reply[1].(int64)
	members, ok2 := reply[2].(int64)
	queued, ok3 := reply[3].(int64)
	granted, ok4 := reply[4].([]any)
	a = answer{epoch: epoch, status: status, members: members, queued: queued}
	for _, g := range granted {
		id, ok := g.(string)
		ok4 = ok4 && ok
		a.granted = append(a.granted, id)
	}
	if !ok0 || !ok1 || !ok2 || !ok3 || !ok4 {
		return answer{}, fmt.Errorf("redisguard: reply of unexpected types")
	}
	return a, nil
}
