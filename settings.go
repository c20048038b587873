package aiguard

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// settings are what is known of a call before it begins. Calls may share them.
type settings struct {
	Call
	host, path  string        // of the route; "": a Do's
	usual       time.Duration // the timeout of an attempt without the caller's own: of the model, or of Config
	source      string        // the setting that Timeout comes from, for the error when it runs out
	planB       bool          // an alternative of Fallback, but not the last
	alternative int32         // which one; 0: the first, or none
}

// scope is what a context says of the calls made with it.
type scope struct {
	call        Call
	planB       bool
	alternative int32
	last        atomic.Pointer[scopedSettings] // of the last Do: a context may serve many
}

// scopedSettings are what a scope comes to for the Dos of one Guard.
type scopedSettings struct {
	guard *Guard
	settings
}

type scopeKey struct{}

// WithCall returns a context that applies c's non-zero fields to every guarded call made with it, through any SDK, over
// those of Guard.With, of Config.Models and of Config, in this order. Within such a context it adds to what was there.
// RunTask itself is not affected, the calls in it are. It panics if a field of c is out of range: a Tenant of more than
// 256 bytes, say.
func WithCall(ctx context.Context, c Call) context.Context {
	mustContext("WithCall", ctx)
	c.mustBeValid("WithCall")
	s := scopeOf(ctx)
	s.call = s.call.over(c)
	return context.WithValue(ctx, scopeKey{}, s)
}

// scopeOf returns a copy of the context's scope.
func scopeOf(ctx context.Context) *scope {
	s := new(scope)
	if in, _ := ctx.Value(scopeKey{}).(*scope); in != nil {
		s.call, s.planB, s.alternative = in.call, in.planB, in.alternative
	}
	return s
}

// models finds the settings of a model.
type models struct {
	exact    map[string]Call
	prefixes []prefix // the longest first
}

type prefix struct {
	text string
	call Call
}

func newModels(settings map[string]Call) (m models) {
	if len(settings) == 0 {
		return m
	}
	m.exact = make(map[string]Call)
	for name, call := range settings {
		if text, ok := strings.CutSuffix(name, "*"); ok {
			m.prefixes = append(m.prefixes, prefix{text, call})
		} else {
			m.exact[name] = call
		}
	}
	slices.SortFunc(m.prefixes, func(a, b prefix) int { return len(b.text) - len(a.text) })
	return m
}

// find returns the settings of a model and the key they have in Config.Models.
func (m *models) find(model string) (call Call, key string, ok bool) {
	if call, ok = m.exact[model]; ok {
		return call, model, true
	}
	for _, p := range m.prefixes {
		if strings.HasPrefix(model, p.text) {
			return p.call, p.text + "*", true
		}
	}
	return call, "", false
}

// settle makes a call's settings whole: own is what the caller says, over what its model has.
func (c *core) settle(own Call) settings {
	s := settings{Call: own, usual: c.cfg.CallTimeout, source: "Config.CallTimeout"}
	if c.models.exact != nil {
		if model, key, ok := c.models.find(own.Model); ok {
			s.Call = model.over(own)
			if model.Timeout != 0 {
				s.usual, s.source = model.Timeout, `Config.Models["`+short(key)+`"].Timeout`
			}
		}
	}
	if own.Timeout != 0 {
		s.source = "Call.Timeout"
	}
	if s.Weight == 0 {
		s.Weight = 1
	}
	return s
}

// do returns the settings of a Do made with ctx.
func (g *Guard) do(ctx context.Context) *settings {
	if in, _ := ctx.Value(scopeKey{}).(*scope); in != nil {
		return g.scoped(in)
	}
	return &g.call
}

// scoped returns the settings of a Do within a scope. Its frame is large, and must not be part of do's: a call that waits
// keeps the stack that it has needed.
//
//go:noinline
func (g *Guard) scoped(in *scope) *settings {
	if last := in.last.Load(); last != nil && last.guard == g {
		return &last.settings
	}
	s := &scopedSettings{guard: g, settings: g.settle(g.own.over(in.call))}
	s.planB, s.alternative = in.planB, in.alternative
	in.last.Store(s)
	return &s.settings
}

// request returns the settings of a call that a request makes: With may rename it, but its model is a fact.
func (g *Guard) request(ctx context.Context, op, model, host, path string) settings {
	own := Call{Op: op}.over(g.own)
	in, _ := ctx.Value(scopeKey{}).(*scope)
	if in != nil {
		own = own.over(in.call)
	}
	if model != "" {
		own.Model = model
	}
	s := g.settle(own)
	s.host, s.path = host, path
	if in != nil {
		s.planB, s.alternative = in.planB, in.alternative
	}
	return s
}

// timeout is the limit of one attempt.
func (s *settings) timeout() time.Duration {
	return cmp.Or(s.Timeout, s.usual)
}

// shorter reports whether a limit is a caller's own, shorter than what its model usually gets.
func (s *settings) shorter(limit time.Duration) bool {
	return limit > 0 && (s.usual == Off || limit < s.usual)
}

// total is the limit of queue, pauses, attempts and backoff together.
func (c *core) total(s *settings) time.Duration {
	switch total := c.cfg.TotalTimeout; {
	case s.TotalTimeout != 0:
		return s.TotalTimeout
	case c.ownTotal || total == Off:
		return total
	default:
		return max(total, s.Timeout+totalMargin)
	}
}

// promptLimit is the most characters of a prompt; Off: no bound.
func (c *core) promptLimit(s *settings) int { return cmp.Or(s.MaxPromptChars, c.cfg.MaxPromptChars) }

// outputLimit is the most tokens of an answer; 0 or Off: no bound.
func (c *core) outputLimit(s *settings) int { return cmp.Or(s.MaxOutputTokens, c.cfg.MaxOutputTokens) }

func (c *core) idleTimeout(s *settings) time.Duration {
	return cmp.Or(s.StreamIdleTimeout, c.cfg.StreamIdleTimeout)
}
