package cacheguard

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"io"
	"maps"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aiguard-go/aiguard/internal/dialect"
	"github.com/aiguard-go/aiguard/internal/jsonscan"
)

// minTemperature is below what any provider tells from 0.
const minTemperature = 1e-6

// mode is what the cache does for a request.
type mode int8

const (
	apart     mode = iota // nothing
	coalesced             // let identical requests be one
	cached                // look it up, and keep the answer
	refreshed             // keep the answer
)

// request is what the cache needs to know of a request.
type request struct {
	send     *http.Request // to next: the caller's, with its body if that was read
	mode     mode
	key      key
	endpoint dialect.Endpoint
	stream   bool // is asked for
	ttl      time.Duration
}

// key is what identical requests have in common, and no others: a SHA-256 sum.
type key [sha256.Size]byte

// read finds out whether req is one for the cache. Its error is that of reading the body.
func (t *Transport) read(req *http.Request, policy Policy) (*request, error) {
	q := &request{send: req, ttl: policy.TTL}
	if q.ttl == 0 {
		q.ttl = t.cfg.TTL
	}
	if policy.Bypass || !t.concerns(req) {
		return q, nil
	}
	scope, ok := t.scope(req)
	if !ok {
		return q, nil
	}
	read := bytes.NewBuffer(make([]byte, 0, max(req.ContentLength, 0)+bytes.MinRead))
	if _, err := read.ReadFrom(io.LimitReader(req.Body, t.cfg.MaxRequestBytes+1)); err != nil {
		req.Body.Close()
		return nil, err
	}
	body := read.Bytes()
	if int64(len(body)) > t.cfg.MaxRequestBytes {
		q.send = withBody(req, struct {
			io.Reader
			io.Closer
		}{io.MultiReader(bytes.NewReader(body), req.Body), req.Body})
		return q, nil
	}
	req.Body.Close()
	q.send = withBody(req, io.NopCloser(bytes.NewReader(body)))
	q.send.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
	if req.ContentLength > 0 && req.ContentLength != int64(len(body)) {
		return q, nil // next knows what to say to that
	}
	plain, ok := canonical(body)
	if !ok {
		return q, nil
	}
	q.endpoint = dialect.Of(req.Method, req.URL.Path, req.URL.RawQuery)
	facts := q.endpoint.Read(plain, nil) // of the plain form: "st\u006fre" is a name too
	q.stream = facts.Stream
	if facts.Creates || q.endpoint.Op() == "responses" && !facts.Forgets {
		return q, nil
	}
	q.send.ContentLength = int64(len(body))
	q.key = t.sum(req, scope, plain)
	switch {
	case !policy.Sampled && !t.cfg.Sampled && samples(q.endpoint, plain):
		q.mode = coalesced
	case policy.Refresh:
		q.mode = refreshed
	default:
		q.mode = cached
	}
	return q, nil
}

// withBody is req with another body. It is a copy, since a RoundTripper must not change its request.
func withBody(req *http.Request, body io.ReadCloser) *http.Request {
	req = req.WithContext(req.Context())
	req.Body = body
	return req
}

// concerns reports whether req asks for an answer worth a look at its body.
func (t *Transport) concerns(req *http.Request) bool {
	if req.Method != http.MethodPost || req.URL == nil || req.Header == nil || req.Body == nil || req.GetBody == nil ||
		req.ContentLength > t.cfg.MaxRequestBytes || req.Header.Get("Content-Encoding") != "" {
		return false
	}
	switch dialect.Of(req.Method, req.URL.Path, req.URL.RawQuery).Op() {
	case "chat.completions", "completions", "responses", "messages", "embeddings", "moderations":
	default: // images and audio: never the same twice, or no JSON
		return false
	}
	media, _, err := mime.ParseMediaType(req.Header.Get("Content-Type"))
	return err == nil && media == "application/json"
}

// credentials are headers that tell accounts apart.
var credentials = []string{"Authorization", "Proxy-Authorization", "Cookie", "Api-Key", "X-Api-Key", "X-Goog-Api-Key"}

// scope returns whose answers req may get, as far as its headers and URL do not say so, or false if nobody says so.
func (t *Transport) scope(req *http.Request) (scope string, ok bool) {
	if t.cfg.Scope != nil {
		scope = t.cfg.Scope(req)
		return scope, scope != ""
	}
	for _, name := range credentials {
		if req.Header.Get(name) != "" {
			return "", true
		}
	}
	query := req.URL.Query()
	return "", query.Get("key") != "" || query.Get("api-key") != ""
}

// samples reports whether the same request may well get another answer.
func samples(e dialect.Endpoint, plain []byte) bool {
	if op := e.Op(); op == "embeddings" || op == "moderations" {
		return false
	}
	for name, value := range jsonscan.Members(plain) {
		if string(name) == "temperature" {
			t, err := strconv.ParseFloat(string(value), 64)
			return err != nil || t >= minTemperature
		}
	}
	return true
}

// withoutMeaning are headers that say nothing about the answer, and may differ from one request to the next.
var withoutMeaning = []string{
	"Connection", "Content-Length", "User-Agent",
	"X-Request-Id", "X-Client-Request-Id", "X-Ms-Client-Request-Id", "X-Correlation-Id", "Idempotency-Key",
	"Traceparent", "Tracestate", "Baggage", "B3", "Uber-Trace-Id", "Sentry-Trace", "X-Amzn-Trace-Id", "X-Cloud-Trace-Context",
}

// withoutMeaningPrefixes are the beginnings of more of them.
var withoutMeaningPrefixes = []string{"X-Stainless-", "X-B3-", "X-Datadog-"}

func ignored(more []string) map[string]bool {
	names := map[string]bool{}
	for _, name := range slices.Concat(withoutMeaning, more) {
		names[http.CanonicalHeaderKey(name)] = true
	}
	return names
}

// sum is the key of req, whose body in its plain form is given. Each part goes in behind its length, so that no two
// requests run together to the same bytes.
func (t *Transport) sum(req *http.Request, scope string, plain []byte) key {
	b := make([]byte, 0, len(plain)+1024)
	part := func(p string) { b = append(binary.AppendUvarint(b, uint64(len(p))), p...) }
	part("cacheguard 2")
	part(scope)
	part(req.Method)
	part(req.URL.String())
	part(req.Host)
	for _, name := range slices.Sorted(maps.Keys(req.Header)) {
		if t.ignores(http.CanonicalHeaderKey(name)) {
			continue
		}
		part(name)
		b = binary.AppendUvarint(b, uint64(len(req.Header[name])))
		for _, value := range req.Header[name] {
			part(value)
		}
	}
	part("") // no header has this name
	return sha256.Sum256(append(b, plain...))
}

func (t *Transport) ignores(name string) bool {
	return t.ignore[name] || slices.ContainsFunc(withoutMeaningPrefixes, func(prefix string) bool {
		return strings.HasPrefix(name, prefix)
	})
}

// outgoing is the request that a flight sends: the caller's, copied, since the caller may be gone before it is over.
func (q *request) outgoing(ctx context.Context) *http.Request {
	req := q.send.Clone(ctx)
	req.Body, _ = q.send.GetBody() // that of read, which cannot fail
	req.Cancel = nil               // ends the caller's wait, not the answer that others share
	return req
}
