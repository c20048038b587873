package aiguard

import (
	"context"
	"hash/maphash"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// repeats remembers calls that have just failed, for SDKs whose own retries are on. The guard has already retried
// such a call, so it answers the SDK's retry with the same failure instead of sending it again. A retry is a request
// with the SDK's retry count and the same content.
type repeats struct {
	warned atomic.Bool
	seed   maphash.Seed

	mu     sync.Mutex
	failed map[uint64]failedCall
}

type failedCall struct {
	err   *Error
	until time.Time
}

const (
	repeatWindow  = time.Minute // SDKs back off for seconds
	maxRepeats    = 1024        // failures remembered
	maxRepeatBody = 4 << 10     // body of a failure; failures with larger bodies are not remembered
)

// sdkAttempt returns the number of an SDK's attempt, from 0, and how to turn the SDK's retries off. ok is false if
// the request does not have a count.
func sdkAttempt(h http.Header) (n int, off string, ok bool) {
	if count := field(h, "X-Stainless-Retry-Count"); count != "" { // openai-go, anthropic-sdk-go and related SDKs
		n, err := strconv.Atoi(count)
		return n, "option.WithMaxRetries(0)", err == nil && n >= 0
	}
	count, _, _ := strings.Cut(field(h, "Amz-Sdk-Request"), ";") // "attempt=1; max=3"
	if count == "" {
		return 0, "", false
	}
	n, err := strconv.Atoi(strings.TrimPrefix(strings.TrimSpace(count), "attempt="))
	return n - 1, "aws.Config.Retryer: aws.NopRetryer{}", err == nil && n > 0
}

// repeated returns the failure of the call that x retries, in the form its SDK expects, or nil.
func (x *exchange) repeated(ctx context.Context) *Error {
	n, off, ok := sdkAttempt(x.req.Header)
	if !ok || n == 0 {
		return nil
	}
	r := &x.guard.repeats
	if log := x.settings.cfg.Logger; log != nil && r.warned.CompareAndSwap(false, true) {
		log.LogAttrs(ctx, slog.LevelWarn, "aiguard: the SDK retries calls that the guard has already retried; switch the SDK's retries off",
			slog.String("option", off), slog.String("host", x.req.URL.Host))
	}
	key, ok := x.contentKey(x.original)
	if !ok {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	f, ok := r.failed[key]
	if !ok || time.Now().After(f.until) {
		return nil
	}
	e := *f.err // each caller gets its own copy
	return &e
}

// remember keeps a failure for a retry by the request's SDK.
func (x *exchange) remember(e *Error) {
	if _, _, ok := sdkAttempt(x.req.Header); !ok || e.refusal != nil && len(e.refusal.body) > maxRepeatBody {
		return
	}
	key, ok := x.contentKey(x.original)
	if !ok {
		return
	}
	r := &x.guard.repeats
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.failed) >= maxRepeats {
		maps.DeleteFunc(r.failed, func(_ uint64, f failedCall) bool { return now.After(f.until) })
	}
	for other := range r.failed { // any one: its retry is then sent again, which is harmless
		if len(r.failed) < maxRepeats {
			break
		}
		delete(r.failed, other)
	}
	if r.failed == nil {
		r.failed = make(map[uint64]failedCall)
	}
	r.failed[key] = failedCall{e, now.Add(repeatWindow)}
}

// contentKey returns a hash of what req, the SDK's request, asks for. All attempts of one SDK call have the same key. AWS's
// SDK numbers its calls but signs each attempt differently.
func (o *outgoing) contentKey(req *http.Request) (key uint64, ok bool) {
	var h maphash.Hash
	h.SetSeed(o.guard.repeats.seed)
	part := func(s string) { _, _ = h.WriteString(s); _ = h.WriteByte(0) }
	part(req.Method)
	part(req.URL.String())
	if id := req.Header.Get("Amz-Sdk-Invocation-Id"); id != "" {
		part(id)
		return h.Sum64(), true
	}
	for _, name := range slices.Sorted(maps.Keys(req.Header)) {
		if name == "X-Stainless-Retry-Count" {
			continue
		}
		part(name)
		for _, value := range req.Header[name] {
			part(value)
		}
	}
	switch {
	case req.Body == nil || req.Body == http.NoBody:
		return h.Sum64(), true
	case req.GetBody == nil:
		return 0, false // such a request cannot be resent
	}
	body, err := req.GetBody()
	if err != nil {
		return 0, false
	}
	o.seen = true
	defer body.Close()
	if _, err := io.Copy(&h, body); err != nil {
		return 0, false
	}
	return h.Sum64(), true
}
