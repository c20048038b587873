package cacheguard

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"io"
	"maps"
	"math"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aiguard-go/aiguard/internal/dialect"
	"github.com/aiguard-go/aiguard/internal/jsonscan"
)

// minTemperature is the temperature below which providers behave as with 0.
const minTemperature = 1e-6

// mode is how the cache handles a request.
type mode int8

const (
	apart     mode = iota // pass through
	coalesced             // coalesce only
	cached                // coalesce, look up, and keep the answer
	refreshed             // coalesce and keep the answer, without a lookup
)

// request holds what the cache needs to know about a request.
type request struct {
	send     *http.Request // the caller's request, with a new body if read has consumed the old one
	mode     mode
	key      key
	endpoint dialect.Endpoint
	stream   bool // the request asks for a stream
	ttl      time.Duration
	question *question // nil unless a similar question's answer may do
}

// key identifies identical requests. It is a SHA-256 sum.
type key [sha256.Size]byte

// read decides how the cache handles req. Its error is a failure to read the body.
func (t *Transport) read(req *http.Request, policy Policy) (*request, error) {
	_, exact := req.Header[ExactHeader]
	if exact {
		req = withBody(req, req.Body)
		req.Header = req.Header.Clone()
		req.Header.Del(ExactHeader)
	}
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
	if _, err := read.ReadFrom(io.LimitReader(req.Body, min(t.cfg.MaxRequestBytes, math.MaxInt64-1)+1)); err != nil {
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
		return q, nil // the length is wrong; next reports it
	}
	plain, ok := canonical(body)
	if !ok {
		return q, nil
	}
	q.endpoint = dialect.Of(req.Method, req.URL.Path, req.URL.RawQuery)
	facts := q.endpoint.Read(plain, nil) // uses the canonical form, because a name may be escaped: "st\u006fre"
	q.stream = facts.Stream
	if facts.Creates || q.endpoint.Op() == "responses" && !facts.Forgets {
		return q, nil
	}
	q.send.ContentLength = int64(len(body))
	identity := t.identity(req, scope)
	q.key = sha256.Sum256(append(identity, plain...))
	switch {
	case !policy.Sampled && !t.cfg.Sampled && samples(q.endpoint, plain):
		q.mode = coalesced
	case policy.Refresh:
		q.mode = refreshed
	default:
		q.mode = cached
	}
	if t.similar != nil && !exact && q.mode != coalesced {
		q.question = newQuestion(req.Context(), q.endpoint.Op(), identity, plain)
	}
	return q, nil
}

// withBody returns a copy of req with another body. A RoundTripper must not modify its request.
func withBody(req *http.Request, body io.ReadCloser) *http.Request {
	req = req.WithContext(req.Context())
	req.Body = body
	return req
}

// concerns reports whether the cache can handle req, as far as its method, URL and headers show.
func (t *Transport) concerns(req *http.Request) bool {
	if req.Method != http.MethodPost || req.URL == nil || req.Header == nil || req.Body == nil || req.GetBody == nil ||
		req.ContentLength > t.cfg.MaxRequestBytes || req.Header.Get("Content-Encoding") != "" {
		return false
	}
	switch dialect.Of(req.Method, req.URL.Path, req.URL.RawQuery).Op() {
	case "chat.completions", "completions", "responses", "messages", "embeddings", "moderations":
	default: // images and audio are random or not JSON
		return false
	}
	media, _, err := mime.ParseMediaType(req.Header.Get("Content-Type"))
	return err == nil && media == "application/json"
}

// credentials are the headers that identify an account.
var credentials = []string{"Authorization", "Proxy-Authorization", "Cookie", "Api-Key", "X-Api-Key", "X-Goog-Api-Key"}

// scope returns the account of req that Config.Scope gives, or "" if a credential in req identifies it. It returns
// false if the account is unknown.
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

// samples reports whether the same request can give a different answer each time.
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

// withoutMeaning are headers that do not affect the answer and may differ between identical requests.
var withoutMeaning = []string{
	"Connection", "Content-Length", "User-Agent",
	"X-Request-Id", "X-Client-Request-Id", "X-Ms-Client-Request-Id", "X-Correlation-Id", "Idempotency-Key",
	"Traceparent", "Tracestate", "Baggage", "B3", "Uber-Trace-Id", "Sentry-Trace", "X-Amzn-Trace-Id", "X-Cloud-Trace-Context",
}

// withoutMeaningPrefixes are prefixes of further headers without meaning.
var withoutMeaningPrefixes = []string{"X-Stainless-", "X-B3-", "X-Datadog-"}

func ignored(more []string) map[string]bool {
	names := map[string]bool{}
	for _, name := range slices.Concat(withoutMeaning, more) {
		names[http.CanonicalHeaderKey(name)] = true
	}
	return names
}

// identity returns the part of the key that the body does not determine. A length precedes each part, so that
// different requests cannot give the same bytes.
func (t *Transport) identity(req *http.Request, scope string) []byte {
	b := make([]byte, 0, 1024)
	part := func(p string) { b = appendText(b, p) }
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
	part("") // ends the headers; no header has this name
	return b
}

// appendText appends p after its length.
func appendText(b []byte, p string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(p))), p...)
}

func (t *Transport) ignores(name string) bool {
	return t.ignore[name] || slices.ContainsFunc(withoutMeaningPrefixes, func(prefix string) bool {
		return strings.HasPrefix(name, prefix)
	})
}

// outgoing returns the request that a flight sends. It is a copy, because the caller may leave before the flight
// ends.
func (q *request) outgoing(ctx context.Context) *http.Request {
	req := q.send.Clone(ctx)
	req.Body, _ = q.send.GetBody() // the GetBody set by read cannot fail
	req.Cancel = nil               // one caller's cancellation must not end a shared request
	return req
}
