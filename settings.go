package aiguard

import (
	"cmp"
	"context"
	"sync/atomic"
	"time"

	"github.com/aiguard-go/aiguard/internal/callctx"
)

// settings are the settings of a call, fixed before it begins. Calls may share them.
type settings struct {
	*live // beside the first fields of Call, so that a rejection reads few cache lines
	Call
	host, path   string        // of the route; host is empty for a Do
	usualTimeout time.Duration // timeout of an attempt without the caller's own: the model's or Config's
	source       string        // setting that Timeout comes from, named in the error when it expires
	planB        bool          // a later alternative of Fallback exists
	alternative  int32         // which one; 0: the first, or none
}

// scope holds what a context says about the calls made with it.
type scope struct {
	call        Call
	planB       bool
	alternative int32
	last        atomic.Pointer[scopedSettings] // of the last Do, because a context may serve many
}

// scopedSettings are the settings that a scope gives to the Dos of one Guard.
type scopedSettings struct {
	guard *Guard
	settings
}

type scopeKey = callctx.ScopeKey

// CallTenant is for callctx.Tenant.
func (s *scope) CallTenant() string { return s.call.Tenant }

// WithCall returns a context that applies c's non-zero fields to every guarded call made with it, through any SDK.
// They override the fields of Guard.With, then of Config.Models, then of Config. Nested WithCalls add up. WithCall
// does not affect RunTask itself, only the calls in it. It panics if a field of c is out of range, such as a Tenant
// of more than 256 bytes.
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

// settingsOf completes the settings of a call: own overrides the settings of its model.
func (l *live) settingsOf(own Call) settings {
	s := settings{Call: own, live: l, usualTimeout: l.cfg.CallTimeout, source: "Config.CallTimeout"}
	if !l.models.Empty() {
		if model, key, ok := l.models.Find(own.Model); ok {
			s.Call = model.over(own)
			if model.Timeout != 0 {
				s.usualTimeout, s.source = model.Timeout, `Config.Models["`+short(key)+`"].Timeout`
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

// measured reports whether the usage of calls is estimated where no answer reports it, for a Budget or for events.
func (l *live) measured() bool { return l.cfg.Budget != nil || l.cfg.OnEvent != nil }

// doSettings returns the settings of a Do made with ctx.
func (g *Guard) doSettings(ctx context.Context) *settings {
	if in, _ := ctx.Value(scopeKey{}).(*scope); in != nil {
		return g.scoped(in)
	}
	return g.usual()
}

// usual returns the settings of a call without settings of its own. They are kept until the configuration changes.
func (g *Guard) usual() *settings {
	if s := g.cached.Load(); s.live == g.current.Load() {
		return s
	}
	return g.cacheSettings()
}

//go:noinline
func (g *Guard) cacheSettings() *settings {
	s := g.current.Load().settingsOf(g.own)
	g.cached.Store(&s)
	return &s
}

// scoped returns the settings of a Do within a scope. It is not inlined, because its frame is large and a
// waiting call keeps the stack that it has needed.
//
//go:noinline
func (g *Guard) scoped(in *scope) *settings {
	l := g.current.Load()
	if last := in.last.Load(); last != nil && last.guard == g && last.live == l {
		return &last.settings
	}
	s := &scopedSettings{guard: g, settings: l.settingsOf(g.own.over(in.call))}
	s.planB, s.alternative = in.planB, in.alternative
	in.last.Store(s)
	return &s.settings
}

// requestSettings returns the settings of the call for a request under l. With may change its name, but not its model.
func (g *Guard) requestSettings(ctx context.Context, l *live, op, model, host, path string) settings {
	own := Call{Op: op}.over(g.own)
	in, _ := ctx.Value(scopeKey{}).(*scope)
	if in != nil {
		own = own.over(in.call)
	}
	if model != "" {
		own.Model = model
	}
	s := l.settingsOf(own)
	s.host, s.path = host, path
	if in != nil {
		s.planB, s.alternative = in.planB, in.alternative
	}
	return s
}

// timeout returns the limit of one attempt.
func (s *settings) timeout() time.Duration {
	return cmp.Or(s.Timeout, s.usualTimeout)
}

// shorter reports whether limit is a caller's own limit, shorter than the usual limit of the model.
func (s *settings) shorter(limit time.Duration) bool {
	return limit > 0 && (s.usualTimeout == Off || limit < s.usualTimeout)
}

// total returns the limit of queueing, pauses, attempts and backoff together.
func (s *settings) total() time.Duration {
	switch total := s.cfg.TotalTimeout; {
	case s.TotalTimeout != 0:
		return s.TotalTimeout
	case s.given.TotalTimeout != 0 || total == Off:
		return total
	default:
		return max(total, totalOf(s.Timeout))
	}
}

// promptLimit returns the maximum characters of a prompt; Off: no limit.
func (s *settings) promptLimit() int { return cmp.Or(s.MaxPromptChars, s.cfg.MaxPromptChars) }

// outputLimit returns the maximum tokens of an answer; 0 or Off: no limit.
func (s *settings) outputLimit() int { return cmp.Or(s.MaxOutputTokens, s.cfg.MaxOutputTokens) }

func (s *settings) idleTimeout() time.Duration {
	return cmp.Or(s.StreamIdleTimeout, s.cfg.StreamIdleTimeout)
}
