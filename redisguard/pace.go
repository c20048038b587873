package redisguard

import (
	"cmp"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/aiguard-go/aiguard"
)

//go:embed pace.lua
var paceSource string

var paceScript = redis.NewScript(paceSource)

// PaceConfig configures a Pace. Key and at least one limit are required.
type PaceConfig struct {
	Key               string // processes with the same Key share the pace. As Config.Key
	RequestsPerMinute int64  // of each model; 0: no limit
	TokensPerMinute   int64  // of each model, input and output; 0: no limit

	Budget    aiguard.Budget // asked before the pace, for example a budget.Budget. Default none
	Timeout   time.Duration  // how long Redis may take to answer. Default 1s
	OnFailure Failure        // what happens while Redis does not answer. Default KeepShare
	Logger    *slog.Logger   // logs when Redis fails and when it is back. Default slog.Default()
}

// Pace is an aiguard.Budget that shares a rate limit between processes. A call waits for its turn in Reserve, in order
// of arrival, and is rejected at once with aiguard.ErrRateLimited if its turn would come too late. Its tokens are
// estimated before the attempt and corrected after it. Each model has its own pace, of which a tenth of a minute may be
// used at once. A Do has no known tokens. Pace is safe for concurrent use.
//
// While Redis does not answer, each process keeps the limits divided by the number of processes seen in the last minute.
type Pace struct {
	client  redis.UniversalClient
	cfg     PaceConfig
	member  string
	waker   chan struct{}
	stop    chan struct{}
	running sync.WaitGroup

	mu      sync.Mutex
	members int64
	refunds map[string]*refund // by model; not yet sent
	local   map[string]*buckets
	down    error
	closed  bool
}

// refund is what settled attempts did not use.
type refund struct{ requests, tokens float64 }

const (
	paceBurst  = 0.1  // of a minute's amount, because providers enforce a limit per minute in shorter intervals
	maxRefunds = 1000 // models whose refunds wait to be sent
)

// NewPace returns a Pace and starts its goroutine, which Close ends. It does not wait for Redis. Set it as
// aiguard.Config.Budget. The client must have ContextTimeoutEnabled.
func NewPace(client redis.UniversalClient, cfg PaceConfig) (*Pace, error) {
	if err := checkClient(client); err != nil {
		return nil, err
	}
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	p := &Pace{client: client, cfg: cfg, member: newMember(), waker: make(chan struct{}, 1), stop: make(chan struct{}), members: 1,
		refunds: make(map[string]*refund), local: make(map[string]*buckets)}
	p.running.Go(p.loop)
	return p, nil
}

func (c *PaceConfig) validate() error {
	c.Timeout = cmp.Or(c.Timeout, DefaultTimeout)
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	switch {
	case c.RequestsPerMinute < 0 || c.RequestsPerMinute > 1e12:
		return fmt.Errorf("redisguard: PaceConfig.RequestsPerMinute is %d; want 0 to 1e12", c.RequestsPerMinute)
	case c.TokensPerMinute < 0 || c.TokensPerMinute > 1e12:
		return fmt.Errorf("redisguard: PaceConfig.TokensPerMinute is %d; want 0 to 1e12", c.TokensPerMinute)
	case c.RequestsPerMinute == 0 && c.TokensPerMinute == 0:
		return fmt.Errorf("redisguard: PaceConfig has neither RequestsPerMinute nor TokensPerMinute: want at least one")
	case c.Timeout < time.Millisecond || c.Timeout > time.Minute:
		return fmt.Errorf("redisguard: PaceConfig.Timeout is %v; want 1ms to 1m", c.Timeout)
	case c.OnFailure != KeepShare && c.OnFailure != FailClosed:
		return fmt.Errorf("redisguard: PaceConfig.OnFailure is %d; want KeepShare or FailClosed", c.OnFailure)
	}
	return checkKey("PaceConfig.Key", c.Key)
}

// Reserve implements aiguard.Budget. It asks Redis once.
func (p *Pace) Reserve(ctx context.Context, call aiguard.Call, most aiguard.Usage) (settle func(aiguard.Usage), err error) {
	var inner func(aiguard.Usage)
	if p.cfg.Budget != nil {
		if inner, err = p.cfg.Budget.Reserve(ctx, call, most); err != nil {
			return nil, err
		}
	}
	tokens := float64(most.Input + most.Output)
	wait, err := p.reserve(ctx, call.Model, 1, tokens)
	if err == nil {
		if err = sleep(ctx, wait); err != nil {
			p.giveBack(call.Model, 1, tokens)
		}
	}
	if err != nil {
		if inner != nil {
			inner(aiguard.Usage{})
		}
		return nil, err
	}
	var once sync.Once
	return func(used aiguard.Usage) {
		once.Do(func() {
			if used == (aiguard.Usage{}) { // it was not sent, or refused
				p.giveBack(call.Model, 1, tokens)
			} else if !used.Estimated || used.Input+used.Output > 0 {
				p.giveBack(call.Model, 0, tokens-float64(used.Input+used.Output))
			}
			if inner != nil {
				inner(used)
			}
		})
	}, nil
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// reserve takes requests and tokens, and returns how long to wait for them.
func (p *Pace) reserve(ctx context.Context, model string, requests, tokens float64) (time.Duration, error) {
	longest := time.Duration(math.MaxInt64)
	if end, ok := ctx.Deadline(); ok {
		longest = max(time.Until(end), 0)
	}
	if p.isDown() {
		return p.reserveLocally(model, requests, tokens, longest)
	}
	wait, err := p.ask(ctx, model, requests, tokens, longest)
	switch {
	case err == nil && wait < 0:
		return 0, tooLate(-wait)
	case err == nil:
		return wait, nil
	case ctx.Err() != nil:
		return 0, ctx.Err()
	}
	p.fail(err)
	return p.reserveLocally(model, requests, tokens, longest)
}

// ask asks Redis for a turn in another goroutine, because go-redis waits for a reply until a deadline and does not notice
// that ctx is canceled. If ctx ends first, the goroutine gives back what Redis grants.
func (p *Pace) ask(ctx context.Context, model string, requests, tokens float64, longest time.Duration) (time.Duration, error) {
	type reply struct {
		wait time.Duration
		err  error
	}
	replies := make(chan reply)
	go func() {
		cctx, cancel := context.WithTimeout(ctx, p.cfg.Timeout)
		defer cancel()
		wait, err := p.run(cctx, model, requests, tokens, longest)
		select {
		case replies <- reply{wait, err}:
		case <-ctx.Done():
			if err == nil && wait >= 0 {
				p.giveBack(model, requests, tokens)
			}
		}
	}()
	select {
	case r := <-replies:
		return r.wait, r.err
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

func tooLate(wait time.Duration) error {
	return &aiguard.Error{Kind: aiguard.ErrRateLimited, Phase: aiguard.PhasePace, RetryAfter: wait}
}

// run runs pace.lua. The wait is negative if it is too long and nothing was taken.
func (p *Pace) run(ctx context.Context, model string, requests, tokens float64, longest time.Duration) (time.Duration, error) {
	sum := sha256.Sum256([]byte(model)) // names of models can be long
	prefix := "aiguard:{" + p.cfg.Key + "}:pace:"
	reply, err := paceScript.Run(ctx, p.client, []string{prefix + hex.EncodeToString(sum[:16]), prefix + "members"}, p.member,
		p.cfg.RequestsPerMinute, p.cfg.TokensPerMinute, paceBurst, requests, tokens, longest.Milliseconds()).Int64Slice()
	if err != nil {
		return 0, err
	}
	if len(reply) != 2 {
		return 0, errReply
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.members = max(reply[1], 1)
	return time.Duration(max(min(reply[0], 1e12), -1e12)) * time.Millisecond, nil
}

// giveBack returns what was not used. It does not wait for Redis.
func (p *Pace) giveBack(model string, requests, tokens float64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if requests == 0 && tokens == 0 || p.closed {
		return
	}
	if p.down != nil {
		if b := p.local[model]; b != nil {
			b.take(time.Now(), p.share(), -requests, -tokens)
		}
		return
	}
	r := p.refunds[model]
	if r == nil {
		if len(p.refunds) >= maxRefunds {
			return // the limit holds, and comes back with time
		}
		r = &refund{}
		p.refunds[model] = r
	}
	r.requests += requests
	r.tokens += tokens
	select {
	case p.waker <- struct{}{}:
	default:
	}
}

// loop sends refunds, and asks for Redis while it does not answer.
func (p *Pace) loop() {
	timer := time.NewTicker(retryEvery)
	defer timer.Stop()
	for {
		select {
		case <-p.stop:
			return
		case <-p.waker:
			p.refund()
		case <-timer.C:
			if p.isDown() {
				p.probe()
			}
		}
	}
}

// refund sends the refunds of each model.
func (p *Pace) refund() {
	p.mu.Lock()
	refunds := p.refunds
	p.refunds = make(map[string]*refund)
	p.mu.Unlock()
	for model, r := range refunds {
		ctx, cancel := command(p.cfg.Timeout)
		_, err := p.run(ctx, model, -r.requests, -r.tokens, math.MaxInt64)
		cancel()
		if err != nil {
			p.fail(err)
			return
		}
	}
}

// probe asks whether Redis is back.
func (p *Pace) probe() {
	ctx, cancel := command(p.cfg.Timeout)
	defer cancel()
	if _, err := p.run(ctx, "", 0, 0, math.MaxInt64); err != nil {
		return
	}
	p.mu.Lock()
	p.down = nil
	clear(p.local)
	p.mu.Unlock()
	p.cfg.Logger.Info("redisguard: Redis answers again; the pace is shared", slog.String("key", p.cfg.Key))
}

func (p *Pace) isDown() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.down != nil
}

func (p *Pace) fail(err error) {
	p.mu.Lock()
	first := p.down == nil && !p.closed
	if first {
		p.down = err
	}
	p.mu.Unlock()
	if first {
		p.cfg.Logger.Warn("redisguard: Redis does not answer; the pace is not shared", slog.String("key", p.cfg.Key), slog.Any("error", err))
	}
}

// share returns the limits of this process while Redis does not answer, per nanosecond.
func (p *Pace) share() [2]float64 {
	per := float64(p.members) * float64(time.Minute)
	return [2]float64{float64(p.cfg.RequestsPerMinute) / per, float64(p.cfg.TokensPerMinute) / per}
}

// reserveLocally is reserve without Redis.
func (p *Pace) reserveLocally(model string, requests, tokens float64, longest time.Duration) (time.Duration, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cfg.OnFailure == FailClosed {
		return 0, noAnswer(aiguard.PhasePace, p.down)
	}
	b := p.local[model]
	if b == nil {
		if len(p.local) >= maxRefunds {
			clear(p.local)
		}
		b = &buckets{at: time.Now()}
		p.local[model] = b
	}
	wait := b.wait(time.Now(), p.share(), requests, tokens)
	if wait > longest {
		return 0, tooLate(wait)
	}
	b.take(time.Now(), p.share(), requests, tokens)
	return wait, nil
}

// buckets are the two token buckets of a model in this process. A new one is empty, because the shared one may have
// been used.
type buckets struct {
	levels [2]float64
	at     time.Time
}

func (b *buckets) refill(now time.Time, rates [2]float64) {
	age := float64(max(now.Sub(b.at), 0))
	for i, rate := range rates {
		b.levels[i] = min(b.levels[i]+age*rate, burstOf(rate))
	}
	b.at = now
}

func burstOf(rate float64) float64 { return max(rate*float64(time.Minute)*paceBurst, 1) }

// wait returns how long it takes until there is enough.
func (b *buckets) wait(now time.Time, rates [2]float64, requests, tokens float64) (wait time.Duration) {
	b.refill(now, rates)
	for i, n := range [2]float64{requests, tokens} {
		if rate := rates[i]; rate > 0 && n > 0 {
			wait = max(wait, time.Duration(math.Ceil((min(n, burstOf(rate))-b.levels[i])/rate)))
		}
	}
	return wait
}

func (b *buckets) take(now time.Time, rates [2]float64, requests, tokens float64) {
	b.refill(now, rates)
	for i, n := range [2]float64{requests, tokens} {
		b.levels[i] = min(b.levels[i]-n, burstOf(rates[i]))
	}
}

// Close ends the Pace's goroutine and sends the last refunds. Close the Guard first. It may be called more than once.
func (p *Pace) Close() error {
	p.mu.Lock()
	closed := p.closed
	p.closed = true
	p.mu.Unlock()
	if closed {
		return nil
	}
	close(p.stop)
	p.running.Wait()
	p.refund()
	return nil
}
