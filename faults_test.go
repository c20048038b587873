package aiguard_test

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	openai "github.com/sashabaranov/go-openai"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
)

// This file is the library's promise, row by row: what each fault of package aiguardtest becomes under a guard, over real
// sockets, with HTTP/1.1 and with TLS and HTTP/2. Beside each promise the client without a guard meets the same fault, as a
// control: a fault that it no longer suffers from proves nothing about the guard.

// The bounds that a row sets are the ones that it proves. They are short, and all others patient, so that a machine that
// is busy does not turn one failure into another.
const (
	shortCall   = 400 * time.Millisecond
	shortIdle   = 200 * time.Millisecond
	shortStream = 700 * time.Millisecond
	patience    = 20 * time.Second
	slack       = 10 * time.Second       // above a bound, for a machine that is busy
	watchdog    = 400 * time.Millisecond // of a control that hangs
)

// again says which requests are sent again after a fault. Those that create something at the provider are sent once more
// only after the failures of always, which leave no doubt that the provider has not acted.
type again int

const (
	never   again = iota
	ifAsked       // inference, with Retry.Timeouts
	inference
	always
)

// promise is what a fault becomes.
type promise struct {
	// The error; no kind: there is none.
	kind       aiguard.Kind
	phase      string // or several, as "a|b", where either may be first
	status     int
	said       bool // errors.As finds the *openai.APIError of what the provider said
	retryAfter time.Duration
	upTo       time.Duration // retryAfter is between this and that; 0: it is exact
	max        int64
	text       string // of an answer, or what a stream delivers before it fails

	cfg     aiguard.Config // the bounds in question
	each    time.Duration  // how long an attempt lasts: the bound that runs out, or for what is good the time it takes
	again   again
	unseen  bool // no request reaches the server's handler
	leaves  bool // the guard leaves an answer that is under way, and the server sees that for each attempt
	timeout bool // represents the rows that Retry.Timeouts is about

	large bool                                        // a picture of 5 MB in the prompt
	texts bool                                        // text beside the picture
	usage aiguard.Usage                               // of a good answer; zero: one token in, two out
	asks  func(*aiguard.Client) request               // instead of the group's call
	test  func(*testing.T, aiguardtest.Fault, string) // instead of a call: what takes several

	notOverHTTP1 string // the reason
	overHTTP2    func(*promise)

	or *promise // with a bound of its own that the fault meets first

	control control // nil: the client without a guard does not suffer, or needs more memory than a test has
}

// promises has a row for each fault.
var promises = map[aiguardtest.Fault]promise{
	// Connection

	aiguardtest.FaultRefused: {
		kind: aiguard.ErrUnavailable, phase: "connect", again: always, unseen: true, control: fails},
	aiguardtest.FaultTLSStall: {
		kind: aiguard.ErrTimeout, phase: "call", again: ifAsked, unseen: true,
		cfg: aiguard.Config{CallTimeout: shortCall}, each: shortCall, control: hangs,
		overHTTP2: func(p *promise) { // without a connection there is no request that the provider could have got
			p.phase, p.again, p.control = "call|connect", always, hangsAndHoldsTheConnection
		}},
	aiguardtest.FaultNeverRead: {
		kind: aiguard.ErrTimeout, phase: "call", again: ifAsked, timeout: true, unseen: true, large: true,
		cfg: aiguard.Config{CallTimeout: shortCall}, each: shortCall, control: hangs},
	aiguardtest.FaultEOF:            {kind: aiguard.ErrUnavailable, again: inference, control: fails},
	aiguardtest.FaultReset:          {kind: aiguard.ErrUnavailable, again: inference, control: fails},
	aiguardtest.FaultStaleKeepAlive: {test: staleKeepAlive},
	aiguardtest.FaultGoesDark: {test: goesDark,
		notOverHTTP1: "there are no pings; a request that gets no answer is answer/no-headers, and ends its connection"},
	aiguardtest.FaultRedirect301:  redirected(301, followsAndLosesThePrompt),
	aiguardtest.FaultRedirect302:  redirected(302, followsAndLosesThePrompt),
	aiguardtest.FaultRedirect307:  redirected(307, followsWithThePrompt),
	aiguardtest.FaultRedirect308:  redirected(308, followsWithThePrompt),
	aiguardtest.FaultRedirectHost: redirected(307, followsWithThePromptAndAnAzureKey),
	aiguardtest.FaultHugeHeaders:  {kind: aiguard.ErrInvalidResponse, phase: "headers", control: succeeds},
	aiguardtest.FaultManyHeaders:  {kind: aiguard.ErrInvalidResponse, phase: "headers"},
	aiguardtest.FaultEndlessEarlyHints: {
		kind: aiguard.ErrTimeout, phase: "call", again: ifAsked, timeout: true, leaves: true,
		cfg: aiguard.Config{CallTimeout: shortCall}, each: shortCall, control: hangs},

	// Answers that are not streams

	aiguardtest.FaultNoHeaders: {
		kind: aiguard.ErrTimeout, phase: "call", again: ifAsked, timeout: true, leaves: true,
		cfg: aiguard.Config{CallTimeout: shortCall}, each: shortCall, control: hangs},
	aiguardtest.FaultHeadersOnly: {
		kind: aiguard.ErrTimeout, phase: "call", again: ifAsked, leaves: true,
		cfg: aiguard.Config{CallTimeout: shortCall}, each: shortCall, control: hangs},
	aiguardtest.FaultByteASecond: {
		kind: aiguard.ErrTimeout, phase: "call", again: ifAsked, leaves: true,
		cfg: aiguard.Config{CallTimeout: shortCall}, each: shortCall, control: hangs},
	aiguardtest.FaultStalledError429: {
		kind: aiguard.ErrRateLimited, status: 429, retryAfter: time.Second, again: always, leaves: true,
		cfg:  aiguard.Config{CallTimeout: shortCall, Retry: aiguard.Retry{MaxAttempts: 2}},
		each: shortCall, control: hangsAndLosesTheStatus},
	aiguardtest.FaultStalledError500: {
		kind: aiguard.ErrUnavailable, status: 500, again: inference, leaves: true,
		cfg: aiguard.Config{CallTimeout: shortCall}, each: shortCall, control: hangsAndLosesTheStatus},
	aiguardtest.FaultHugeAnswer: {
		kind: aiguard.ErrResponseTooLarge, phase: "response", status: 200, max: 1 << 20, leaves: true,
		cfg: aiguard.Config{MaxResponseBytes: 1 << 20}},
	aiguardtest.FaultManyObjects: {kind: aiguard.ErrResponseTooLarge, phase: "json_shape", status: 200, max: 100_000},
	aiguardtest.FaultDeepNesting: {kind: aiguard.ErrResponseTooLarge, phase: "json_shape", status: 200, max: 100_000},
	aiguardtest.FaultGzipBomb: {
		kind: aiguard.ErrResponseTooLarge, phase: "response", status: 200, max: 1 << 20, leaves: true,
		cfg: aiguard.Config{MaxResponseBytes: 1 << 20}},
	aiguardtest.FaultGzipBombError: {
		kind: aiguard.ErrResponseTooLarge, phase: "error_body", status: 500, max: 64 << 10, leaves: true},
	aiguardtest.FaultHugeError:     {kind: aiguard.ErrUnavailable, status: 500, again: inference, leaves: true},
	aiguardtest.FaultTruncatedJSON: {kind: aiguard.ErrTruncated, status: 200, again: inference, control: fails},
	aiguardtest.FaultCutAnswer:     {kind: aiguard.ErrTruncated, status: 200, again: inference, control: fails},
	aiguardtest.FaultResetAnswer:   {kind: aiguard.ErrTruncated, status: 200, again: inference, control: fails},
	aiguardtest.FaultErrorInOK:     {kind: aiguard.ErrRateLimited, status: 200, said: true, again: always, control: succeedsWithNothing},
	aiguardtest.FaultNull:          {kind: aiguard.ErrInvalidResponse, status: 200, again: inference, control: succeedsWithNothing},
	aiguardtest.FaultNoChoices:     {kind: aiguard.ErrInvalidResponse, status: 200, again: inference, control: succeedsWithNothing},
	aiguardtest.FaultEmptyBody:     {kind: aiguard.ErrInvalidResponse, status: 200, again: inference, control: fails},
	aiguardtest.FaultNoContent:     {kind: aiguard.ErrInvalidResponse, status: 204, again: inference, control: fails},
	aiguardtest.FaultHTML:          {kind: aiguard.ErrInvalidResponse, status: 200, again: inference, control: fails},
	aiguardtest.FaultWrongType:     {kind: aiguard.ErrInvalidResponse, status: 200, again: inference, control: succeeds},
	aiguardtest.FaultTrailingBytes: {test: connectionIsReused},
	aiguardtest.FaultUndrained:     {test: connectionIsReused},
	aiguardtest.FaultErrorText:     {kind: aiguard.ErrUnavailable, status: 500, said: true, again: inference, control: showsProviderText},
	aiguardtest.FaultHTML502:       {kind: aiguard.ErrUnavailable, status: 502, again: inference, control: showsProviderText},
	aiguardtest.FaultHTML504:       {kind: aiguard.ErrUnavailable, status: 504, again: inference, control: showsProviderText},
	aiguardtest.FaultNullCode:      {kind: aiguard.ErrUnavailable, status: 500, said: true, again: inference, control: showsProviderText},
	aiguardtest.FaultNumericCode:   {kind: aiguard.ErrUnavailable, status: 500, said: true, again: inference, control: showsProviderText},
	aiguardtest.FaultFailedResponse: {
		kind: aiguard.ErrUnavailable, status: 200, said: true, again: inference,
		asks: func(c *aiguard.Client) request { return response(c.CreateResponse) }, control: succeedsWithNothing},

	// Streams

	aiguardtest.FaultStreamNoEvent: {
		kind: aiguard.ErrTimeout, phase: "first_event", again: ifAsked, timeout: true, leaves: true,
		cfg: aiguard.Config{CallTimeout: shortCall}, each: shortCall, control: hangs},
	aiguardtest.FaultStreamSilence: {
		kind: aiguard.ErrTimeout, phase: "stream_idle", text: "Hello!", leaves: true,
		cfg: aiguard.Config{StreamIdleTimeout: shortIdle}, each: shortIdle, control: hangs},
	aiguardtest.FaultStreamOnlyPings: {
		kind: aiguard.ErrTimeout, phase: "first_event", again: ifAsked, leaves: true,
		cfg: aiguard.Config{CallTimeout: shortCall}, each: shortCall, control: hangs},
	aiguardtest.FaultStreamManyPings: {text: "Hello!", control: givesUp},
	aiguardtest.FaultStreamNeverEnds: {
		kind: aiguard.ErrTimeout, phase: "stream", text: "Hel…", leaves: true,
		cfg: aiguard.Config{StreamTimeout: shortStream}, each: shortStream, control: hangs,
		or: &promise{
			kind: aiguard.ErrResponseTooLarge, phase: "response", status: 200, max: 16 << 10, text: "Hel…", leaves: true,
			cfg: aiguard.Config{MaxResponseBytes: 16 << 10}}},
	aiguardtest.FaultStreamLong: {
		text: strings.Repeat("Hi ", 18),
		cfg:  aiguard.Config{CallTimeout: 2 * shortCall, StreamIdleTimeout: 4 * shortCall}, each: 1800 * time.Millisecond,
		control: isCutByARequestTimeout},
	aiguardtest.FaultStreamHugeLine: {
		kind: aiguard.ErrResponseTooLarge, phase: "event", status: 200, max: 1 << 20, leaves: true,
		cfg: aiguard.Config{MaxEventBytes: 1 << 20}},
	aiguardtest.FaultStreamEndlessLine: {
		kind: aiguard.ErrResponseTooLarge, phase: "event", status: 200, max: 1 << 20, leaves: true,
		cfg: aiguard.Config{MaxEventBytes: 1 << 20}},
	aiguardtest.FaultStreamHugeComments: {text: strings.Repeat("Hi ", 200)},
	aiguardtest.FaultStreamNoFinish:     {kind: aiguard.ErrTruncated, status: 200, text: "Hello!", control: succeedsInPart},
	aiguardtest.FaultStreamNoFinishNoLF: {kind: aiguard.ErrTruncated, status: 200, text: "Hello!", control: succeedsInPart},
	aiguardtest.FaultStreamNoDone:       {text: "Hello!"},
	aiguardtest.FaultStreamNoDoneHeldOpen: {text: "Hello!", leaves: true,
		cfg: aiguard.Config{StreamIdleTimeout: shortIdle}, control: hangs},
	aiguardtest.FaultStreamError: {
		kind: aiguard.ErrRateLimited, status: 200, said: true, text: "Hel", control: losesTheStatus},
	aiguardtest.FaultStreamErrorOddSpacing: {
		kind: aiguard.ErrRateLimited, status: 200, said: true, text: "Hel", control: losesTheError},
	aiguardtest.FaultStreamErrorHeldOpen: {
		kind: aiguard.ErrRateLimited, status: 200, said: true, text: "Hel", leaves: true, control: hangs},
	aiguardtest.FaultStreamErrorAfterPing: {
		kind: aiguard.ErrRateLimited, status: 200, said: true, text: "Hel", control: losesTheError},
	aiguardtest.FaultStreamErrorEvent: {
		kind: aiguard.ErrRateLimited, status: 200, said: true, text: "Hel", control: losesTheError},
	aiguardtest.FaultStreamMalformed:         {kind: aiguard.ErrInvalidResponse, status: 200, text: "Hel", control: fails},
	aiguardtest.FaultStreamAnsweredJSON:      {kind: aiguard.ErrInvalidResponse, status: 200, again: inference, control: succeedsWithNothing},
	aiguardtest.FaultStreamAnsweredHTML:      {kind: aiguard.ErrInvalidResponse, status: 200, again: inference, control: succeedsWithNothing},
	aiguardtest.FaultStreamAnsweredError:     {kind: aiguard.ErrRateLimited, status: 200, said: true, again: inference, control: succeedsWithNothing},
	aiguardtest.FaultStreamCut:               {kind: aiguard.ErrTruncated, status: 200, text: "Hel", control: fails},
	aiguardtest.FaultStreamReset:             {kind: aiguard.ErrTruncated, status: 200, text: "Hel", control: fails},
	aiguardtest.FaultStreamOpenedThenNothing: {test: openedAndForgotten},
	aiguardtest.FaultStreamManyObjects:       {kind: aiguard.ErrResponseTooLarge, phase: "json_shape", status: 200, max: 100_000},

	// Refusals

	aiguardtest.FaultRetryAfter:         limited(time.Second, 0),
	aiguardtest.FaultRetryAfterDate:     limited(500*time.Millisecond, 2*time.Second),
	aiguardtest.FaultRetryAfterMS:       limited(500*time.Millisecond, 0),
	aiguardtest.FaultXMSRetryAfterMS:    limited(500*time.Millisecond, 0),
	aiguardtest.FaultRetryAfterLong:     tooLong(time.Hour),
	aiguardtest.FaultRetryAfterAbsurd:   tooLong(1e9 * time.Second),
	aiguardtest.FaultRetryAfterNegative: refused(aiguard.ErrRateLimited, 429, always),
	aiguardtest.FaultRetryAfterGarbage:  refused(aiguard.ErrRateLimited, 429, always),
	aiguardtest.FaultRetryAfterNaN:      refused(aiguard.ErrRateLimited, 429, always),
	aiguardtest.FaultInsufficientQuota:  refused(aiguard.ErrQuota, 429, never),
	aiguardtest.FaultBillingNotActive:   refused(aiguard.ErrQuota, 429, never),
	aiguardtest.FaultSpendLimit:         refused(aiguard.ErrQuota, 429, never),
	aiguardtest.FaultCreditExhausted:    refused(aiguard.ErrQuota, 429, never),
	aiguardtest.FaultSlowDown:           refused(aiguard.ErrRateLimited, 429, always),
	aiguardtest.FaultPromptTooLong:      refused(aiguard.ErrPromptTooLarge, 400, never),
	aiguardtest.FaultContentPolicy:      refused(aiguard.ErrRejected, 400, never),
	aiguardtest.FaultStatus401:          refused(aiguard.ErrUnauthorized, 401, never),
	aiguardtest.FaultStatus403:          refused(aiguard.ErrUnauthorized, 403, never),
	aiguardtest.FaultStatus408:          refused(aiguard.ErrUnavailable, 408, inference),
	aiguardtest.FaultStatus409:          refused(aiguard.ErrUnavailable, 409, inference),
	aiguardtest.FaultStatus500:          refused(aiguard.ErrUnavailable, 500, inference),
	aiguardtest.FaultStatus502:          refused(aiguard.ErrUnavailable, 502, inference),
	aiguardtest.FaultStatus503:          refused(aiguard.ErrUnavailable, 503, always),
	aiguardtest.FaultStatus504:          refused(aiguard.ErrUnavailable, 504, inference),
	aiguardtest.FaultStatus529:          refused(aiguard.ErrUnavailable, 529, always),
}

func redirected(status int, c control) promise {
	return promise{kind: aiguard.ErrInvalidResponse, phase: "headers", status: status, control: c}
}

func refused(kind aiguard.Kind, status int, a again) promise {
	return promise{kind: kind, status: status, said: true, again: a, control: showsProviderText}
}

// limited is waited for.
func limited(least, most time.Duration) promise {
	p := refused(aiguard.ErrRateLimited, 429, always)
	p.retryAfter, p.upTo = least, most
	p.cfg.Retry.MaxAttempts = 2
	return p
}

// tooLong is not.
func tooLong(d time.Duration) promise {
	p := refused(aiguard.ErrRateLimited, 429, never)
	p.retryAfter = d
	return p
}

func TestFaults(t *testing.T) {
	all := aiguardtest.Faults()
	for fault := range promises {
		require.Contains(t, all, fault, "a promise about no fault")
	}
	together(t, func(run func(string, func(*testing.T))) {
		for _, fault := range all {
			run(fault.String(), func(t *testing.T) {
				row, ok := promises[fault]
				require.True(t, ok, "nothing is promised: %s", fault.Doc())
				together(t, func(run func(string, func(*testing.T))) {
					for _, proto := range []string{"HTTP1", "HTTP2"} {
						run(proto, func(t *testing.T) {
							p := row
							switch {
							case proto == "HTTP1" && p.notOverHTTP1 != "":
								t.Skip(p.notOverHTTP1)
							case proto == "HTTP2" && p.overHTTP2 != nil:
								p.overHTTP2(&p)
							}
							p.prove(t, fault, proto)
						})
					}
				})
			})
		}
	})
}

// together runs subtests at the same time: most of them wait for most of their time. t.Parallel would let no more run than
// there are processors.
func together(t *testing.T, tests func(run func(name string, test func(*testing.T)))) {
	var wg sync.WaitGroup
	defer wg.Wait()
	tests(func(name string, test func(*testing.T)) {
		wg.Go(func() { t.Run(name, test) })
	})
}

// atOnce is how many of those may really run, so that none is late for want of a processor.
var atOnce = make(chan struct{}, runtime.GOMAXPROCS(0)+1)

// alone is a subtest that counts.
func alone(name string, t *testing.T, test func(*testing.T)) {
	atOnce <- struct{}{}
	defer func() { <-atOnce }()
	t.Run(name, test)
}

// prove runs what there is to be said about one fault over one protocol.
func (p promise) prove(t *testing.T, fault aiguardtest.Fault, proto string) {
	if p.test != nil {
		p.test(t, fault, proto)
		return
	}
	run := func(name string, test func(*testing.T)) { alone(name, t, test) }
	group, _, _ := strings.Cut(fault.String(), "/")
	run("guarded", func(t *testing.T) {
		c, srv := guarded(t, fault, proto, p.cfg)
		p.keeps(t, srv, c.Guard(), p.call(c, group == "stream"), p.attempts())
	})
	if p.or != nil {
		run("guarded, another bound", func(t *testing.T) {
			c, srv := guarded(t, fault, proto, p.or.cfg)
			p.or.keeps(t, srv, c.Guard(), p.or.call(c, group == "stream"), p.or.attempts())
		})
	}
	if p.timeout {
		run("with Retry.Timeouts", func(t *testing.T) {
			cfg := p.cfg
			cfg.Retry.Timeouts = true
			c, srv := guarded(t, fault, proto, cfg)
			p.keeps(t, srv, c.Guard(), p.call(c, group == "stream"), 3)
		})
	}
	if group == "refusal" {
		run("streamed", func(t *testing.T) {
			c, srv := guarded(t, fault, proto, p.cfg)
			p.keeps(t, srv, c.Guard(), p.call(c.With(aiguard.Call{Attempts: 1}), true), 1)
		})
	}
	if p.again != never && group != "stream" {
		run("what creates something", func(t *testing.T) { p.createsOnce(t, fault, proto) })
	}
	if p.control != nil {
		run("control", func(t *testing.T) {
			srv := faulty(t, fault, proto)
			r := newBare(t, srv, func(c *openai.Client) request { return p.rawCall(c, group == "stream") })
			p.control(t, r)
		})
	}
}

// attempts is how many there are by default.
func (p promise) attempts() int {
	switch {
	case p.again < inference:
		return 1
	case p.cfg.Retry.MaxAttempts != 0:
		return p.cfg.Retry.MaxAttempts
	}
	return 3
}

// keeps makes a call and checks all that is promised about it.
func (p promise) keeps(t *testing.T, srv *aiguardtest.Server, g *aiguard.Guard, call request, attempts int) {
	t.Helper()
	least := time.Duration(attempts)*p.each + time.Duration(attempts-1)*p.retryAfter
	most := least + slack
	if attempts > 1 {
		most += time.Duration(attempts-1) * (max(p.retryAfter, p.upTo)*5/4 - p.retryAfter) // jitter
	}
	if p.large || least == 0 {
		most += 4 * slack // to encode a large request before the clock starts, or to send a large answer
	}
	a, err := bounded(t, least, most, call)
	require.Zero(t, g.Stats().InFlight, "the slot is free when the call is over")
	p.settles(t, g.Config().Budget.(*ledger), attempts)

	if strings.HasSuffix(p.text, "…") {
		require.True(t, strings.HasPrefix(a.text, strings.TrimSuffix(p.text, "…")), "got %.100q", a.text)
	} else {
		require.Equal(t, p.text, a.text)
	}
	if p.kind == "" {
		require.NoError(t, err)
		require.Equal(t, attempts, srv.Count())
	} else {
		p.failsAsPromised(t, err, attempts)
		if p.unseen {
			require.Zero(t, srv.Count())
		} else {
			settles(t, "all requests are seen", func() bool { return srv.Count() >= attempts })
			require.Equal(t, attempts, srv.Count(), "requests")
		}
	}
	if p.leaves {
		settles(t, "the server sees that the client has left", func() bool { return srv.Disconnects() == attempts })
	}
}

func (p promise) failsAsPromised(t *testing.T, err error, attempts int) {
	t.Helper()
	e := facts(t, err, p.kind)
	require.Equal(t, p.billable(), e.MayBeBilled, "may be billed")
	require.Contains(t, strings.Split(p.phase, "|"), e.Phase)
	require.Equal(t, p.status, e.StatusCode)
	require.Equal(t, attempts, e.Attempts)
	require.Equal(t, p.max, e.Max)
	if p.upTo > 0 {
		require.GreaterOrEqual(t, e.RetryAfter, p.retryAfter)
		require.LessOrEqual(t, e.RetryAfter, p.upTo)
	} else {
		require.Equal(t, p.retryAfter, e.RetryAfter)
	}
	if p.kind == aiguard.ErrTimeout {
		require.Equal(t, p.each, e.Limit)
		require.ErrorIs(t, err, context.DeadlineExceeded)
	}
	if p.status != 0 {
		require.True(t, strings.HasPrefix(e.RequestID, "req_fake_"), "request ID %q", e.RequestID)
	}
	var said *openai.APIError
	require.Equal(t, p.said, errors.As(err, &said), "what the provider said: %v", said)
	if p.said && p.status >= 400 {
		require.Equal(t, p.status, said.HTTPStatusCode)
	}
	var kept *openai.RequestError
	if errors.As(err, &kept) {
		require.LessOrEqual(t, len(kept.Body), 64<<10)
	}
	if p.kind == aiguard.ErrTruncated {
		require.Error(t, e.Err, "the cause")
	}
	require.NotContains(t, err.Error(), "PROVIDER", "no word of the provider")
	require.NotContains(t, err.Error(), "secret", "nor the key")
	require.Less(t, len(err.Error()), 1000)
	require.NotContains(t, aiguard.UserMessage(err), "PROVIDER")
	require.NotEmpty(t, aiguard.UserMessage(err))
	require.GreaterOrEqual(t, aiguard.HTTPStatus(err), 400)
}

// settles checks what each attempt has used for the budget: what the answer says, nothing where nothing can have been, and
// else an estimate.
func (p promise) settles(t *testing.T, l *ledger, attempts int) {
	t.Helper()
	entries := l.all()
	require.Len(t, entries, attempts)
	for i, e := range entries {
		switch {
		case p.kind != "" && !p.billable():
			require.Equal(t, aiguard.Usage{}, e.used)
		case p.kind != "" || e.used.Estimated:
			require.True(t, e.used.Estimated)
			require.Equal(t, !p.large || p.texts, e.used.Input > 0, "a picture has no text")
			require.Positive(t, e.used.Output)
		default:
			require.Equal(t, cmp.Or(p.usage, aiguard.Usage{Input: 1, Output: 2}), e.used, "attempt %d", i)
		}
	}
}

// billable reports whether the provider may charge for the attempts of a call that fails: unless it has refused them, or
// they were never sent. Behind a gateway that has stopped waiting it may still work.
func (p promise) billable() bool {
	refused := p.status >= 300 && p.status != http.StatusGatewayTimeout
	unsent := p.unseen && p.again == always
	return !refused && !unsent
}

// createsOnce proves that what creates something is not created twice.
func (p promise) createsOnce(t *testing.T, fault aiguardtest.Fault, proto string) {
	attempts := 1
	if p.again == always {
		attempts = p.attempts()
	}
	cfg := p.cfg
	cfg.Retry.Timeouts = true
	c, srv := guarded(t, fault, proto, cfg)
	_, err := bounded(t, 0, time.Duration(attempts)*(p.each+max(p.retryAfter, p.upTo)*5/4)+2*slack, func(ctx context.Context) (answer, error) {
		_, err := c.CreateThread(ctx, openai.ThreadRequest{Metadata: map[string]any{"text": largeIf(p.large)}})
		return answer{}, err
	})
	var e *aiguard.Error
	if errors.As(err, &e) {
		require.Equal(t, attempts, e.Attempts)
	}
	if p.unseen {
		require.Zero(t, srv.Count())
		require.ErrorIs(t, err, p.kind)
	} else {
		require.Equal(t, attempts, srv.Count(), "requests; the error is %v", err)
	}
}

// answer is what a call brought.
type answer struct {
	text   string
	pieces int // choices, or events
}

// request is a call, with a guard or without.
type request func(ctx context.Context) (answer, error)

func (p promise) call(c *aiguard.Client, streamed bool) request {
	switch {
	case p.asks != nil:
		return p.asks(c)
	case streamed:
		return stream(c.CreateChatCompletionStream)
	}
	return plain(c.CreateChatCompletion, p.large)
}

func (promise) plainCall(c *openai.Client) request { return plain(c.CreateChatCompletion, false) }

func (p promise) rawCall(c *openai.Client, streamed bool) request {
	switch {
	case p.asks != nil:
		return response(c.CreateResponse)
	case streamed:
		return stream(c.CreateChatCompletionStream)
	}
	return plain(c.CreateChatCompletion, p.large)
}

func plain(create func(context.Context, openai.ChatCompletionRequest) (openai.ChatCompletionResponse, error), large bool) request {
	return func(ctx context.Context) (a answer, err error) {
		req := chatRequest
		if large { // an image, which is not counted as text
			req.Messages = []openai.ChatCompletionMessage{{Role: "user", MultiContent: []openai.ChatMessagePart{{
				Type:     openai.ChatMessagePartTypeImageURL,
				ImageURL: &openai.ChatMessageImageURL{URL: "data:image/png;base64," + largeIf(true)},
			}}}}
		}
		resp, err := create(ctx, req)
		for _, choice := range resp.Choices {
			a.text += choice.Message.Content
			a.pieces++
		}
		return a, err
	}
}

func largeIf(large bool) string {
	if !large {
		return ""
	}
	return largeText()
}

// largeText is more than the kernel's buffers take.
var largeText = sync.OnceValue(func() string { return strings.Repeat("A", 5<<20) })

// stream reads a stream to its end; io.EOF is no error.
func stream(create func(context.Context, openai.ChatCompletionRequest) (*openai.ChatCompletionStream, error)) request {
	return func(ctx context.Context) (a answer, err error) {
		s, err := create(ctx, chatRequest)
		if err != nil {
			return a, err
		}
		defer s.Close()
		var text strings.Builder
		for {
			ev, err := s.Recv()
			if err != nil {
				if errors.Is(err, io.EOF) {
					err = nil
				}
				a.text = text.String()
				return a, err
			}
			a.pieces++
			for _, choice := range ev.Choices {
				text.WriteString(choice.Delta.Content)
			}
		}
	}
}

func response(create func(context.Context, openai.CreateResponseRequest) (openai.CreateResponseResponse, error)) request {
	return func(ctx context.Context) (answer, error) {
		resp, err := create(ctx, openai.CreateResponseRequest{Model: "fake-model", Input: "Say hello.", Store: new(bool)})
		return answer{pieces: len(resp.Output)}, err
	}
}

// bounded makes a call, which must take from least to most.
func bounded(t *testing.T, least, most time.Duration, call request) (answer, error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context()) // no deadline: the guard must not know of it
	defer cancel()
	defer time.AfterFunc(most, cancel).Stop()
	start := time.Now()
	a, err := call(ctx)
	d := time.Since(start)
	require.GreaterOrEqual(t, d, least, "not waited as long as allowed: %v", err)
	require.Less(t, d, most, "%v", err)
	return a, err
}

// settles waits until ok holds.
func settles(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			require.Fail(t, "not in time: "+what)
		}
	}
}

// newFaultServer starts a server for a row.
func newFaultServer(t *testing.T, proto string) *aiguardtest.Server {
	t.Helper()
	var opts []aiguardtest.Option
	if strings.HasPrefix(proto, "HTTP2") {
		opts = append(opts, aiguardtest.TLS())
	}
	if strings.HasSuffix(proto, overPipes) {
		opts = append(opts, aiguardtest.Pipe())
	}
	return aiguardtest.NewServer(t, opts...)
}

// faulty starts a server that plays the fault.
func faulty(t *testing.T, fault aiguardtest.Fault, proto string) *aiguardtest.Server {
	t.Helper()
	srv := newFaultServer(t, proto)
	srv.Play(fault)
	return srv
}

// connect makes a first, good request, so that no dial and TLS handshake takes a part of the short bounds. It leaves no trace
// but the connection.
func connect(t *testing.T, srv *aiguardtest.Server, base http.RoundTripper) {
	t.Helper()
	resp, err := (&http.Client{Transport: base}).Get(srv.URL + "/models")
	require.NoError(t, err)
	_, err = io.Copy(io.Discard, resp.Body)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	settles(t, "the server is done", func() bool { return srv.Active() == 0 })
	srv.Reset()
}

// guarded makes a client of a server that plays the fault. When the test is over nothing may be left of it: no slot, no
// connection, no goroutine.
func guarded(t *testing.T, fault aiguardtest.Fault, proto string, cfg aiguard.Config, tune ...func(*http.Transport)) (*aiguard.Client, *aiguardtest.Server) {
	t.Helper()
	g, base, srv := guardedServer(t, fault, proto, cfg, tune...)
	oc := openai.DefaultConfig("sk-secret-key")
	oc.BaseURL = srv.URL
	if base != nil {
		oc.HTTPClient = &http.Client{Transport: base}
	}
	return g.Client(oc), srv
}

// guardedServer is guarded for any client: it returns what the guard is to send through, nil for its own pool.
func guardedServer(t *testing.T, fault aiguardtest.Fault, proto string, cfg aiguard.Config, tune ...func(*http.Transport)) (*aiguard.Guard, *http.Transport, *aiguardtest.Server) {
	t.Helper()
	for _, d := range []*time.Duration{&cfg.CallTimeout, &cfg.StreamIdleTimeout, &cfg.StreamTimeout} {
		if *d == 0 {
			*d = 3 * patience // a large answer takes a while on a busy machine
		}
	}
	if cfg.Retry.BaseDelay == 0 { // not to wait
		cfg.Retry.BaseDelay = time.Millisecond
	}
	cfg.Retry.Budget = aiguard.Off
	cfg.Budget = newLedger(t)
	srv := newFaultServer(t, proto)
	left := leavesNoGoroutine()
	g, err := aiguard.New(cfg)
	require.NoError(t, err)
	closeIdle := func() {}
	base := baseFor(srv, fault, proto, cfg)
	if base != nil {
		closeIdle = base.CloseIdleConnections
		for _, f := range tune {
			f(base)
		}
		if !aboutConnecting(fault) {
			connect(t, srv, base)
		}
	}
	srv.Play(fault)
	t.Cleanup(func() {
		st := g.Stats()
		assert.Zero(t, st.InFlight, "slots left behind")
		assert.Zero(t, st.Waiting, "waiters left behind")
		assert.NoError(t, g.Close())
		settles(t, "no goroutine is left", func() bool {
			closeIdle() // again: an HTTP/2 connection becomes idle a moment after its last request has been left
			return left() == ""
		})
		if fault == aiguardtest.FaultNeverRead {
			srv.Play("") // who does not read does not see the end of a connection either
		}
		settles(t, "no connection is left", func() bool { open, _ := srv.Conns(); return open == 0 })
	})
	return g, base, srv
}

// aboutConnecting: before such a fault there must be no connection.
func aboutConnecting(fault aiguardtest.Fault) bool {
	switch fault {
	case aiguardtest.FaultRefused, aiguardtest.FaultTLSStall, aiguardtest.FaultStaleKeepAlive, aiguardtest.FaultGoesDark,
		aiguardtest.FaultEOF, aiguardtest.FaultReset:
		return true
	}
	return false
}

// baseFor is what the guard sends through: where the fault is about connections its own pool, or with TLS one like it, for
// the guard's would not trust the test's certificate; else a transport without any bound of its own.
func baseFor(srv *aiguardtest.Server, fault aiguardtest.Fault, proto string, cfg aiguard.Config) *http.Transport {
	base := srv.Transport()
	if strings.HasPrefix(fault.String(), "connection/") {
		if proto == "HTTP1" {
			return nil
		}
		base.TLSHandshakeTimeout = cfg.CallTimeout
		base.MaxResponseHeaderBytes = 64 << 10
		if fault == aiguardtest.FaultGoesDark { // else they might find first that something is wrong
			base.HTTP2 = &http.HTTP2Config{SendPingTimeout: cfg.CallTimeout, PingTimeout: cfg.CallTimeout / 2}
		}
	}
	return base
}

var labels atomic.Int64

// leavesNoGoroutine marks the calling goroutine, and so all that are started from here on, by it or by those. The returned
// function unmarks it and returns the marked ones that are still there, in the form of a profile.
func leavesNoGoroutine() (left func() string) {
	id := strconv.FormatInt(labels.Add(1), 10)
	pprof.SetGoroutineLabels(pprof.WithLabels(context.Background(), pprof.Labels("fault", id)))
	return func() string {
		pprof.SetGoroutineLabels(context.Background())
		var all, left strings.Builder
		if err := pprof.Lookup("goroutine").WriteTo(&all, 1); err != nil {
			return err.Error()
		}
		for _, g := range strings.Split(all.String(), "\n\n") {
			if strings.Contains(g, `{"fault":"`+id+`"}`) {
				left.WriteString(g + "\n\n")
			}
		}
		return left.String()
	}
}

// control says how the client without a guard suffers.
type control func(t *testing.T, r *bare)

// bare is go-openai's client as it is.
type bare struct {
	srv    *aiguardtest.Server
	http   *http.Client
	call   request
	client *openai.Client
}

func newBare(t *testing.T, srv *aiguardtest.Server, call func(*openai.Client) request) *bare {
	t.Helper()
	base := srv.Transport()
	t.Cleanup(base.CloseIdleConnections)
	r := &bare{srv: srv, http: &http.Client{Transport: base}}
	oc := openai.DefaultConfig("sk-secret-key")
	oc.BaseURL = srv.URL
	oc.HTTPClient = r.http
	r.client = openai.NewClientWithConfig(oc)
	r.call = call(r.client)
	return r
}

// soon makes the call, which must be over in time.
func (r *bare) soon(t *testing.T) (answer, error) {
	t.Helper()
	return bounded(t, 0, 3*patience, r.call)
}

func hangs(t *testing.T, r *bare) {
	ctx, cancel := context.WithTimeout(t.Context(), watchdog)
	defer cancel()
	_, err := r.call(ctx)
	require.Error(t, ctx.Err(), "did not hang, but end with %v", err)
	require.Error(t, err)
}

func hangsAndHoldsTheConnection(t *testing.T, r *bare) {
	hangs(t, r)
	for deadline := time.Now().Add(watchdog); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		open, _ := r.srv.Conns()
		require.Equal(t, 1, open)
	}
}

func hangsAndLosesTheStatus(t *testing.T, r *bare) {
	ctx, cancel := context.WithTimeout(t.Context(), watchdog)
	defer cancel()
	_, err := r.call(ctx)
	require.Error(t, ctx.Err(), "did not hang, but end with %v", err)
	var said *openai.APIError
	require.False(t, errors.As(err, &said) && said.HTTPStatusCode != 0, "%v", err)
	require.NotContains(t, err.Error(), "429")
	require.NotContains(t, err.Error(), "500")
}

// fails: with an error that only its text tells from others.
func fails(t *testing.T, r *bare) {
	_, err := r.soon(t)
	require.Error(t, err)
	var said *openai.APIError
	require.False(t, errors.As(err, &said), "%v", err)
	require.LessOrEqual(t, r.srv.Count(), 1, "nor is it tried again")
}

func givesUp(t *testing.T, r *bare) {
	a, err := r.soon(t)
	require.ErrorIs(t, err, openai.ErrTooManyEmptyStreamMessages)
	require.Empty(t, a)
}

func succeeds(t *testing.T, r *bare) {
	a, err := r.soon(t)
	require.NoError(t, err)
	require.Equal(t, "Hello!", a.text)
}

func succeedsWithNothing(t *testing.T, r *bare) {
	a, err := r.soon(t)
	require.NoError(t, err)
	require.Empty(t, a)
}

func succeedsInPart(t *testing.T, r *bare) {
	a, err := r.soon(t)
	require.NoError(t, err, "not that anything were missing")
	require.NotEmpty(t, a.text)
}

func showsProviderText(t *testing.T, r *bare) {
	_, err := r.soon(t)
	require.ErrorContains(t, err, aiguardtest.ProviderText)
	require.Equal(t, 1, r.srv.Count())
}

func losesTheStatus(t *testing.T, r *bare) {
	_, err := r.soon(t)
	var said *openai.APIError
	require.ErrorAs(t, err, &said)
	require.Zero(t, said.HTTPStatusCode)
}

// losesTheError: what it says, if anything, is about something else.
func losesTheError(t *testing.T, r *bare) {
	_, err := r.soon(t)
	var said *openai.APIError
	require.False(t, errors.As(err, &said), "%v", err)
}

func isCutByARequestTimeout(t *testing.T, r *bare) {
	r.http.Timeout = 2 * shortCall
	a, err := r.soon(t)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Less(t, a.pieces, 20)
}

func followsAndLosesThePrompt(t *testing.T, r *bare) {
	_, err := r.soon(t)
	require.ErrorContains(t, err, "405")
	_, second := followed(t, r.srv)
	require.Equal(t, "GET", second.Method)
	require.Empty(t, second.Body)
}

func followsWithThePrompt(t *testing.T, r *bare) {
	succeeds(t, r)
	first, second := followed(t, r.srv)
	require.Equal(t, "POST", second.Method)
	require.Equal(t, string(first.Body), string(second.Body))
	require.Equal(t, "Bearer sk-secret-key", second.Header.Get("Authorization"))
}

func followsWithThePromptAndAnAzureKey(t *testing.T, r *bare) {
	oc := openai.DefaultAzureConfig("sk-secret-key", strings.TrimSuffix(r.srv.URL, "/v1"))
	oc.HTTPClient = r.http
	r.call = plain(openai.NewClientWithConfig(oc).CreateChatCompletion, false)
	succeeds(t, r)
	first, second := followed(t, r.srv)
	require.NotEqual(t, first.Host, second.Host)
	require.Equal(t, string(first.Body), string(second.Body))
	require.Equal(t, "sk-secret-key", second.Header.Get("Api-Key"))
}

func followed(t *testing.T, srv *aiguardtest.Server) (first, second *aiguardtest.Request) {
	t.Helper()
	reqs := srv.Requests()
	require.Len(t, reqs, 2)
	require.Contains(t, reqs[1].Path, "/moved/")
	return reqs[0], reqs[1]
}

// The rows that take more than one call.

func staleKeepAlive(t *testing.T, fault aiguardtest.Fault, proto string) {
	const backoff = patience
	alone("guarded", t, func(t *testing.T) {
		c, srv := guarded(t, fault, proto, aiguard.Config{Retry: aiguard.Retry{BaseDelay: backoff, MaxDelay: backoff}})
		call := plain(c.CreateChatCompletion, false)
		for range 3 {
			a, err := bounded(t, 0, slack, call) // without backoff
			require.NoError(t, err)
			require.Equal(t, "Hello!", a.text)
		}
		require.Equal(t, 5, srv.Count(), "the second and the third are sent again")
	})
	alone("without backoff only once", t, func(t *testing.T) {
		if proto == "HTTP2" {
			t.Skip("there is only one connection to become stale")
		}
		const backoff = 400 * time.Millisecond
		c, srv := guarded(t, fault, proto, aiguard.Config{Retry: aiguard.Retry{BaseDelay: backoff / 2, MaxDelay: backoff}})
		call := plain(c.CreateChatCompletion, false)
		twoConnections(t, srv, fault, call)
		_, err := bounded(t, backoff/2, backoff+slack, call) // half of it may be jitter
		require.NoError(t, err)
		require.Equal(t, 5, srv.Count(), "two, then one on each of them, then one on a connection of its own")
	})
	alone("what creates something", t, func(t *testing.T) {
		c, srv := guarded(t, fault, proto, aiguard.Config{})
		_, err := bounded(t, 0, slack, plain(c.CreateChatCompletion, false))
		require.NoError(t, err)
		_, err = c.CreateThread(t.Context(), openai.ThreadRequest{})
		require.Equal(t, 1, facts(t, err, aiguard.ErrUnavailable).Attempts)
		require.Equal(t, 2, srv.Count())
	})
	alone("control", t, func(t *testing.T) {
		r := newBare(t, faulty(t, fault, proto), promise{}.plainCall)
		succeeds(t, r)
		_, err := r.soon(t)
		require.Error(t, err)
		require.Equal(t, 2, r.srv.Count(), "it is not sent again")
	})
}

// twoConnections makes calls until two connections are open and idle.
func twoConnections(t *testing.T, srv *aiguardtest.Server, fault aiguardtest.Fault, call request) {
	t.Helper()
	srv.Play("")
	here := make(chan struct{}, 2)
	both := make(chan struct{})
	srv.Handle(func(*aiguardtest.Request) aiguardtest.Reply {
		here <- struct{}{}
		<-both
		return nil
	})
	errs := make(chan error, 2)
	for range 2 {
		go func() { _, err := call(t.Context()); errs <- err }()
	}
	<-here
	<-here
	close(both)
	require.NoError(t, <-errs)
	require.NoError(t, <-errs)
	srv.Handle(nil)
	open, _ := srv.Conns()
	require.Equal(t, 2, open)
	srv.Play(fault)
}

// goesDark: by the pings the connection is known to be dead before all that are sent on it have failed.
func goesDark(t *testing.T, fault aiguardtest.Fault, proto string) {
	dark := func(t *testing.T, srv *aiguardtest.Server, call request) {
		srv.Play("")
		a, err := bounded(t, 0, slack, call)
		require.NoError(t, err)
		require.Equal(t, "Hello!", a.text)
		srv.Play(fault)
	}
	recovered := func(t *testing.T, srv *aiguardtest.Server, call request) {
		for range 3 {
			a, err := bounded(t, 0, slack, call)
			require.NoError(t, err)
			require.Equal(t, "Hello!", a.text)
		}
		_, total := srv.Conns()
		require.Equal(t, 2, total)
	}
	alone("guarded, pings quicker than CallTimeout", t, func(t *testing.T) {
		const ping = 300 * time.Millisecond
		cfg := aiguard.Config{Retry: aiguard.Retry{BaseDelay: patience, MaxDelay: patience}} // it is not waited for
		c, srv := guarded(t, fault, proto, cfg, func(base *http.Transport) {
			base.HTTP2 = &http.HTTP2Config{SendPingTimeout: ping, PingTimeout: ping}
		})
		call := plain(c.CreateChatCompletion, false)
		dark(t, srv, call)
		_, err := bounded(t, ping, 2*ping+slack, call)
		require.NoError(t, err, "the connection is lost, and the request sent again on another")
		require.EqualValues(t, 1, c.Guard().Stats().Retries)
		recovered(t, srv, call)
	})
	alone("guarded, the pings of the pool", t, func(t *testing.T) {
		const limit = 2 * shortCall
		c, srv := guarded(t, fault, proto, aiguard.Config{CallTimeout: limit})
		call := plain(c.CreateChatCompletion, false)
		dark(t, srv, call)
		_, err := bounded(t, limit, limit+slack, call)
		require.Equal(t, 1, facts(t, err, aiguard.ErrTimeout).Attempts)
		// Half a limit later the connection is known to be lost: the next call finds that out, or the one after it.
		if _, err = bounded(t, 0, limit+slack, call); err != nil {
			facts(t, err, aiguard.ErrTimeout)
		}
		recovered(t, srv, call)
	})
	alone("what creates something", t, func(t *testing.T) {
		const ping = 300 * time.Millisecond
		c, srv := guarded(t, fault, proto, aiguard.Config{}, func(base *http.Transport) {
			base.HTTP2 = &http.HTTP2Config{SendPingTimeout: ping, PingTimeout: ping}
		})
		dark(t, srv, plain(c.CreateChatCompletion, false))
		_, err := bounded(t, ping, 2*ping+slack, func(ctx context.Context) (answer, error) {
			_, err := c.CreateThread(ctx, openai.ThreadRequest{})
			return answer{}, err
		})
		require.Equal(t, 1, facts(t, err, aiguard.ErrUnavailable).Attempts)
		require.Equal(t, 1, srv.Count())
	})
	alone("control", t, func(t *testing.T) {
		r := newBare(t, faulty(t, fault, proto), promise{}.plainCall)
		dark(t, r.srv, r.call)
		for range 3 {
			ctx, cancel := context.WithTimeout(t.Context(), watchdog/2)
			_, err := r.call(ctx)
			cancel()
			require.ErrorIs(t, err, context.DeadlineExceeded)
		}
		_, total := r.srv.Conns()
		require.Equal(t, 1, total, "all of them are sent into the dark")
	})
}

func connectionIsReused(t *testing.T, fault aiguardtest.Fault, proto string) {
	const calls = 20
	alone("guarded", t, func(t *testing.T) {
		c, srv := guarded(t, fault, proto, aiguard.Config{})
		for range calls {
			a, err := bounded(t, 0, slack, plain(c.CreateChatCompletion, false))
			require.NoError(t, err)
			require.Equal(t, "Hello!", a.text)
		}
		_, total := srv.Conns()
		require.LessOrEqual(t, total, 1)
		require.Equal(t, calls, srv.Count())
	})
	alone("control", t, func(t *testing.T) {
		if proto == "HTTP2" {
			t.Skip("a body that is left costs a stream, not a connection")
		}
		r := newBare(t, faulty(t, fault, proto), promise{}.plainCall)
		for range calls {
			succeeds(t, r)
		}
		_, total := r.srv.Conns()
		require.Equal(t, calls, total)
	})
}

// openedAndForgotten: a stream that nobody reads or closes any more.
func openedAndForgotten(t *testing.T, fault aiguardtest.Fault, proto string) {
	alone("guarded", t, func(t *testing.T) {
		c, srv := guarded(t, fault, proto, aiguard.Config{StreamTimeout: shortStream})
		start := time.Now()
		s, err := c.CreateChatCompletionStream(t.Context(), chatRequest)
		require.NoError(t, err)
		require.EqualValues(t, 1, c.Guard().Stats().InFlight)
		settles(t, "the slot is free", func() bool { return c.Guard().Stats().InFlight == 0 })
		require.GreaterOrEqual(t, time.Since(start), shortStream)
		require.Less(t, time.Since(start), shortStream+slack)
		settles(t, "the server sees that the client has left", func() bool { return srv.Disconnects() == 1 })
		text, err := recvAll(s) // who comes back late is told
		require.Equal(t, "Hel", text)
		e := facts(t, err, aiguard.ErrTimeout)
		require.Equal(t, "stream", e.Phase)
		require.Equal(t, shortStream, e.Limit)
	})
	alone("control", t, func(t *testing.T) {
		r := newBare(t, faulty(t, fault, proto), promise{}.plainCall)
		s, err := r.client.CreateChatCompletionStream(t.Context(), chatRequest)
		require.NoError(t, err)
		defer s.Close()
		for deadline := time.Now().Add(shortStream + watchdog); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
			require.Equal(t, 1, r.srv.Active())
		}
	})
}

// A resolver that fails is the one fault that package aiguardtest cannot play.
func TestNameThatDoesNotResolveIsUnavailable(t *testing.T) {
	dead := &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		return nil, errors.New("no name server")
	}}
	base := &http.Transport{DialContext: (&net.Dialer{Resolver: dead}).DialContext}
	c := clientOf(t, persistent, "http://provider.invalid/v1", &http.Client{Transport: base})
	for name, call := range map[string]request{
		"inference": plain(c.CreateChatCompletion, false),
		"what creates something": func(ctx context.Context) (answer, error) {
			_, err := c.CreateThread(ctx, openai.ThreadRequest{})
			return answer{}, err
		},
	} {
		_, err := bounded(t, 0, slack, call)
		e := facts(t, err, aiguard.ErrUnavailable)
		require.Equal(t, "connect", e.Phase, name)
		require.Equal(t, 3, e.Attempts, name)
		var dns *net.DNSError
		require.ErrorAs(t, err, &dns, name)
	}
}

// The caller who leaves gets its own error at once, wherever the call is: the slot and the provider are free. For the queue
// see TestWaiterThatLeavesIsRemovedAtOnce, for Do and RunTask TestCallersOwnEndPassesUnchanged, TestPanicAndGoexitLoseNothing
// and TestRunTaskIsBounded, for a Recv under way TestLeavingAStreamFreesItsSlotAtOnce.
func TestCallerThatLeavesIsGoneAtOnce(t *testing.T) {
	leave := func(t *testing.T, fault aiguardtest.Fault, proto string, call func(*aiguard.Client) request, way func(*testing.T, context.CancelFunc, *aiguardtest.Server)) {
		c, srv := guarded(t, fault, proto, aiguard.Config{MaxConcurrent: 1, Retry: aiguard.Retry{Timeouts: true}})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		ended := make(chan error, 1)
		go func() { _, err := call(c)(ctx); ended <- err }()
		way(t, cancel, srv)
		select {
		case err := <-ended:
			require.Equal(t, context.Canceled, err)
			require.Empty(t, aiguard.KindOf(err))
		case <-time.After(slack):
			require.Fail(t, "it did not let go")
		}
		st := c.Guard().Stats()
		require.Zero(t, st.InFlight)
		require.Zero(t, st.Failed+st.Timeouts+st.Retries)
		if fault != aiguardtest.FaultTLSStall && fault != aiguardtest.FaultNeverRead { // they read nothing, not even this
			settles(t, "the server sees it", func() bool { return srv.Disconnects() == 1 })
		}
		if fault == aiguardtest.FaultNeverRead {
			return // a connection that is shared stays slow, now that the server reads what is under way
		}
		srv.Play("")
		_, err := bounded(t, 0, slack, plain(c.CreateChatCompletion, false))
		require.NoError(t, err, "the slot is free")
	}
	chat := func(c *aiguard.Client) request { return plain(c.CreateChatCompletion, false) }
	streamed := func(c *aiguard.Client) request { return stream(c.CreateChatCompletionStream) }
	under := func(t *testing.T, cancel context.CancelFunc, srv *aiguardtest.Server) {
		settles(t, "the server has the request", func() bool { return srv.Active() == 1 })
		cancel()
	}
	for _, tc := range []struct {
		where string
		fault aiguardtest.Fault
		call  func(*aiguard.Client) request
		leave func(*testing.T, context.CancelFunc, *aiguardtest.Server)
	}{
		{"connecting", aiguardtest.FaultTLSStall, chat, func(t *testing.T, cancel context.CancelFunc, srv *aiguardtest.Server) {
			settles(t, "the server has the connection", func() bool { open, _ := srv.Conns(); return open == 1 })
			cancel()
		}},
		{"sending", aiguardtest.FaultNeverRead, func(c *aiguard.Client) request { return plain(c.CreateChatCompletion, true) }, under},
		{"waiting for headers", aiguardtest.FaultNoHeaders, chat, under},
		{"waiting for the body", aiguardtest.FaultHeadersOnly, chat, under},
		{"waiting for an error's body", aiguardtest.FaultStalledError500, chat, under},
		{"waiting for the first event", aiguardtest.FaultStreamNoEvent, streamed, under},
		{"reading pings", aiguardtest.FaultStreamOnlyPings, streamed, under},
		{"reading events", aiguardtest.FaultStreamNeverEnds, streamed, under},
		{"waiting for the next event", aiguardtest.FaultStreamSilence, streamed, under},
	} {
		t.Run(tc.where, func(t *testing.T) {
			for _, proto := range []string{"HTTP1", "HTTP2"} {
				t.Run(proto, func(t *testing.T) { leave(t, tc.fault, proto, tc.call, tc.leave) })
			}
		})
	}
}

// What has been closed holds no connection, whatever was under way. With HTTP/1.1 every row above checks it; HTTP/2 needs a
// process of its own, whose system trusts the test's certificate. The child's TestMain looks for goroutines.
func TestClosedGuardHoldsNoHTTP2Connection(t *testing.T) {
	const child = "AIGUARD_TEST_HTTP2_URL"
	if url := os.Getenv(child); url != "" {
		c := clientOf(t, aiguard.Config{CallTimeout: patience}, url, nil)
		s, err := c.CreateChatCompletionStream(t.Context(), chatRequest)
		require.NoError(t, err)
		require.NoError(t, s.Close())
		require.NoError(t, c.Guard().Close()) // while HTTP/2 is still about to end the stream
		return
	}
	srv := faulty(t, aiguardtest.FaultStreamSilence, "HTTP2")
	address := strings.TrimSuffix(strings.TrimPrefix(srv.URL, "https://"), "/v1")
	conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // to learn what to trust
	require.NoError(t, err)
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: conn.ConnectionState().PeerCertificates[0].Raw})
	require.NoError(t, conn.Close())
	file := filepath.Join(t.TempDir(), "cert.pem")
	require.NoError(t, os.WriteFile(file, cert, 0o600))

	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.CommandContext(t.Context(), self, "-test.run=^"+t.Name()+"$", "-test.count=1")
	cmd.Env = append(os.Environ(), child+"="+srv.URL, "SSL_CERT_FILE="+file)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%.3000s", out)
	reqs := srv.Requests()
	require.Len(t, reqs, 1)
	require.Equal(t, "HTTP/2.0", reqs[0].Proto)
}

// Hooks of net/http's trace may still run when their attempt is over: a reader that sees the first byte just as the attempt is
// given up. They must not tell the next attempt that it had a reply, nor race with it.
func TestTraceOfAnAttemptIsItsOwn(t *testing.T) {
	var first *httptrace.ClientTrace
	lost := errors.New("http2: client connection lost")
	base := roundTripper(func(req *http.Request) (*http.Response, error) {
		trace := httptrace.ContextClientTrace(req.Context())
		trace.GetConn("")
		trace.GotConn(httptrace.GotConnInfo{})
		if first == nil {
			first = trace
			return nil, io.ErrUnexpectedEOF
		}
		first.GotFirstResponseByte()
		return nil, lost
	})
	_, err := chat(t.Context(), clientOf(t, persistent, "http://provider.invalid/v1", &http.Client{Transport: base}))
	require.ErrorIs(t, err, lost)
	require.Equal(t, 3, facts(t, err, aiguard.ErrUnavailable).Attempts)
}

func TestTraceOfTheCallerIsCalledInEachAttempt(t *testing.T) {
	conns, replies := 0, 0
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
		GotConn:              func(httptrace.GotConnInfo) { conns++ },
		GotFirstResponseByte: func() { replies++ },
	})
	base := roundTripper(func(req *http.Request) (*http.Response, error) {
		trace := httptrace.ContextClientTrace(req.Context())
		trace.GetConn("")
		trace.GotConn(httptrace.GotConnInfo{})
		trace.GotFirstResponseByte()
		return nil, io.ErrUnexpectedEOF
	})
	_, err := chat(ctx, clientOf(t, persistent, "http://provider.invalid/v1", &http.Client{Transport: base}))
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	require.Equal(t, [2]int{3, 3}, [2]int{conns, replies})
}

// Interim headers are no answer: what is cut after them is as if it had been cut before.
func TestCutAfterEarlyHintsIsUnavailable(t *testing.T) {
	for name, cut := range map[string]aiguardtest.Reply{"reset": aiguardtest.ResetConn(), "closed": aiguardtest.Drop()} {
		t.Run(name, func(t *testing.T) {
			eachProtocol(t, func(t *testing.T, srv *aiguardtest.Server) {
				srv.SetDefault(func(w http.ResponseWriter, r *aiguardtest.Request) {
					w.WriteHeader(http.StatusEarlyHints)
					cut(w, r)
				})
				_, err := chat(t.Context(), newClient(t, srv, persistent))
				require.Equal(t, 3, facts(t, err, aiguard.ErrUnavailable).Attempts)
			})
		})
	}
}
