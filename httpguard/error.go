package httpguard

import (
	"bytes"
	"context"
	"crypto/rand"
	_ "embed"
	"encoding/json"
	"fmt"
	"html/template"
	"log/slog"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/internal/errtree"
	"github.com/aiguard-go/aiguard/internal/storm"
)

// DefaultRetryAfter is the Retry-After of 429, 503 and 504 responses if the error has no better value.
const DefaultRetryAfter = 10 * time.Second

// Problem is the content of an error response. Its exported fields are the members of the JSON form, "problem
// details" in RFC 9457, and the data of the HTML page's template.
type Problem struct {
	Type       string `json:"type"`                  // always "about:blank": the status is the type
	Title      string `json:"title"`                 // text of the status
	Status     int    `json:"status"`                // from aiguard.HTTPStatus; 413 for a body over the limit
	Detail     string `json:"detail"`                // from aiguard.UserMessage; never the provider's text
	Code       string `json:"code"`                  // the aiguard.Kind, or request_too_large, cancelled or internal
	RetryAfter int64  `json:"retry_after,omitempty"` // seconds before a retry makes sense; 0: unknown
	RequestID  string `json:"request_id"`            // also in the header X-Request-Id

	Nonce      string `json:"-"` // for the style and script elements of the page
	Repeatable bool   `json:"-"` // a GET or HEAD that may succeed later: the page may offer a retry
}

// Error writes the error response to r for err. The response is an HTML page if the Accept header prefers text/html,
// and otherwise application/problem+json (RFC 9457) with the members of Problem. Error accepts any error.
// aiguard.HTTPStatus and aiguard.UserMessage choose the status and the message, and an *http.MaxBytesError gives 413.
// The response never contains text of the provider.
//
// Retry-After is the RetryAfter that aiguard.Explain finds in err, rounded up to whole seconds. Without one it is
// DefaultRetryAfter for 429, 503 and 504, but it is omitted for an exhausted quota, because a short wait does not
// restore a quota. The request ID comes from the response header X-Request-Id if that is set, else from the same
// header of the request if its value is a valid identifier. Otherwise the ID is random.
//
// Call Error before anything is written. In a handler behind Limit, Error uses the Page and Logger of its Config. If
// the handler has already started its response and Timeout is not Off, Error panics with http.ErrAbortHandler, so
// that the truncated response does not look complete. Error panics if err is nil.
func Error(w http.ResponseWriter, r *http.Request, err error) {
	if err == nil {
		panic("httpguard: Error: nil error")
	}
	x, ok := r.Context().Value(exchangeKey{}).(*exchange)
	if !ok {
		x = newExchange(w, r)
	}
	if x.answer != nil && x.answer.state.Load() == begun {
		x.log.LogAttrs(r.Context(), levelFailed, "httpguard: response aborted after an error", x.attrs(err)...)
		panic(http.ErrAbortHandler)
	}
	x.answerWith(w, err)
}

type exchangeKey struct{}

// exchange holds the facts of a request that its error response needs. They are copied on arrival, because at the
// time limit the handler may still use the request.
type exchange struct {
	id         string
	route      string
	html       bool
	head       bool
	repeatable bool
	http1      bool

	page   *template.Template // nil: the built-in page
	log    *slog.Logger
	sent   *storm.Limit[sentKey] // nil: not behind Limit, which has the Logger
	answer *answer               // nil if the handler has the server's ResponseWriter
}

func newExchange(w http.ResponseWriter, r *http.Request) *exchange {
	return &exchange{
		id:         requestID(w.Header().Get("X-Request-Id"), r.Header.Get("X-Request-Id")),
		route:      r.Pattern,
		html:       prefersHTML(r.Header.Values("Accept")),
		head:       r.Method == http.MethodHead,
		repeatable: r.Method == http.MethodGet || r.Method == http.MethodHead,
		http1:      r.ProtoMajor == 1,
		log:        slog.New(slog.DiscardHandler),
	}
}

// requestID returns the first candidate that is a valid identifier, or a random one.
func requestID(candidates ...string) string {
	for _, id := range candidates {
		if isIdentifier(id) {
			return id
		}
	}
	return rand.Text()
}

func isIdentifier(s string) bool {
	for _, r := range s {
		if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '_' && r != '-' && r != '.' {
			return false
		}
	}
	return s != "" && len(s) <= 128
}

// answerLate writes the error response at the time limit, when the handler may still use the request body. It closes
// the connection, because to keep it the server would have to wait for the rest of the body.
func (x *exchange) answerLate(w http.ResponseWriter, body *requestBody, err error) {
	ctl := http.NewResponseController(w)
	if x.http1 {
		w.Header().Set("Connection", "close")
		body.end(ctl)
	}
	// The handler may have set deadlines that have passed, and the client may be slow to read the response or to send
	// its body.
	deadline := time.Now().Add(answerTime)
	_ = ctl.SetReadDeadline(deadline)
	_ = ctl.SetWriteDeadline(deadline)
	x.answerWith(w, err)
}

// answerWith sends the error response.
func (x *exchange) answerWith(w http.ResponseWriter, err error) {
	p := x.problem(err)
	level := levelRefused
	if p.Status >= 500 || p.Status == http.StatusTooManyRequests {
		level = levelFailed
	}
	if x.mayLog(level, p) {
		x.log.LogAttrs(context.Background(), level, sentLine, append(x.attrs(err), slog.Int("status", p.Status))...)
	}

	header := w.Header()
	for _, of := range []string{"Content-Encoding", "Content-Disposition", "Content-Range", "Etag", "Last-Modified"} {
		header.Del(of) // headers of the response that the handler meant to send
	}
	header.Set("Cache-Control", "no-store")
	header.Add("Vary", "Accept")
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("X-Request-Id", p.RequestID)
	if p.RetryAfter > 0 {
		header.Set("Retry-After", strconv.FormatInt(p.RetryAfter, 10))
	}
	if p.Code == codeBody && x.http1 {
		header.Set("Connection", "close") // do not read the rest of the body
	}
	var body []byte
	if x.html {
		p.Nonce = rand.Text()
		body = x.render(p)
		header.Set("Content-Type", "text/html; charset=utf-8")
		header.Set("Content-Security-Policy", fmt.Sprintf(pagePolicy, p.Nonce))
	} else {
		body, _ = json.Marshal(p) // cannot fail: p holds only strings, numbers and booleans
		header.Set("Content-Type", "application/problem+json")
	}
	header.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(p.Status)
	if !x.head {
		_, _ = w.Write(body) // fails only if the client has disconnected
	}
}

// Codes of errors that have no Kind.
const (
	codeBody      = "request_too_large"
	codeCancelled = "cancelled"
	codeInternal  = "internal"
)

func (x *exchange) problem(err error) Problem {
	p := Problem{
		Type: "about:blank", Status: aiguard.HTTPStatus(err), Detail: aiguard.UserMessage(err), Code: string(aiguard.KindOf(err)),
		RequestID: x.id,
	}
	body := errtree.Find[*http.MaxBytesError](err)
	switch {
	case p.Code != "":
	case body != nil:
		p.Status, p.Code = http.StatusRequestEntityTooLarge, codeBody
		p.Detail = "Your request is too large. The limit is " + size(body.Limit) + ". Please shorten it and try again."
	case p.Status == http.StatusGatewayTimeout:
		p.Code = string(aiguard.ErrTimeout)
	case p.Status == statusClientClosed:
		p.Code = codeCancelled
	default:
		p.Code = codeInternal
	}
	p.Repeatable = x.repeatable && mayPass(p)
	if p.Title = http.StatusText(p.Status); p.Status == statusClientClosed {
		p.Title = "Client Closed Request"
	}
	p.RetryAfter = int64(math.Ceil(max(retryAfter(err, p), 0).Seconds()))
	return p
}

// mayPass reports whether the same request may succeed later. A request that is too large, malformed or rejected cannot, and
// an account or a configuration must be mended first.
func mayPass(p Problem) bool {
	switch aiguard.Kind(p.Code) {
	case aiguard.ErrQuota, aiguard.ErrUnauthorized, aiguard.ErrMisconfigured, aiguard.ErrResponseTooLarge:
		return false
	}
	return p.Status == http.StatusTooManyRequests || p.Status == statusClientClosed || p.Status >= 500
}

const statusClientClosed = 499 // nginx's status; net/http has no constant for it

// retryAfter returns the wait before a retry, or 0 if a retry does not help or the wait is unknown.
func retryAfter(err error, p Problem) time.Duration {
	var known time.Duration
	if e := aiguard.Explain(err); e != nil {
		known = e.RetryAfter
	}
	switch p.Status {
	case http.StatusBadGateway:
		return known
	case http.StatusTooManyRequests, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		if known == 0 && p.Code != string(aiguard.ErrQuota) {
			return DefaultRetryAfter
		}
		return known
	}
	return 0
}

// size formats a number of bytes.
func size(n int64) string {
	for _, unit := range []struct {
		bytes int64
		name  string
	}{{1 << 30, "GB"}, {1 << 20, "MB"}, {1 << 10, "KB"}} {
		if n >= unit.bytes {
			return strconv.FormatFloat(float64(n)/float64(unit.bytes), 'g', 3, 64) + " " + unit.name
		}
	}
	return strconv.FormatInt(n, 10) + " bytes"
}

// pagePolicy allows the page's own style and script, and images, fonts and style sheets of the same origin.
const pagePolicy = "default-src 'none'; script-src 'nonce-%[1]s'; style-src 'self' 'nonce-%[1]s'; img-src 'self' data:; " +
	"font-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"

//go:embed page.html
var pageSource string

var builtIn = template.Must(template.New("page").Parse(pageSource))

// render executes the configured page. If that fails, it executes the built-in page.
func (x *exchange) render(p Problem) []byte {
	var page bytes.Buffer
	if x.page != nil {
		err := x.page.Execute(&page, p)
		if err == nil {
			return page.Bytes()
		}
		x.log.Error("httpguard: Config.Page failed", "error", err, "request_id", x.id)
		page.Reset()
	}
	if err := builtIn.Execute(&page, p); err != nil {
		panic("httpguard: the built-in page failed: " + err.Error())
	}
	return page.Bytes()
}

// Levels of error responses. Operators count failures; a refusal is the client's own mistake.
const (
	levelFailed  = slog.LevelWarn
	levelRefused = slog.LevelInfo
)

const sentLine = "httpguard: error response sent"

// sentKey is what similar error responses have in common. They share a limit of lines in the log.
type sentKey struct {
	status      int
	code, route string
}

// mayLog reports whether the log may get a line about p now.
func (x *exchange) mayLog(level slog.Level, p Problem) bool {
	if x.sent == nil {
		return true
	}
	key, log := sentKey{p.Status, p.Code, x.route}, x.log
	return x.sent.Allow(key, sentKey{status: p.Status}, func(key sentKey, suppressed int) {
		log.LogAttrs(context.Background(), level, "httpguard: similar lines suppressed", slog.String("line", sentLine),
			slog.Int("status", key.status), slog.String("code", key.code), slog.String("route", key.route), slog.Int("suppressed", suppressed))
	})
}

// attrs returns the facts of an error response that are safe to log. An error that is not an aiguard.Error may quote
// a prompt or the provider, so the log gets only its type.
func (x *exchange) attrs(err error) []slog.Attr {
	attrs := []slog.Attr{slog.String("request_id", x.id)}
	if x.route != "" {
		attrs = append(attrs, slog.String("route", x.route))
	}
	if e := aiguard.Explain(err); e != nil {
		return append(attrs, slog.Any("error", e))
	}
	if err != nil {
		attrs = append(attrs, slog.String("error_type", fmt.Sprintf("%T", err)))
	}
	return attrs
}
