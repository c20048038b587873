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
	"net/http"
	"strconv"
	"time"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/internal/errtree"
)

// DefaultRetryAfter is the Retry-After of 429, 503 and 504 where nothing better is known.
const DefaultRetryAfter = 10 * time.Second

// Problem is what an error answer says: the members of its JSON form, "problem details" as RFC 9457 has them, and what
// the template of a page is executed with.
type Problem struct {
	Type       string `json:"type"`                  // "about:blank": Status says it all
	Title      string `json:"title"`                 // Status in words
	Status     int    `json:"status"`                // aiguard.HTTPStatus; 413 for a body over its limit
	Detail     string `json:"detail"`                // aiguard.UserMessage: never the provider's words
	Code       string `json:"code"`                  // the aiguard.Kind, or request_too_large, cancelled, internal
	RetryAfter int64  `json:"retry_after,omitempty"` // seconds until it is worth trying again; 0: unknown
	RequestID  string `json:"request_id"`            // also in the header X-Request-Id

	Nonce      string `json:"-"` // of the page's own style and script
	Repeatable bool   `json:"-"` // a GET or HEAD that may succeed when it is sent again: the page may offer to
}

// Error answers r for a request that failed with err: with an HTML page where Accept prefers text/html, else with
// application/problem+json (RFC 9457); see Problem. Any error will do: aiguard.HTTPStatus and aiguard.UserMessage say
// what becomes of it, and an *http.MaxBytesError is 413. Neither form has a word of the provider.
//
// Retry-After is the RetryAfter that aiguard.Explain finds in err, rounded up to whole seconds, and DefaultRetryAfter for 429, 503
// and 504 without one, except for a quota, which no short wait restores. The request id is that of a response header
// X-Request-Id already set, else the request's if it looks like one, else random.
//
// Call it before anything is written. In a handler behind Limit it knows the Page and Logger given there, and if the
// answer has begun (which it sees where Timeout is not Off) it panics with http.ErrAbortHandler, so that the half of it
// does not look whole. It panics if err is nil.
func Error(w http.ResponseWriter, r *http.Request, err error) {
	if err == nil {
		panic("httpguard: Error: nil error")
	}
	x, ok := r.Context().Value(exchangeKey{}).(*exchange)
	if !ok {
		x = newExchange(w, r)
	}
	if x.answer != nil && x.answer.state.Load() == begun {
		x.log.LogAttrs(r.Context(), levelFailed, "httpguard: answer ended by an error", x.attrs(err)...)
		panic(http.ErrAbortHandler)
	}
	x.answerWith(w, err)
}

type exchangeKey struct{}

// exchange is what an error answer needs to know of its request, taken from it on arrival: at the time limit, the request
// is the handler's.
type exchange struct {
	id         string
	route      string
	html       bool
	head       bool
	repeatable bool
	http1      bool

	page   *template.Template // nil: the built-in one
	log    *slog.Logger
	answer *answer // nil where the handler has the server's ResponseWriter
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

// requestID returns the first candidate that looks like an identifier, or else a new one.
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

// answerLate is answerWith at the time limit, when the handler may still use the request's body. The server would wait for
// the rest of the body if it were to keep the connection.
func (x *exchange) answerLate(w http.ResponseWriter, body *requestBody, err error) {
	ctl := http.NewResponseController(w)
	if x.http1 {
		w.Header().Set("Connection", "close")
		body.end(ctl)
	}
	// The handler may have set deadlines that are over, and a client may be slow to read this or to send its body.
	deadline := time.Now().Add(answerTime)
	_ = ctl.SetReadDeadline(deadline)
	_ = ctl.SetWriteDeadline(deadline)
	x.answerWith(w, err)
}

// answerWith sends the error answer.
func (x *exchange) answerWith(w http.ResponseWriter, err error) {
	p := x.problem(err)
	level := levelRefused
	if p.Status >= 500 || p.Status == http.StatusTooManyRequests {
		level = levelFailed
	}
	x.log.LogAttrs(context.Background(), level, "httpguard: error answered", append(x.attrs(err), slog.Int("status", p.Status))...)

	header := w.Header()
	for _, of := range []string{"Content-Encoding", "Content-Disposition", "Content-Range", "Etag", "Last-Modified"} {
		header.Del(of) // the answer that was meant to be
	}
	header.Set("Cache-Control", "no-store")
	header.Add("Vary", "Accept")
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("X-Request-Id", p.RequestID)
	if p.RetryAfter > 0 {
		header.Set("Retry-After", strconv.FormatInt(p.RetryAfter, 10))
	}
	if p.Code == codeBody && x.http1 {
		header.Set("Connection", "close") // rather than read the rest
	}
	var body []byte
	if x.html {
		p.Nonce = rand.Text()
		body = x.render(p)
		header.Set("Content-Type", "text/html; charset=utf-8")
		header.Set("Content-Security-Policy", fmt.Sprintf(pagePolicy, p.Nonce))
	} else {
		body, _ = json.Marshal(p) // strings and numbers do not fail
		header.Set("Content-Type", "application/problem+json")
	}
	header.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(p.Status)
	if !x.head {
		_, _ = w.Write(body) // whoever does not take it is gone
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
		p.Detail = "Your request is too large: " + size(body.Limit) + " is the most we accept. Please shorten it and try again."
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
	p.RetryAfter = int64((retryAfter(err, p) + time.Second - 1) / time.Second)
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

const statusClientClosed = 499 // nginx's; net/http has no name for it

// retryAfter is when to try again, where that helps.
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

// size puts a number of bytes into words.
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

// pagePolicy lets a page run its own style and script, and show what lies beside it.
const pagePolicy = "default-src 'none'; script-src 'nonce-%[1]s'; style-src 'self' 'nonce-%[1]s'; img-src 'self' data:; " +
	"font-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"

//go:embed page.html
var pageSource string

var builtIn = template.Must(template.New("page").Parse(pageSource))

// render executes the page of the user's, and where that fails the built-in one.
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

// Levels of error answers: those that operators count, and those that the request itself earned.
const (
	levelFailed  = slog.LevelWarn
	levelRefused = slog.LevelInfo
)

// attrs are the facts of an error answer that are fit for a log. An error that has none may quote a prompt or the
// provider: the log gets its type only.
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
