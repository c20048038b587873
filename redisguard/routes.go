package redisguard

import (
	"cmp"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/internal/provider"
)

//go:embed routes.lua
var routesSource string

var routesScript = redis.NewScript(routesSource)

// RoutesConfig configures ShareRoutes. Key is required.
type RoutesConfig struct {
	Key     string        // processes with the same Key share their routes. As Config.Key
	Timeout time.Duration // how long Redis may take to answer. Default 1s
	Logger  *slog.Logger  // logs when Redis fails and when it is back. Default slog.Default()
}

const (
	shareEvery    = 50 * time.Millisecond // between two commands
	askEvery      = 5 * time.Second       // in case a message is lost
	maxRouteNews  = 1000                  // routes of one command
	maxRouteBytes = 1 << 20               // of a message
)

// Routes shares what a Guard knows of provider routes. See ShareRoutes.
type Routes struct {
	client  redis.UniversalClient
	guard   *aiguard.Guard
	cfg     RoutesConfig
	key     string
	stop    context.CancelFunc
	running sync.WaitGroup

	unsent map[routeName]*unsent // used by the loop only
	down   bool
}

type routeName [3]string // host, name, model

// unsent is a change that Redis does not know yet. Several changes of one route are one.
type unsent struct {
	paused, probe time.Time
	down          bool
	reopened      bool
	tokens, spent float64
}

// ShareRoutes shares the guard's pauses after a 429, outages and retry budgets with the other processes of the same
// Key, until Close. A change reaches them within about 50 ms. No call waits for that. While Redis does not answer, each
// process goes on with what it knows, and tells the rest later.
//
// The processes together have about one retry budget per route. They send about one probe at a time into a pause or
// an outage. The bound of retries for a whole Guard, adaptive limits and rate limits from headers stay per process. For
// rate limits see Pace.
func ShareRoutes(client redis.UniversalClient, guard *aiguard.Guard, cfg RoutesConfig) (*Routes, error) {
	if err := checkClient(client); err != nil {
		return nil, err
	}
	if guard == nil {
		return nil, errors.New("redisguard: ShareRoutes: the guard is nil")
	}
	if err := checkKey("RoutesConfig.Key", cfg.Key); err != nil {
		return nil, err
	}
	if cfg.Timeout = cmp.Or(cfg.Timeout, DefaultTimeout); cfg.Timeout < time.Millisecond || cfg.Timeout > time.Minute {
		return nil, fmt.Errorf("redisguard: RoutesConfig.Timeout is %v; want 1ms to 1m", cfg.Timeout)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	ctx, stop := context.WithCancel(context.Background())
	r := &Routes{client: client, guard: guard, cfg: cfg, key: "aiguard:{" + cfg.Key + "}:routes", stop: stop, unsent: make(map[routeName]*unsent)}
	_, more := guard.RouteChanges() // from here on the guard records changes
	messages := make(chan any)
	r.running.Go(func() { r.loop(ctx, messages, more) })
	r.running.Go(func() {
		listen(ctx, client, func(m any) {
			select {
			case messages <- m:
			case <-ctx.Done():
			}
		}, r.key)
	})
	return r, nil
}

// Close ends the sharing and waits for its goroutines. It may be called more than once.
func (r *Routes) Close() error {
	r.stop()
	r.running.Wait()
	return nil
}

func (r *Routes) loop(ctx context.Context, messages <-chan any, more <-chan struct{}) {
	ask := time.NewTimer(jittered(askEvery))
	defer ask.Stop()
	send := time.NewTimer(0)
	defer send.Stop()
	var changed <-chan struct{} // nil: too soon after the last command
	for {
		select {
		case <-ctx.Done():
			return
		case <-send.C:
			changed = more
			if len(r.unsent) > 0 {
				changed = nil
				r.tell(ctx)
				send.Reset(cmp.Or(r.pause(), shareEvery))
			}
		case <-changed:
			changed = nil
			r.tell(ctx)
			send.Reset(cmp.Or(r.pause(), shareEvery))
		case <-ask.C:
			r.ask(ctx)
			ask.Reset(jittered(askEvery))
		case m := <-messages:
			switch m := m.(type) {
			case *redis.Message:
				r.learn(m.Payload)
			case *redis.Subscription: // connected again
				r.ask(ctx)
			}
		}
	}
}

// pause returns how long to wait after a command that has failed; 0: it has not.
func (r *Routes) pause() time.Duration {
	if r.down {
		return jittered(retryEvery)
	}
	return 0
}

// tell sends the guard's changes.
func (r *Routes) tell(ctx context.Context) {
	changes, _ := r.guard.RouteChanges()
	now := time.Now()
	for i := range changes {
		r.note(&changes[i], now)
	}
	args := []any{provider.RouteFloor, provider.BudgetRefill.Milliseconds()}
	sent := make([]routeName, 0, len(r.unsent))
	for name, u := range r.unsent {
		if len(sent) == maxRouteNews {
			break
		}
		text, err := json.Marshal(name)
		if err != nil {
			continue // it cannot fail
		}
		sent = append(sent, name)
		args = append(args, text, millis(u.paused.Sub(now)), flag(u.down), millis(u.probe.Sub(now)), flag(u.reopened), u.tokens, u.spent)
	}
	if len(sent) == 0 {
		return
	}
	if _, ok := r.run(ctx, args...); ok {
		for _, name := range sent {
			delete(r.unsent, name)
		}
	}
}

// note adds a change to those that Redis does not know yet.
func (r *Routes) note(s *aiguard.RouteState, now time.Time) {
	name := routeName{s.Host, s.Name, s.Model}
	u := r.unsent[name]
	if u == nil {
		if len(r.unsent) >= 2*maxRouteNews {
			return // Redis is away, and the guard has forgotten the oldest routes too
		}
		u = &unsent{}
		r.unsent[name] = u
	}
	u.paused, u.probe, u.down = now.Add(s.Pause), now.Add(s.Probe), s.Down
	u.reopened = s.Reopened || u.reopened && s.Pause == 0 && !s.Down
	u.tokens = s.RetryTokens
	u.spent += s.RetrySpent
}

// ask learns the state of all routes.
func (r *Routes) ask(ctx context.Context) {
	if text, ok := r.run(ctx, provider.RouteFloor, provider.BudgetRefill.Milliseconds()); ok {
		r.learn(text)
	}
}

func (r *Routes) run(ctx context.Context, args ...any) (text string, ok bool) {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	text, err := routesScript.Run(ctx, r.client, []string{r.key}, args...).Text()
	switch {
	case err != nil && !r.down:
		r.down = true
		r.cfg.Logger.Warn("redisguard: Redis does not answer; routes are not shared", slog.String("key", r.cfg.Key), slog.Any("error", err))
	case err == nil && r.down:
		r.down = false
		r.cfg.Logger.Info("redisguard: Redis answers again; routes are shared", slog.String("key", r.cfg.Key))
	}
	return text, err == nil
}

// learn tells the guard what other processes know.
func (r *Routes) learn(text string) {
	states, err := parseRoutes(text)
	if err != nil {
		r.cfg.Logger.Warn("redisguard: malformed message about routes", slog.String("key", r.cfg.Key), slog.Int("bytes", len(text)))
		return
	}
	r.guard.LearnRoutes(states...)
}

// parseRoutes reads the result of routes.lua.
func parseRoutes(text string) ([]aiguard.RouteState, error) {
	if len(text) > maxRouteBytes {
		return nil, fmt.Errorf("redisguard: message of %d bytes, want at most %d", len(text), maxRouteBytes)
	}
	var all [][6]json.RawMessage
	if err := json.Unmarshal([]byte(text), &all); err != nil {
		return nil, err
	}
	states := make([]aiguard.RouteState, 0, len(all))
	for _, fields := range all {
		var id string
		var name routeName
		var pause, probe float64
		var s aiguard.RouteState
		for i, to := range []any{&id, &pause, &s.Down, &probe, &s.Reopened, &s.RetryTokens} {
			if err := json.Unmarshal(fields[i], to); err != nil {
				return nil, err
			}
		}
		if err := json.Unmarshal([]byte(id), &name); err != nil {
			return nil, err
		}
		s.Host, s.Name, s.Model = name[0], name[1], name[2]
		s.Pause, s.Probe = duration(pause), duration(probe)
		s.RetryTokens = max(s.RetryTokens, 0)
		states = append(states, s)
	}
	return states, nil
}

// millis returns a duration in milliseconds, rounded up, and at least 0.
func millis(d time.Duration) int64 { return max(int64((d+time.Millisecond-1)/time.Millisecond), 0) }

// duration returns milliseconds as a Duration.
func duration(ms float64) time.Duration {
	return time.Duration(math.Max(math.Min(ms, 1e12), 0)) * time.Millisecond
}

func flag(b bool) int {
	if b {
		return 1
	}
	return 0
}
