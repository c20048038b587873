package cacheguard

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/internal/callctx"
)

// errNoAnswer ends a flight if next ends its goroutine with runtime.Goexit.
var errNoAnswer = errors.New("cacheguard: next returned nothing")

// patience is how long a caller may stop reading while others wait for a large answer to continue.
const patience = time.Second

// errBehind is the cause of the error for a caller that falls out of the window of a large answer.
var errBehind = errors.New("cacheguard: the caller stopped reading for too long while it shared an answer larger than MaxEntryBytes")

// flightKey identifies a flight. Callers with different modes do not share a flight, and neither do callers of whom
// only one accepts the answer to a similar question.
type flightKey struct {
	key     key
	mode    mode
	similar bool
}

func (q *request) flightKey() flightKey { return flightKey{q.key, q.mode, q.question != nil} }

// flight is one request in progress, with its lookup and its write. It runs in its own goroutine, and each caller is
// only a reader. x/sync/singleflight does not fit, because a caller can neither leave a call nor join an answer that
// has started.
//
// buf holds the answer from offset base. It holds the whole answer until the flight is sealed because the answer is
// too large to cache. Only run's goroutine writes buf.
type flight struct {
	t      *Transport
	q      *request
	cancel context.CancelFunc

	mu      sync.Mutex
	changed chan struct{} // closed and replaced when a field below changes
	readers map[*reader]struct{}
	left    bool           // all callers have left and the request is being cancelled
	sealed  bool           // bytes before base are gone
	head    *http.Response // without a body; nil until the response has started
	facts   error          // the guard's error if head is a failure
	cached  string         // "hit" or "similar" for an answer from the cache
	match   Match          // the question whose answer it is, if cached is "similar"
	buf     []byte
	base    int64
	err     error // end of the answer, io.EOF if complete; nil while in progress
	landed  bool  // run has ended; no caller can join
}

func newFlight(t *Transport, q *request) *flight {
	return &flight{t: t, q: q, changed: make(chan struct{}), readers: map[*reader]struct{}{}}
}

// change wakes all waiters of f. The caller holds f.mu.
func (f *flight) change() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// run runs the flight. ctx ends when the last caller has left.
func (f *flight) run(ctx context.Context) {
	defer func() {
		f.t.unlist(f)
		f.end(errNoAnswer)
		f.land()
		f.cancel()
		f.t.mu.Lock()
		delete(f.t.running, f)
		f.t.mu.Unlock()
	}()
	if f.q.mode == cached {
		if e, _ := f.t.lookup(ctx, f.q.key); e != nil {
			f.serve(e, "hit", Match{})
			return
		}
	}
	var v *embedding
	if f.q.question != nil && ctx.Err() == nil {
		v = f.t.similar.embed(ctx, f.q.question)
		if f.q.mode == cached {
			if e, m := f.t.seek(ctx, f.q.question, v); e != nil {
				f.serve(e, "similar", m)
				return
			}
		}
	}
	if f.q.mode == cached && ctx.Err() != nil {
		return // all callers have left
	}
	f.t.misses.Add(1)
	resp, err := f.t.next.RoundTrip(f.q.outgoing(ctx))
	if err == nil && resp == nil {
		err = fmt.Errorf("cacheguard: RoundTripper %T returned neither a response nor an error", f.t.next)
	}
	if err != nil {
		f.t.unlist(f)
		f.end(err)
		return
	}
	if resp.Body == nil { // tolerated, as in http.Client
		resp.Body = http.NoBody
	}
	if resp.Header == nil {
		resp.Header = http.Header{}
	}
	defer resp.Body.Close()
	f.begin(resp, "", Match{})
	err = f.record(ctx, resp.Body)
	whole := !f.sealed && complete(f.q, resp, f.buf, err == io.EOF)
	if whole {
		err = io.EOF
	}
	keep := whole && f.q.mode != coalesced
	answer := &entry{stored: time.Now(), header: resp.Header, body: f.buf}
	kept := false
	if keep && f.t.memory != nil { // memory is fast: the caller's next request should be a hit
		kept = f.t.keep(ctx, f.q, answer)
		keep = false
	}
	if !keep || f.q.mode != cached {
		f.t.unlist(f) // new callers must not get the answer of a finished request
	}
	f.end(err)
	if keep {
		kept = f.t.keep(ctx, f.q, answer)
	}
	if kept && v != nil {
		f.t.similar.remember(f.q, v)
	}
}

// serve serves the answer from a cache entry.
func (f *flight) serve(e *entry, source string, m Match) {
	e.header.Set("Age", strconv.FormatInt(max(0, int64(time.Since(e.stored).Seconds())), 10))
	resp := &http.Response{Status: "200 OK", StatusCode: http.StatusOK, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: e.header, ContentLength: int64(len(e.body))}
	if f.q.stream {
		resp.ContentLength = -1
	}
	f.mu.Lock()
	f.buf = e.body
	f.mu.Unlock()
	f.begin(resp, source, m)
	f.end(io.EOF)
}

// begin publishes the response before its body is complete.
func (f *flight) begin(resp *http.Response, cached string, m Match) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return
	}
	head := *resp
	f.facts, _ = callctx.Facts(resp).(error)
	head.Body, head.Request, head.Trailer = nil, nil, nil
	f.head, f.cached, f.match = &head, cached, m
	f.change()
}

// end records how the answer ended, unless that is already recorded.
func (f *flight) end(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.err = err
		f.change()
	}
}

// land records that run has ended.
func (f *flight) land() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.landed = true
	f.forget()
}

// forget frees the answer after the last reader has left. Without it, a response kept by its caller would keep the
// answer in memory. The caller holds f.mu.
func (f *flight) forget() {
	if f.landed && len(f.readers) == 0 {
		f.buf = nil
	}
}

// record reads the body to its end and returns how it ended.
func (f *flight) record(ctx context.Context, body io.Reader) error {
	for {
		room, err := f.room(ctx)
		if err != nil {
			return err
		}
		n, err := body.Read(room)
		f.mu.Lock()
		f.buf = f.buf[:len(f.buf)+n]
		f.change()
		f.mu.Unlock()
		if err != nil {
			return err
		}
	}
}

// room returns free space behind buf. The buffer has up to MaxEntryBytes+1 bytes; the extra byte shows that the
// answer is too large to cache. From then on the buffer is a sliding window, and room waits until the window can
// move.
func (f *flight) room(ctx context.Context) ([]byte, error) {
	limit := int(f.t.cfg.MaxEntryBytes) + 1
	var stuck *time.Timer
	for {
		f.mu.Lock()
		full := len(f.buf) == limit
		if full {
			f.moveOn()
		} else if len(f.buf) == cap(f.buf) {
			size := min(max(4<<10, 4*cap(f.buf), int(min(f.head.ContentLength, int64(limit)))+1), limit)
			f.buf = append(make([]byte, 0, size), f.buf...)
		}
		room, changed := f.buf[len(f.buf):min(cap(f.buf), limit)], f.changed
		f.mu.Unlock()
		if full {
			f.t.unlist(f)
		}
		if len(room) > 0 {
			return room, nil
		}
		if stuck == nil {
			stuck = time.NewTimer(patience)
			defer stuck.Stop()
		}
		select {
		case <-changed:
		case <-stuck.C:
			f.shed()
			stuck.Reset(patience)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// moveOn removes the bytes that all callers have read and seals the flight.
func (f *flight) moveOn() {
	f.sealed = true
	slowest := f.base + int64(len(f.buf))
	for r := range f.readers {
		slowest = min(slowest, r.at)
	}
	f.buf = f.buf[:copy(f.buf, f.buf[slowest-f.base:])]
	f.base = slowest
}

// shed removes the callers at the start of the window if a caller at its end waits for more.
func (f *flight) shed() {
	f.mu.Lock()
	defer f.mu.Unlock()
	waiting := false
	for r := range f.readers {
		waiting = waiting || r.at == f.base+int64(len(f.buf))
	}
	if !waiting {
		return
	}
	for r := range f.readers {
		if r.at == f.base {
			r.err = &aiguard.Error{Kind: aiguard.ErrTruncated, Op: f.q.endpoint.Op(), StatusCode: f.head.StatusCode, Err: errBehind}
			delete(f.readers, r)
		}
	}
	f.change()
}

// admit adds a caller, or returns nil if it is too late to join.
func (f *flight) admit(ctx context.Context) *reader {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.left || f.sealed {
		return nil
	}
	r := &reader{f: f, ctx: ctx, unheed: func() {}, closing: make(chan struct{})}
	f.readers[r] = struct{}{}
	r.stop = context.AfterFunc(ctx, r.leave)
	return r
}

// reader is one caller of a flight and its response body. It reads at its own pace until its context ends.
type reader struct {
	f       *flight
	ctx     context.Context
	first   bool          // this caller started the flight
	stop    func() bool   // stops the context.AfterFunc
	unheed  func()        // stops callctx.Heed
	closing chan struct{} // wakes this reader's Read; a change of the flight would wake all readers

	// Guarded by f.mu.
	at     int64 // offset in the answer
	err    error // ends this reader
	closed bool
}

// leave removes the caller from the flight. It cancels the flight if no caller is left.
func (r *reader) leave() {
	f := r.f
	f.mu.Lock()
	_, interested := f.readers[r]
	delete(f.readers, r)
	last := interested && len(f.readers) == 0 && f.err == nil
	f.left = f.left || last
	if f.sealed {
		f.change() // the window may now move
	}
	f.forget()
	f.mu.Unlock()
	if last {
		f.t.unlist(f)
		f.cancel()
	}
}

// response waits for the response to start.
func (r *reader) response(req *http.Request) (*http.Response, error) {
	f := r.f
	for {
		f.mu.Lock()
		head, err, changed := f.head, f.err, f.changed
		f.mu.Unlock()
		switch {
		case head != nil:
			return r.wrap(head, req), nil
		case err != nil:
			r.count("")
			r.Close()
			return nil, r.own(err)
		}
		select {
		case <-changed:
		case <-r.ctx.Done():
			r.Close()
			return nil, callctx.Err(r.ctx)
		}
	}
}

// wrap returns the caller's own response, made from the shared one. What begin has set does not change any more.
func (r *reader) wrap(head *http.Response, req *http.Request) *http.Response {
	resp := *head
	resp.Request, resp.Body = req, r
	resp.Header = head.Header.Clone()
	if facts := r.f.facts; facts != nil {
		resp = *callctx.WithFacts(&resp, r.own(facts))
	}
	if r.f.cached == "similar" {
		r.f.t.similar.mark(r.f.t, &resp, r.f.match)
	}
	source := r.count(r.f.cached)
	if !r.first {
		resp.Header.Del("Set-Cookie")
	}
	resp.Header.Set(Header, source)
	return &resp
}

func (r *reader) count(cached string) (source string) {
	switch {
	case cached == "hit":
		r.f.t.hits.Add(1)
		return cached
	case cached == "similar":
		r.f.t.similar.hits.Add(1)
		return cached
	case r.first:
		return "miss" // already counted by run
	}
	r.f.t.shared.Add(1)
	return "shared"
}

// own returns err for this caller. Coalesced callers get a copy, so that none can modify another's error.
func (r *reader) own(err error) error {
	if e, ok := err.(*aiguard.Error); ok && e != nil && !r.first {
		copied := *e
		return &copied
	}
	return err
}

// Read waits for the next bytes of the answer.
func (r *reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		n, changed, err := r.next(p)
		if n > 0 || err != nil {
			return n, err
		}
		select {
		case <-changed:
		case <-r.ctx.Done():
		case <-r.closing:
		}
	}
}

func (r *reader) next(p []byte) (n int, changed <-chan struct{}, err error) {
	f := r.f
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case r.closed:
		return 0, nil, http.ErrBodyReadAfterClose
	case r.err != nil:
		return 0, nil, r.err
	case r.ctx.Err() != nil:
		r.err = callctx.Err(r.ctx)
		return 0, nil, r.err
	}
	n = copy(p, f.buf[r.at-f.base:])
	r.at += int64(n)
	switch {
	case n > 0 && f.sealed:
		f.change() // the window may now move
	case n == 0 && f.err != nil:
		r.err = r.own(f.err)
		r.unheed() // the answer is over
		return 0, nil, r.err
	}
	return n, f.changed, nil
}

// Close leaves the flight. It is safe to call during a Read in another goroutine.
func (r *reader) Close() error {
	r.stop()
	r.close() // before leave, so that no Read uses a freed buffer
	r.leave()
	r.unheed()
	return nil
}

func (r *reader) close() {
	r.f.mu.Lock()
	defer r.f.mu.Unlock()
	if !r.closed {
		r.closed = true
		close(r.closing)
	}
}
