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

// errNoAnswer ends a flight whose next left its goroutine without a word (runtime.Goexit).
var errNoAnswer = errors.New("cacheguard: next returned nothing")

// patience is how long a caller may stand still while others wait for a long answer to go on.
const patience = time.Second

// errBehind is the cause for a caller whom the window of a long answer has passed.
var errBehind = errors.New("cacheguard: stood still too long to share an answer larger than MaxEntryBytes")

// flightKey tells flights apart: callers who want different things of the cache do not share one.
type flightKey struct {
	key  key
	mode mode
}

// flight is one request on its way, in a goroutine of its own so that no caller is more than a reader of it: lookup, the
// request to next, and the write. x/sync/singleflight has no way to leave a call, nor to join an answer that has begun.
//
// Its answer is in buf, from offset base: all of it, until it is sealed for being too large to keep. Only run's goroutine
// writes buf.
type flight struct {
	t      *Transport
	q      *request
	cancel context.CancelFunc

	mu      sync.Mutex
	changed chan struct{} // closed, and made anew, when anything below changes
	readers map[*reader]struct{}
	left    bool           // by everybody: the request is being cancelled
	sealed  bool           // what was before base is gone
	head    *http.Response // without a body; nil: not there yet
	facts   error          // of the failure that head is, from the guard behind
	hit     bool
	buf     []byte
	base    int64
	err     error // how the answer ended, io.EOF if well; nil: not yet
	landed  bool  // run is over: nobody joins any more
}

func newFlight(t *Transport, q *request) *flight {
	return &flight{t: t, q: q, changed: make(chan struct{}), readers: map[*reader]struct{}{}}
}

// change wakes all who wait for f, whose lock is held.
func (f *flight) change() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// run is the flight. ctx ends when the last caller has left.
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
		if e := f.t.lookup(ctx, f.q.key); e != nil {
			f.serve(e)
			return
		}
		if ctx.Err() != nil {
			return // all have left
		}
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
	if resp.Body == nil { // as http.Client takes it
		resp.Body = http.NoBody
	}
	if resp.Header == nil {
		resp.Header = http.Header{}
	}
	defer resp.Body.Close()
	f.begin(resp, false)
	err = f.record(ctx, resp.Body)
	whole := !f.sealed && complete(f.q, resp, f.buf, err == io.EOF)
	if whole {
		err = io.EOF
	}
	keep := whole && f.q.mode != coalesced
	answer := &entry{stored: time.Now(), header: resp.Header, body: f.buf}
	if keep && f.t.memory != nil { // that takes no time: the caller's next request finds it
		f.t.keep(ctx, f.q, answer)
		keep = false
	}
	if !keep || f.q.mode != cached {
		f.t.unlist(f) // who comes now shall not have the answer of a request that is over
	}
	f.end(err)
	if keep {
		f.t.keep(ctx, f.q, answer)
	}
}

// serve answers from what was kept.
func (f *flight) serve(e *entry) {
	e.header.Set("Age", strconv.FormatInt(max(0, int64(time.Since(e.stored).Seconds())), 10))
	resp := &http.Response{Status: "200 OK", StatusCode: http.StatusOK, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: e.header, ContentLength: int64(len(e.body))}
	if f.q.stream {
		resp.ContentLength = -1
	}
	f.mu.Lock()
	f.buf = e.body
	f.mu.Unlock()
	f.begin(resp, true)
	f.end(io.EOF)
}

// begin lets the callers have the answer while its body is still to come.
func (f *flight) begin(resp *http.Response, hit bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return
	}
	head := *resp
	f.facts, _ = callctx.Facts(resp).(error)
	head.Body, head.Request, head.Trailer = nil, nil, nil
	f.head, f.hit = &head, hit
	f.change()
}

// end says how the answer ended, if nothing has before.
func (f *flight) end(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.err = err
		f.change()
	}
}

// land notes that run is over.
func (f *flight) land() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.landed = true
	f.forget()
}

// forget lets go of the answer when nobody is left to read it: a closed reader keeps its flight, and its response may be
// kept. f's lock is held.
func (f *flight) forget() {
	if f.landed && len(f.readers) == 0 {
		f.buf = nil
	}
}

// record reads the body to its end, and returns how it ended.
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

// room returns where the next bytes go: behind buf. A buffer of MaxEntryBytes and one more, which shows that there is more,
// becomes a window on the answer, and then room may have to wait until it can move.
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

// moveOn drops from the window what all callers have read. From then on the flight is sealed.
func (f *flight) moveOn() {
	f.sealed = true
	slowest := f.base + int64(len(f.buf))
	for r := range f.readers {
		slowest = min(slowest, r.at)
	}
	f.buf = f.buf[:copy(f.buf, f.buf[slowest-f.base:])]
	f.base = slowest
}

// shed loses the callers at the beginning of the window, if one at its end waits for more.
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

// admit adds a caller, or returns nil if it comes too late.
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

// reader is a caller of a flight, and the body it gets. It reads at its own pace, until its own context ends.
type reader struct {
	f       *flight
	ctx     context.Context
	first   bool          // the flight was started for it
	stop    func() bool   // of context.AfterFunc
	unheed  func()        // of callctx.Heed
	closing chan struct{} // wakes its Read; a change of the flight would wake everybody's

	// Of f.mu.
	at     int64 // in the answer
	err    error // why it gets no more of it
	closed bool
}

// leave ends the caller's interest in the flight, and the flight if it was the last.
func (r *reader) leave() {
	f := r.f
	f.mu.Lock()
	_, interested := f.readers[r]
	delete(f.readers, r)
	last := interested && len(f.readers) == 0 && f.err == nil
	f.left = f.left || last
	if f.sealed {
		f.change() // it no longer holds the window
	}
	f.forget()
	f.mu.Unlock()
	if last {
		f.t.unlist(f)
		f.cancel()
	}
}

// response waits for the answer to begin.
func (r *reader) response(req *http.Request) (*http.Response, error) {
	f := r.f
	for {
		f.mu.Lock()
		head, hit, err, changed := f.head, f.hit, f.err, f.changed
		f.mu.Unlock()
		switch {
		case head != nil:
			return r.wrap(head, hit, req), nil
		case err != nil:
			r.count(false)
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

// wrap makes the caller's own response of what all have in common.
func (r *reader) wrap(head *http.Response, hit bool, req *http.Request) *http.Response {
	resp := *head
	resp.Request, resp.Body = req, r
	resp.Header = head.Header.Clone()
	if facts := r.f.facts; facts != nil {
		resp = *callctx.WithFacts(&resp, r.own(facts))
	}
	source := r.count(hit)
	if !r.first {
		resp.Header.Del("Set-Cookie")
	}
	resp.Header.Set(Header, source)
	return &resp
}

func (r *reader) count(hit bool) (source string) {
	switch {
	case hit:
		r.f.t.hits.Add(1)
		return "hit"
	case r.first:
		return "miss" // counted when it was sent
	}
	r.f.t.shared.Add(1)
	return "shared"
}

// own is err for this caller: nobody can change it under another's eyes.
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
		f.change() // the window may move
	case n == 0 && f.err != nil:
		r.err = r.own(f.err)
		r.unheed() // the caller's end makes no difference any more
		return 0, nil, r.err
	}
	return n, f.changed, nil
}

// Close leaves the flight. It is safe to call while another goroutine reads.
func (r *reader) Close() error {
	r.stop()
	r.close() // first: nobody may read an answer that is forgotten
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
