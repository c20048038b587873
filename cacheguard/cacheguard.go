// Package cacheguard does not ask twice: an http.RoundTripper to put in front of a guard's, which keeps answers and lets
// identical requests that are in flight at the same time be one. A hit takes no slot and sends nothing.
//
//	cache, err := cacheguard.New(guard.Transport(nil), cacheguard.Config{})
//	…
//	defer cache.Close()
//	client := openai.NewClient(option.WithHTTPClient(&http.Client{Transport: cache}), option.WithMaxRetries(0))
//
// That is openai-go; any SDK that takes an http.Client does the same. go-openai keeps what the guard's own client adds to
// the transport (prompt and output limits, an *Error for each failure) if its client is put into the guard's:
//
//	client := guard.Client(oc)
//	oc.HTTPClient = &http.Client{Transport: cache}
//	client.Client = openai.NewClientWithConfig(oc)
//
// The order matters: a cache that is the base of a guard, as in guard.Client(oc) with that oc, still saves requests, but
// each hit waits for a slot. Client.With makes a client without the cache.
//
// # What is kept
//
// Complete, successful answers to chat and text completions, responses, Anthropic messages, embeddings and moderations:
// what the guard itself calls complete, so also an answer that the model ended for its length. Streams are recorded
// while they pass through and replayed as streams, event for event. Nothing else is looked at, kept or coalesced: other
// endpoints, requests that create something at the provider (store, background, conversation; of /responses all
// without "store": false, which is how that API understands silence), bodies that are not one JSON object, have a key
// twice, are larger than MaxRequestBytes or cannot be sent again (no GetBody).
//
// Where the provider rolls dice, the dice are the caller's: a request whose temperature is above 0, or absent, which means
// 1, is kept only with Sampled. Below 1e-6 counts as 0, because go-openai cannot send a 0 and math.SmallestNonzeroFloat32
// stands for it. Embeddings and moderations have no temperature.
//
// # What is the same request
//
// Same method, URL, JSON and headers; the parts go into a SHA-256 sum, and only that is kept: no key, no prompt. In the
// JSON the order of an object's fields, white space between tokens and the way a string is escaped don't matter; numbers
// are compared as they are written, so 1 and 1.0 are two requests, and large integers are never rounded. All headers
// count, except those that cannot matter (User-Agent, trace context, request and idempotency ids, X-Stainless-*), and what
// IgnoreHeaders adds. Answers are kept as they are: who can read the Store can read them.
//
// # Whose answers they are
//
// WARNING: the cache sees a request as the SDK made it. Credentials that are added behind the cache are not in the key: by
// an oauth2 transport, by a signer, by a base that takes the tenant's key from the context. Without a declaration, one
// tenant could get the answers of another. So a request is kept and coalesced only if it says whose it is:
//
//   - It carries a credential itself: Authorization, Proxy-Authorization, Cookie, Api-Key, X-Api-Key, X-Goog-Api-Key, or key
//     or api-key in the query. A placeholder such as "Bearer none" counts, and the cache cannot tell.
//
//   - Or Config.Scope names the account. Set it whenever anything behind the cache adds or replaces credentials:
//
//     cacheguard.Config{Scope: func(req *http.Request) string { return tenantOf(req.Context()) }}
//
// All other requests go straight to the provider, and Stats.Passed counts them.
//
// # Coalescing
//
// Identical requests in flight are one request, whatever their temperature: who wants several samples at once asks for n,
// gives each its own seed, or sets Policy.Bypass. Everybody reads the one answer at their own pace, those who come while
// it streams from its beginning, and under their own context: a caller's end ends nobody else's wait, and the request
// is cancelled when the last one has left. It carries the values of the first caller's context and no deadline but those of
// the guard behind. A failure reaches all who wait, and is not kept. Inside aiguard.Do a request is looked up and kept,
// but not coalesced: it uses the slot of its Do, and who holds a slot must not wait for somebody who waits for one.
//
// While an answer is within MaxEntryBytes it is recorded whole. One that grows larger is not kept and nobody can join
// it any more; its callers go on within MaxEntryBytes of each other, at the pace of the slowest. Who does not read at all for
// a second while another waits for that gets ErrTruncated.
//
// # A store that fails
//
// Answers are kept in memory, or in a Store of the user's such as redisstore's. A lookup may take LookupTimeout, then the
// provider is asked; writing happens when the callers have their answer, within a second. After a failure the store is
// left alone for a second. What it returns is checked for version, key, lengths and checksum, and is a miss if it is
// not whole. None of this fails a call.
package cacheguard

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/internal/callctx"
)

// The defaults of Config.
const (
	DefaultTTL             = time.Hour
	DefaultMaxBytes        = 64 << 20
	DefaultMaxEntryBytes   = 1 << 20
	DefaultMaxRequestBytes = 1 << 20
	DefaultLookupTimeout   = 50 * time.Millisecond
)

// Header of an answer says where it came from: "hit", kept, with its Age in seconds; "shared", of an identical request
// that was in flight; "miss", from the provider. An answer without it did not concern the cache.
const Header = "X-Aiguard-Cache"

// Config is what New needs to know: nothing. Zero means the default stated here; everything is bounded, so negative values
// are refused.
type Config struct {
	TTL             time.Duration // how long an answer is kept. 1h
	Sampled         bool          // keep answers to requests with a temperature above 0 too. false
	MaxBytes        int64         // of all answers in memory; the least useful go first. 64 MiB
	MaxEntryBytes   int64         // of one answer; a larger one is not kept. 1 MiB
	MaxRequestBytes int64         // of a request's body; a larger one goes straight on. 1 MiB
	IgnoreHeaders   []string      // request headers that make no difference, besides those that never do. None

	// Scope names the account whose answers req may get. Requests of different scopes never share an answer. "" means
	// unknown: the request goes straight to the provider. It must be safe for concurrent use. Default: the request's own
	// credentials, see "Whose answers they are".
	Scope func(req *http.Request) string

	Store         Store         // where answers are kept, instead of in memory: then MaxBytes means nothing. None
	LookupTimeout time.Duration // of that Store. 50ms

	// OnAnswer is called when the answer to a request begins, in the goroutine of its caller and with no lock held. ctx is the
	// caller's, source what Header says, and waited how long the caller has waited. first is the context of the caller whose
	// request it is: another's, if source is "shared". otelguard's Telemetry.CacheAnswer is one. None
	OnAnswer func(ctx context.Context, source string, waited time.Duration, first context.Context)
}

func (c *Config) validate() error {
	var errs []error
	nonNegative := func(field string, v int64, text any) {
		if v < 0 {
			errs = append(errs, fmt.Errorf("cacheguard: Config.%s is %v; want 0 (the default) or more", field, text))
		}
	}
	nonNegative("TTL", int64(c.TTL), c.TTL)
	nonNegative("MaxBytes", c.MaxBytes, c.MaxBytes)
	nonNegative("MaxEntryBytes", c.MaxEntryBytes, c.MaxEntryBytes)
	nonNegative("MaxRequestBytes", c.MaxRequestBytes, c.MaxRequestBytes)
	nonNegative("LookupTimeout", int64(c.LookupTimeout), c.LookupTimeout)
	for _, name := range c.IgnoreHeaders {
		if c.Scope == nil && slices.Contains(credentials, http.CanonicalHeaderKey(name)) {
			errs = append(errs, fmt.Errorf("cacheguard: Config.IgnoreHeaders has %q, which tells accounts apart; set Config.Scope to ignore it", name))
		}
	}
	return errors.Join(errs...)
}

func (c *Config) setDefaults() {
	setDefault(&c.TTL, DefaultTTL)
	setDefault(&c.MaxBytes, DefaultMaxBytes)
	setDefault(&c.MaxEntryBytes, min(DefaultMaxEntryBytes, c.MaxBytes))
	setDefault(&c.MaxRequestBytes, DefaultMaxRequestBytes)
	setDefault(&c.LookupTimeout, DefaultLookupTimeout)
}

func setDefault[T int64 | time.Duration](v *T, d T) {
	if *v == 0 {
		*v = d
	}
}

// relations checks the fields against each other, once the defaults are in.
func (c *Config) relations() error {
	switch {
	case c.MaxEntryBytes > math.MaxInt32:
		return fmt.Errorf("cacheguard: Config.MaxEntryBytes is %d; want at most %d", c.MaxEntryBytes, math.MaxInt32)
	case c.Store == nil && c.MaxEntryBytes > c.MaxBytes:
		return fmt.Errorf("cacheguard: Config.MaxEntryBytes is %d; want at most MaxBytes, %d", c.MaxEntryBytes, c.MaxBytes)
	}
	return nil
}

// Policy is the settings of one call. The zero value is valid.
type Policy struct {
	Bypass  bool          // straight to the provider: not looked up, not kept, not coalesced. false
	Refresh bool          // ask the provider, and keep its answer in place of what is kept. false
	Sampled bool          // look up and keep the answer even if the temperature is above 0. Config.Sampled
	TTL     time.Duration // how long the answer is kept; of callers who are coalesced the first one's counts. Config.TTL
}

type policyKey struct{}

// WithPolicy returns a context whose requests are cached as p says. It replaces the policy of ctx. It panics if p.TTL is
// negative.
func WithPolicy(ctx context.Context, p Policy) context.Context {
	if p.TTL < 0 {
		panic(fmt.Sprintf("cacheguard: WithPolicy: Policy.TTL is %v; want 0 or more", p.TTL))
	}
	return context.WithValue(ctx, policyKey{}, p)
}

// Stats is a snapshot of a Transport: gauges now, then counters since New.
type Stats struct {
	InFlight int   // requests to the provider, lookups and writes that are going on
	Entries  int   // answers in memory, about; 0 with a Store
	Bytes    int64 // their size

	Hits, Shared, Misses int64 // callers served from what is kept, from another's request, and requests sent on for callers
	Passed               int64 // requests that did not concern the cache
	Stored               int64 // answers kept
	Corrupt              int64 // entries that were not whole, or not ours
	StoreFailures        int64 // lookups and writes that failed or took too long
}

// Transport is an http.RoundTripper that keeps and shares answers. Make it with New, one for each guard, and Close it at
// the end. It is safe for concurrent use.
type Transport struct {
	next   http.RoundTripper
	cfg    Config
	ignore map[string]bool // canonical names
	store  Store
	memory *memory // the store, unless it is the user's

	mu      sync.Mutex
	closed  bool
	flights map[flightKey]*flight // that can be joined
	running map[*flight]struct{}
	ended   sync.WaitGroup // of running

	hits, shared, misses, passed, stored, corrupt, failures atomic.Int64
}

// New makes a Transport that sends on what it must to next, usually a guard's: next bounds the requests, since callers who
// share one cannot, and must end them with their context. It runs in a goroutine of the request's, so a panic in it ends
// the program. The zero Config is valid; a field out of range is an error that names the field, its value and what is allowed.
func New(next http.RoundTripper, cfg Config) (*Transport, error) {
	if next == nil {
		return nil, errors.New("cacheguard: next is nil; want the RoundTripper to ask, such as guard.Transport(nil)")
	}
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	cfg.setDefaults()
	if err := cfg.relations(); err != nil {
		return nil, err
	}
	t := &Transport{next: next, cfg: cfg, ignore: ignored(cfg.IgnoreHeaders),
		flights: map[flightKey]*flight{}, running: map[*flight]struct{}{}}
	if cfg.Store != nil {
		t.store = &bounded{born: time.Now(), store: cfg.Store, lookup: cfg.LookupTimeout, failures: &t.failures}
		return t, nil
	}
	m, err := newMemory(cfg.MaxBytes)
	if err != nil {
		return nil, err
	}
	t.memory, t.store = m, m
	return t, nil
}

// RoundTrip answers req from what is kept, from an identical request in flight, or from next.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	policy, _ := req.Context().Value(policyKey{}).(Policy)
	q, err := t.read(req, policy)
	if err != nil {
		return nil, err
	}
	if q.mode == apart {
		t.passed.Add(1)
		return t.next.RoundTrip(q.send)
	}
	heeded, unheed := callctx.Heed(req)
	ctx := heeded.Context()
	if ctx.Err() != nil {
		unheed()
		return nil, callctx.Err(ctx)
	}
	joined := time.Now()
	r, err := t.join(ctx, q)
	if err != nil {
		unheed()
		return nil, err
	}
	r.unheed = unheed
	resp, err := r.response(req)
	if err == nil && t.cfg.OnAnswer != nil {
		t.tell(r, resp.Header.Get(Header), time.Since(joined))
	}
	return resp, err
}

// tell calls OnAnswer. A caller whom that throws out has no answer to close.
func (t *Transport) tell(r *reader, source string, waited time.Duration) {
	returned := false
	defer func() {
		if !returned {
			r.Close()
		}
	}()
	t.cfg.OnAnswer(r.ctx, source, waited, r.f.q.send.Context())
	returned = true
}

// CloseIdleConnections lets http.Client.CloseIdleConnections reach next.
func (t *Transport) CloseIdleConnections() {
	if c, ok := t.next.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// Stats returns a snapshot.
func (t *Transport) Stats() Stats {
	t.mu.Lock()
	inFlight := len(t.running)
	t.mu.Unlock()
	s := Stats{InFlight: inFlight, Hits: t.hits.Load(), Shared: t.shared.Load(), Misses: t.misses.Load(),
		Passed: t.passed.Load(), Stored: t.stored.Load(), Corrupt: t.corrupt.Load(), StoreFailures: t.failures.Load()}
	if t.memory != nil {
		s.Entries, s.Bytes = t.memory.size()
	}
	return s
}

// Close ends what is in flight with ErrClosed, waits until it has ended, which next and the Store bound, and frees what the
// Transport holds. Later requests get ErrClosed; bodies that are whole can still be read. To let callers finish first,
// call the guard's Shutdown. It is idempotent, and always returns nil.
func (t *Transport) Close() error {
	t.mu.Lock()
	first := !t.closed
	t.closed = true
	running := slices.Collect(maps.Keys(t.running))
	t.mu.Unlock()
	for _, f := range running {
		f.end(errClosed())
		f.cancel()
	}
	t.ended.Wait()
	if first && t.memory != nil {
		t.memory.close()
	}
	return nil
}

func errClosed() error { return &aiguard.Error{Kind: aiguard.ErrClosed} }

// join finds the flight of q, or starts it, and returns the caller's place in it.
func (t *Transport) join(ctx context.Context, q *request) (*reader, error) {
	alone := callctx.HoldsSlot(ctx)
	key := flightKey{q.key, q.mode}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, errClosed()
	}
	if !alone {
		if f := t.flights[key]; f != nil {
			if r := f.admit(ctx); r != nil {
				return r, nil
			}
		}
	}
	f := newFlight(t, q)
	fctx := ctx
	if !alone {
		fctx = context.WithoutCancel(ctx)
		t.flights[key] = f
	}
	fctx, f.cancel = context.WithCancel(fctx)
	r := f.admit(ctx)
	r.first = true
	t.running[f] = struct{}{}
	t.ended.Go(func() { f.run(fctx) })
	return r, nil
}

// unlist makes sure that nobody finds f any more.
func (t *Transport) unlist(f *flight) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if key := (flightKey{f.q.key, f.q.mode}); t.flights[key] == f {
		delete(t.flights, key)
	}
}
