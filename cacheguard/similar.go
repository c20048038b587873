package cacheguard

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aiguard-go/aiguard/internal/callctx"
)

// The defaults of Similar.
const (
	DefaultSimilarTimeout = 250 * time.Millisecond
	DefaultMaxQuestions   = 10_000
)

// Headers of similar answers. A response has the first two if Header is "similar".
const (
	SimilarityHeader = "X-Aiguard-Similarity" // cosine similarity of the two questions, such as 0.9731
	SimilarToHeader  = "X-Aiguard-Similar-To" // hash of the other question, for Transport.Reject

	// ExactHeader is a request header. A request with it gets no answer to a similar question, whatever the value of
	// the header. The provider does not see the header.
	ExactHeader = "X-Aiguard-Exact"
)

// Similar configures answers to similar questions. The zero value turns them off. See "Similar questions" in the
// package comment.
type Similar struct {
	// Embed returns a vector for each text. All vectors must have the same dimension. Embed must be safe for concurrent
	// use and return soon after ctx has ended. It runs in goroutines of the Transport for up to ten seconds. A panic in Embed
	// ends the program. ctx has the values of the caller's context. NewEmbedder returns an Embedder over a guarded client,
	// whose method Embed fits. Required
	Embed func(ctx context.Context, texts []string) ([][]float32, error)

	// Threshold is the lowest cosine similarity of two questions that share an answer. The right value depends on the
	// embedding model. A higher value means fewer false hits and fewer hits. Required, above 0 and at most 1
	Threshold float64

	Timeout time.Duration // how long a call waits for Embed. Default 250ms
	Index   Index         // keeps the vectors. Default a MemoryIndex of 10,000 questions
}

func (s *Similar) validate() error {
	switch {
	case s.Embed == nil && (s.Threshold != 0 || s.Timeout != 0 || s.Index != nil):
		return errors.New("cacheguard: Config.Similar.Embed is nil, but other fields of Config.Similar are set; " +
			"want a function such as the Embed method of NewEmbedder")
	case s.Timeout < 0:
		return fmt.Errorf("cacheguard: Config.Similar.Timeout is %v; want 0 (the default) or more", s.Timeout)
	case s.Embed != nil && !(s.Threshold > 0 && s.Threshold <= 1):
		return fmt.Errorf("cacheguard: Config.Similar.Threshold is %v; want more than 0 and at most 1, such as 0.9", s.Threshold)
	}
	return nil
}

const (
	embedTimeout = 10 * time.Second
	maxEmbedding = 64 // uses of Embed at a time; further questions are not compared
)

// similar is the part of a Transport that knows similar questions.
type similar struct {
	cfg    Similar
	own    *MemoryIndex    // the index if it is the default; else nil
	ended  *sync.WaitGroup // of the Transport
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	slots  chan struct{} // holds a value for each goroutine in the background

	embedder, index                  breaker
	hits, misses, rejected, failures atomic.Int64
}

func newSimilar(t *Transport, cfg Similar) (*similar, error) {
	s := &similar{cfg: cfg, ended: &t.ended, slots: make(chan struct{}, maxEmbedding)}
	if cfg.Index == nil {
		own, err := NewMemoryIndex(0)
		if err != nil {
			return nil, err
		}
		s.own, s.cfg.Index = own, own
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.embedder, s.index = t.newBreaker(&s.failures), t.newBreaker(&s.failures)
	return s, nil
}

func (s *similar) report(stats *Stats) {
	stats.SimilarHits, stats.SimilarMisses = s.hits.Load(), s.misses.Load()
	if s.own != nil {
		stats.Questions = s.own.Len()
	}
	stats.Rejected, stats.SimilarFailures = s.rejected.Load(), s.failures.Load()
}

// background runs work in a goroutine that Close waits for. It returns false if too many run.
func (s *similar) background(work func()) bool {
	select {
	case s.slots <- struct{}{}:
	default:
		s.failures.Add(1)
		return false
	}
	s.ended.Go(func() {
		defer func() { <-s.slots }()
		work()
	})
	return true
}

// embedding is the vector of a question, perhaps not yet computed.
type embedding struct {
	done   chan struct{} // closed when vector is final
	vector []float32     // of length 1; nil after a failure
}

// embed starts to compute the vector of q. The work continues if the callers leave.
func (s *similar) embed(ctx context.Context, q *question) *embedding {
	v := &embedding{done: make(chan struct{})}
	if !s.embedder.allows() || !s.background(func() {
		defer close(v.done)
		ctx, cancel := context.WithTimeout(callctx.Detach(ctx), embedTimeout)
		defer cancel()
		defer context.AfterFunc(s.ctx, cancel)()
		vectors, err := s.cfg.Embed(ctx, []string{q.text})
		if err == nil {
			v.vector, err = unit(vectors)
		}
		switch {
		case err == nil:
			s.embedder.succeeded()
		case s.ctx.Err() == nil:
			s.embedder.failed()
		}
	}) {
		close(v.done)
	}
	return v
}

var errVector = errors.New("cacheguard: Embed returned no usable vector")

// unit returns the only vector, scaled to length 1. It makes a copy, because the vector may belong to a cache.
func unit(vectors [][]float32) ([]float32, error) {
	if len(vectors) != 1 {
		return nil, errVector
	}
	sum := 0.
	for _, v := range vectors[0] {
		sum += float64(v) * float64(v)
	}
	length := math.Sqrt(sum)
	if !(length > 0) || math.IsInf(length, 0) { // also NaN
		return nil, errVector
	}
	scaled := make([]float32, len(vectors[0]))
	for i, v := range vectors[0] {
		scaled[i] = float32(float64(v) / length)
	}
	return scaled, nil
}

// seek returns the cached answer to the question that is most similar to q, or nil. It waits for at most
// Similar.Timeout and twice LookupTimeout.
func (t *Transport) seek(ctx context.Context, q *question, v *embedding) (*entry, Match) {
	s := t.similar
	e, m := t.find(ctx, q, v)
	if e == nil && ctx.Err() == nil {
		s.misses.Add(1)
	}
	return e, m
}

func (t *Transport) find(ctx context.Context, q *question, v *embedding) (*entry, Match) {
	s := t.similar
	patience := time.NewTimer(s.cfg.Timeout)
	defer patience.Stop()
	select {
	case <-v.done:
	case <-patience.C:
		s.failures.Add(1)
		return nil, Match{}
	case <-ctx.Done():
		return nil, Match{}
	}
	if v.vector == nil {
		return nil, Match{}
	}
	search := func(ctx context.Context) (Match, error) {
		return s.cfg.Index.Nearest(ctx, q.partition, v.vector, s.cfg.Threshold)
	}
	var m Match
	var err error
	if s.own != nil { // needs no protection
		m, err = search(ctx)
	} else {
		m, err = within(ctx, &s.index, t.cfg.LookupTimeout, search)
	}
	k, ok := parseKey(m.ID)
	if err != nil || !ok || !(m.Similarity >= s.cfg.Threshold) {
		return nil, Match{}
	}
	e, absent := t.lookup(ctx, k)
	if absent { // evicted or expired
		s.background(func() { _ = s.update(s.ctx, nil, []string{m.ID}) }) // a failure is counted
	}
	return e, m
}

// parseKey is the reverse of key.name.
func parseKey(name string) (k key, ok bool) {
	b, err := hex.DecodeString(name)
	if err != nil || len(b) != len(k) {
		return k, false
	}
	return key(b), true
}

// remember adds a question whose answer is cached to the index. It waits for its vector.
func (s *similar) remember(q *request, v *embedding) {
	<-v.done // soon, because embed limits the time
	if v.vector != nil {
		_ = s.update(s.ctx, []Item{{q.key.name(), q.question.partition, v.vector, q.ttl}}, nil) // a failure is counted
	}
}

func (s *similar) update(ctx context.Context, add []Item, remove []string) error {
	_, err := within(ctx, &s.index, writeTimeout, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, s.cfg.Index.Update(ctx, add, remove)
	})
	return err
}

// forget removes the question of an evicted answer from the default index. Another index loses the question when it is
// found and has no answer.
func (t *Transport) forget(name string) {
	if t.similar != nil && t.similar.own != nil {
		_ = t.similar.own.Update(t.similar.ctx, nil, []string{name}) // cannot fail
	}
}

type rejectKey struct{}

// mark makes resp an answer to a similar question.
func (s *similar) mark(t *Transport, resp *http.Response, m Match) {
	resp.Header.Set(SimilarityHeader, strconv.FormatFloat(m.Similarity, 'f', 4, 64))
	resp.Header.Set(SimilarToHeader, m.ID)
	reject := func(ctx context.Context) error { return t.Reject(ctx, m.ID) }
	resp.Request = resp.Request.WithContext(context.WithValue(resp.Request.Context(), rejectKey{}, reject))
}

// Reject reports that resp, an answer to a similar question, does not answer the caller's question. No other question
// gets the answer from then on. The question that it answers still gets it. Reject returns an error if resp is not an
// answer to a similar question, or if the index fails.
//
// Some SDKs, such as go-openai, return only the headers of a response. With them, use Transport.Reject.
func Reject(resp *http.Response) error {
	if resp != nil && resp.Request != nil {
		if reject, ok := resp.Request.Context().Value(rejectKey{}).(func(context.Context) error); ok {
			return reject(context.WithoutCancel(resp.Request.Context()))
		}
	}
	return errors.New("cacheguard: Reject: the response is not an answer to a similar question")
}

// Reject is the function Reject for a report that comes later or from elsewhere. similarTo is the value of
// SimilarToHeader in the response. Reject takes at most one second.
func (t *Transport) Reject(ctx context.Context, similarTo string) error {
	if t.similar == nil {
		return errors.New("cacheguard: Reject: Config.Similar is not set")
	}
	if _, ok := parseKey(similarTo); !ok {
		return fmt.Errorf("cacheguard: Reject: similarTo has %d characters; want 64 hexadecimal digits, the value of the header %s",
			len(similarTo), SimilarToHeader)
	}
	t.mu.Lock()
	closed := t.closed
	if !closed {
		t.ended.Add(1)
		defer t.ended.Done()
	}
	t.mu.Unlock()
	if closed {
		return errClosed()
	}
	if err := t.similar.update(ctx, nil, []string{similarTo}); err != nil {
		return fmt.Errorf("cacheguard: Reject: %w", err)
	}
	t.similar.rejected.Add(1)
	return nil
}
