// Package cacheguard is an http.RoundTripper that caches answers and coalesces identical requests in flight. Put it
// in front of a guard's transport. A cache hit takes no slot and sends nothing to the provider.
//
//	cache, err := cacheguard.New(guard.Transport(nil), cacheguard.Config{})
//	…
//	defer cache.Close()
//	client := openai.NewClient(option.WithHTTPClient(&http.Client{Transport: cache}), option.WithMaxRetries(0))
//
// This example uses openai-go. Any SDK that accepts an http.Client works the same way. With go-openai, put the cached
// client into the guard's client. This keeps the features that the guard's client adds to the transport: prompt
// limits, output limits, and an *Error for each failure.
//
//	client := guard.Client(oc)
//	oc.HTTPClient = &http.Client{Transport: cache}
//	client.Client = openai.NewClientWithConfig(oc)
//
// The order matters. If the cache is behind the guard, as in guard.Client(oc) with this oc, each hit waits for a
// slot. Client.With returns a client without the cache.
//
// # What is cached
//
// The cache keeps complete, successful answers to chat and text completions, responses, Anthropic messages,
// embeddings and moderations. An answer is complete by the same rules as in the guard, so an answer cut at its token
// limit counts as complete. Streams are recorded while they pass through and replayed as streams, event for event.
//
// All other requests pass through without caching or coalescing:
//
//   - requests to other endpoints
//   - requests that create something at the provider (store, background, conversation); for /responses this is every
//     request without "store": false, because that API stores by default
//   - bodies that are not one JSON object, that have a duplicate key, or that are larger than MaxRequestBytes
//   - bodies that cannot be sent again (no GetBody)
//
// Answers with a temperature above 0 are random. They are cached only with Sampled. An absent temperature means 1.
// Temperatures below 1e-6 count as 0, because go-openai cannot send 0 and its users send math.SmallestNonzeroFloat32
// instead. Embeddings and moderations have no temperature and are always cached.
//
// # Cache keys
//
// Two requests are identical if their method, URL, JSON and headers are the same. The key is a SHA-256 sum of these
// parts; the cache keeps no API key and no prompt. In the JSON, the order of fields, white space and the escaping of
// strings do not matter. Numbers are compared as text, so 1 and 1.0 differ, and large integers are never rounded. All
// headers count, except User-Agent, trace context, request IDs, idempotency IDs, X-Stainless-* and those in
// IgnoreHeaders. Answers are stored unencrypted, so everyone who can read the Store can read them.
//
// # Separating accounts
//
// WARNING: The cache sees a request as the SDK made it. It does not see credentials that are added behind the cache
// by an oauth2 transport, a signer, or a base transport that takes the tenant's key from the context. Such
// credentials are not in the cache key, so one tenant could get the answers of another. The cache therefore keeps and
// coalesces a request only if the request identifies its account in one of two ways:
//
//   - It carries a credential: Authorization, Proxy-Authorization, Cookie, Api-Key, X-Api-Key, X-Goog-Api-Key, or key
//     or api-key in the query. The cache cannot detect a placeholder such as "Bearer none", which counts as a
//     credential.
//   - Config.Scope returns the name of the account.
//
// Set Scope whenever a layer behind the cache adds or replaces credentials:
//
//	cacheguard.Config{Scope: func(req *http.Request) string { return tenantOf(req.Context()) }}
//
// All other requests go straight to the provider, and Stats.Passed counts them.
//
// # Coalescing
//
// Identical requests in flight are coalesced into one, whatever their temperature. To get several samples at once,
// request n choices, give each request its own seed, or set Policy.Bypass. Each caller reads the shared answer at its
// own pace and under its own context. A caller that joins while the answer streams reads it from the start. When a
// caller leaves, the others continue. When the last caller leaves, the request is cancelled. The request carries the
// values of the first caller's context. Its only deadlines are those of the guard behind the cache. A failure reaches
// all waiting callers and is not cached.
//
// A request inside aiguard.Do is looked up and cached but not coalesced. It uses the slot of its Do, and a slot's
// holder must not wait for a caller that waits for a slot.
//
// The cache records an answer of up to MaxEntryBytes completely. A larger answer is not cached, and no further caller
// can join it. Its callers then read within MaxEntryBytes of each other, at the pace of the slowest. A caller that
// does not read for one second while another caller waits for it gets ErrTruncated.
//
// # Similar questions
//
// With Config.Similar, a question can also get the cached answer to a question that means the same:
//
//	embedder, err := cacheguard.NewEmbedder(guard.Client(oc), cacheguard.EmbedderConfig{})
//	…
//	cacheguard.Config{Similar: cacheguard.Similar{Embed: embedder.Embed, Threshold: 0.9}}
//
// The cache compares the vectors of two questions by their cosine similarity. A vector hardly shows a negation, another
// number or another name. So a guard checks the words first. In an English question all words must be the same, in the same
// order, except for:
//
//   - a list of words that change no meaning, such as "the" and, where the question begins, "please" and "can you explain"
//   - a list of synonyms and number words, such as "remove" and "delete"
//   - capital letters, and the punctuation of sentences
//
// A word that is on no list counts as a name, and its plural as another one. Prepositions, symbols, units and brackets must
// be equal. The guard misses many questions that mean the same, in particular those with another word order.
//
// The lists are English. They apply to a question with a word that only English has, such as "what" or "how", and with no
// other letters than English has. In all other questions only capital letters and the punctuation of sentences may differ.
//
// Only the text of the question may differ. The URL, the headers, the Scope, the tenant of aiguard.WithCall, the model,
// the system prompt, the tools and all parameters must be equal. The cache compares only requests that it may answer from
// the cache, and of these only chats with a single question: one user message of one text, after any system messages. It
// does not compare
//
//   - requests with earlier answers, results of tools, images or other parts
//   - questions longer than MaxQuestionBytes, and those without a word
//   - requests with the header ExactHeader, and those with Policy.Bypass or Policy.Refresh
//
// A similar answer has the value "similar" in Header, and the headers SimilarityHeader and SimilarToHeader. If it does not
// fit the question, report that with Reject. The cache keeps the vector of each question, but not its text.
//
// A slow or failing Embed or Index never fails a call. A call waits for Embed for at most Similar.Timeout, and then for the
// Index and the Store for at most LookupTimeout each. After that the question counts as a miss. Embed continues in the
// background, so that the answer can be found by later questions. After a failure, Embed or Index is not used for one
// second. At most 64 embeddings are computed at a time. Further questions are not compared. Close ends all of them.
//
// # Store failures
//
// Answers are kept in memory, or in a Store such as redisstore. A failing Store never fails a call:
//
//   - A lookup that takes longer than LookupTimeout counts as a miss.
//   - Writes start when the callers have their answer, and time out after one second.
//   - After a failure the Store is not used for one second.
//   - Each entry is checked for version, key, lengths and checksum. An invalid entry is a miss.
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
	"github.com/aiguard-go/aiguard/internal/errtree"
)

// The defaults of Config.
const (
	DefaultTTL             = time.Hour
	DefaultMaxBytes        = 64 << 20
	DefaultMaxEntryBytes   = 1 << 20
	DefaultMaxRequestBytes = 1 << 20
	DefaultLookupTimeout   = 50 * time.Millisecond
)

// Header is the response header that tells where an answer came from. "hit" is a cached answer, with its Age in
// seconds. "similar" is the cached answer to a similar question, also with its Age. "shared" is the answer of an
// identical request in flight. "miss" is an answer from the provider. A response without the header bypassed the cache.
const Header = "X-Aiguard-Cache"

// Config configures a Transport. The zero value is valid. Zero means the default, and negative values are rejected.
type Config struct {
	TTL             time.Duration // lifetime of a cached answer. Default 1h
	Sampled         bool          // also cache answers to requests with a temperature above 0. Default false
	MaxBytes        int64         // total size of the answers in memory; the least useful are evicted first. Default 64 MiB
	MaxEntryBytes   int64         // size of one answer; a larger answer is not cached. Default 1 MiB
	MaxRequestBytes int64         // size of a request body; a larger request is not cached. Default 1 MiB
	IgnoreHeaders   []string      // further request headers that do not affect the answer. Default none

	// Scope returns the name of the account of req. Requests of different scopes never share an answer. With "" the
	// request goes straight to the provider. Scope must be safe for concurrent use. Default: the request's own
	// credentials; see "Separating accounts".
	Scope func(req *http.Request) string

	// Similar answers a question from the cached answer to a question that means the same. Default off; see "Similar
	// questions".
	Similar Similar

	Store         Store         // keeps the answers instead of memory; MaxBytes then has no effect. Default none
	LookupTimeout time.Duration // for one lookup in Store. Default 50ms

	// OnAnswer is called when the answer to a request begins, in the goroutine of the caller and with no lock held. ctx is
	// the caller's context, source is the value of Header, and waited is how long the caller has waited. first is the context
	// of the caller who sent the request. If source is "shared", that is another caller. Set it to the method CacheAnswer
	// of otelguard's Telemetry for traces and metrics. Default none
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
	present := func(field string, v any) { // it may be an interface that holds a nil pointer
		if v != nil && errtree.IsNil(v) {
			errs = append(errs, fmt.Errorf("cacheguard: Config.%s is a nil %T; want nil for memory, or one that is not nil", field, v))
		}
	}
	present("Store", c.Store)
	present("Similar.Index", c.Similar.Index)
	if err := c.Similar.validate(); err != nil {
		errs = append(errs, err)
	}
	for _, name := range c.IgnoreHeaders {
		if c.Scope == nil && slices.Contains(credentials, http.CanonicalHeaderKey(name)) {
			errs = append(errs, fmt.Errorf("cacheguard: Config.IgnoreHeaders has %q, which identifies an account; set Config.Scope to ignore it", name))
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
	setDefault(&c.Similar.Timeout, DefaultSimilarTimeout)
}

func setDefault[T int64 | time.Duration](v *T, d T) {
	if *v == 0 {
		*v = d
	}
}

// relations checks the relations between fields. It runs after setDefaults.
func (c *Config) relations() error {
	switch {
	case c.MaxEntryBytes > math.MaxInt32:
		return fmt.Errorf("cacheguard: Config.MaxEntryBytes is %d; want at most %d", c.MaxEntryBytes, math.MaxInt32)
	case c.Store == nil && c.MaxEntryBytes > c.MaxBytes:
		return fmt.Errorf("cacheguard: Config.MaxEntryBytes is %d; want at most MaxBytes, %d", c.MaxEntryBytes, c.MaxBytes)
	}
	return nil
}

// Policy configures the caching of one call. The zero value is valid.
type Policy struct {
	Bypass  bool          // send straight to the provider, without lookup, caching or coalescing. Default false
	Refresh bool          // ask the provider and replace the cached answer. Default false
	Sampled bool          // use the cache even if the temperature is above 0. Default Config.Sampled
	TTL     time.Duration // lifetime of the cached answer; the first of coalesced callers sets it. Default Config.TTL
}

type policyKey struct{}

// WithPolicy returns a context whose requests are cached according to p. p replaces the policy of ctx. WithPolicy
// panics if p.TTL is negative.
func WithPolicy(ctx context.Context, p Policy) context.Context {
	if p.TTL < 0 {
		panic(fmt.Sprintf("cacheguard: WithPolicy: Policy.TTL is %v; want 0 or more", p.TTL))
	}
	return context.WithValue(ctx, policyKey{}, p)
}

// Stats is a snapshot of a Transport: gauges first, then counters since New.
type Stats struct {
	InFlight int   // requests to the provider, lookups and writes in progress
	Entries  int   // approximate number of answers in memory; 0 with a Store
	Bytes    int64 // approximate size of those answers

	Questions            int   // questions in the default index of Similar
	Hits, Shared, Misses int64 // callers served from the cache, callers that shared a request, and requests sent to the provider
	Passed               int64 // requests that bypassed the cache
	Stored               int64 // answers cached
	Corrupt              int64 // invalid entries found in the store
	StoreFailures        int64 // lookups and writes that failed or timed out

	SimilarHits, SimilarMisses int64 // questions answered from a similar one, and questions without a similar one
	Rejected                   int64 // similar answers that Reject has reported as wrong
	SimilarFailures            int64 // uses of Similar.Embed and Similar.Index that failed, timed out or were left out
}

// Transport is an http.RoundTripper that caches and coalesces requests. It is safe for concurrent use. Create one per
// guard with New, and call Close when done.
type Transport struct {
	next    http.RoundTripper
	cfg     Config
	ignore  map[string]bool // canonical header names
	store   Store
	memory  *memory  // the default store; nil with Config.Store
	similar *similar // nil without Config.Similar

	mu      sync.Mutex
	closed  bool
	flights map[flightKey]*flight // flights that callers can join
	running map[*flight]struct{}
	ended   sync.WaitGroup // waits for all running flights

	hits, shared, misses, passed, stored, corrupt, failures atomic.Int64
}

// New returns a Transport that sends requests to next, usually a guard's transport. next must limit the duration of
// requests, because coalesced callers do not pass on their deadlines. next must also stop when the request's context
// ends. next runs in a separate goroutine, so a panic in next ends the program. The zero Config is valid. New returns
// an error that names each invalid field, its value and what is allowed.
func New(next http.RoundTripper, cfg Config) (*Transport, error) {
	if next == nil {
		return nil, errors.New("cacheguard: next is nil; want a RoundTripper such as guard.Transport(nil)")
	}
	err := cfg.validate()
	if err != nil {
		return nil, err
	}
	cfg.setDefaults()
	if err := cfg.relations(); err != nil {
		return nil, err
	}
	t := &Transport{next: next, cfg: cfg, ignore: ignored(cfg.IgnoreHeaders),
		flights: map[flightKey]*flight{}, running: map[*flight]struct{}{}}
	if cfg.Similar.Embed != nil {
		if t.similar, err = newSimilar(t, cfg.Similar); err != nil {
			return nil, err
		}
	}
	if cfg.Store != nil {
		t.store = &bounded{store: cfg.Store, lookup: cfg.LookupTimeout, breaker: t.newBreaker(&t.failures)}
		return t, nil
	}
	m, err := newMemory(cfg.MaxBytes, t.forget)
	if err != nil {
		return nil, err
	}
	t.memory, t.store = m, m
	return t, nil
}

// RoundTrip returns a cached answer, joins an identical request in flight, or sends req to next.
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

// tell calls OnAnswer. If OnAnswer panics, tell closes the answer, because its caller never gets it.
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

// CloseIdleConnections closes the idle connections of next if next supports that.
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
	if t.similar != nil {
		t.similar.report(&s)
	}
	return s
}

// Close ends requests in flight with ErrClosed, waits until they have ended, and frees the cache. next and the Store
// determine how long this takes. Later requests get ErrClosed. Complete response bodies can still be read. To let
// callers finish first, call the guard's Shutdown before Close. Close may be called more than once and always returns
// nil.
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
	if t.similar != nil {
		t.similar.cancel()
	}
	t.ended.Wait()
	if first && t.memory != nil {
		t.memory.close()
	}
	return nil
}

func errClosed() error { return &aiguard.Error{Kind: aiguard.ErrClosed} }

// join finds or starts the flight for q and returns the caller's reader of it.
func (t *Transport) join(ctx context.Context, q *request) (*reader, error) {
	alone := callctx.HoldsSlot(ctx)
	key := q.flightKey()
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

// unlist removes f from the flights that callers can join.
func (t *Transport) unlist(f *flight) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if key := f.q.flightKey(); t.flights[key] == f {
		delete(t.flights, key)
	}
}
