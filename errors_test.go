package aiguard_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	openai "github.com/sashabaranov/go-openai"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
)

// The contract with web services: a kind's name and status never change.
var kindTable = []struct {
	kind   aiguard.Kind
	name   string
	status int
}{
	{aiguard.ErrTimeout, "timeout", 504},
	{aiguard.ErrOverloaded, "overloaded", 503},
	{aiguard.ErrClosed, "closed", 503},
	{aiguard.ErrPromptTooLarge, "prompt_too_large", 413},
	{aiguard.ErrResponseTooLarge, "response_too_large", 502},
	{aiguard.ErrTruncated, "truncated", 502},
	{aiguard.ErrRateLimited, "rate_limited", 429},
	{aiguard.ErrQuota, "quota_exceeded", 503},
	{aiguard.ErrBudget, "budget_exceeded", 403},
	{aiguard.ErrMisconfigured, "misconfigured", 500},
	{aiguard.ErrUnavailable, "unavailable", 502},
	{aiguard.ErrUnauthorized, "unauthorized", 502},
	{aiguard.ErrRejected, "rejected", 400},
	{aiguard.ErrInvalidResponse, "invalid_response", 502},
}

func TestEveryKindKeepsItsNameAndStatusHoweverWrapped(t *testing.T) {
	for _, k := range kindTable {
		t.Run(k.name, func(t *testing.T) {
			require.EqualValues(t, k.name, k.kind)
			e := &aiguard.Error{Kind: k.kind}
			for _, err := range []error{
				k.kind, e,
				fmt.Errorf("service: %w", e),
				errors.Join(errors.New("other"), e),
				&url.Error{Op: "Post", URL: "http://x", Err: e}, // as go-openai's other methods return it
				fmt.Errorf("twice: %w", fmt.Errorf("wrapped: %w", k.kind)),
			} {
				assert.Equal(t, k.kind, aiguard.KindOf(err), "%T", err)
				assert.Equal(t, k.status, aiguard.HTTPStatus(err), "%T", err)
				assert.ErrorIs(t, err, k.kind, "%T", err)
			}
		})
	}
}

func TestErrorIsItsKindItsCauseAndADeadlineAtOnce(t *testing.T) {
	for _, k := range kindTable {
		t.Run(k.name, func(t *testing.T) {
			cause := &openai.APIError{HTTPStatusCode: http.StatusTeapot, Code: "teapot"}
			err := fmt.Errorf("service: %w", &aiguard.Error{Kind: k.kind, Op: "chat.completions", Err: cause})
			for _, other := range kindTable {
				assert.Equal(t, other.kind == k.kind, errors.Is(err, other.kind), "errors.Is %s", other.name)
			}
			isTimeout := k.kind == aiguard.ErrTimeout
			assert.Equal(t, isTimeout, errors.Is(err, context.DeadlineExceeded))
			assert.NotErrorIs(t, err, context.Canceled)

			var e *aiguard.Error
			require.ErrorAs(t, err, &e)
			assert.Equal(t, "chat.completions", e.Op)
			var api *openai.APIError
			require.ErrorAs(t, err, &api)
			assert.Same(t, cause, api)

			var ne interface{ Timeout() bool }
			require.ErrorAs(t, err, &ne, "code that knows net.Error asks this")
			assert.Equal(t, isTimeout, ne.Timeout())
		})
	}
}

func TestClientErrorHasFactsAndTheCauseThatGoOpenAIUsersKnow(t *testing.T) {
	srv := aiguardtest.NewServer(t)
	srv.SetDefault(aiguardtest.Error(401, "invalid_api_key"))
	_, err := chat(t.Context(), newClient(t, srv, aiguard.Config{}))

	e := facts(t, err, aiguard.ErrUnauthorized)
	assert.Equal(t, "chat.completions", e.Op)
	assert.Equal(t, openai.GPT4oMini, e.Model)
	assert.Equal(t, 401, e.StatusCode)
	assert.Equal(t, "req_fake_1", e.RequestID)
	assert.Equal(t, 1, e.Attempts)
	var api *openai.APIError
	require.ErrorAs(t, err, &api)
	assert.Equal(t, 401, api.HTTPStatusCode)
	assert.Equal(t, "invalid_api_key", api.Code)
	assert.Contains(t, api.Message, aiguardtest.ProviderText, "the cause keeps the provider's words for those who look")
	assert.NotContains(t, err.Error(), aiguardtest.ProviderText)
	assert.NotContains(t, aiguard.UserMessage(err), aiguardtest.ProviderText)
	assert.Equal(t, 502, aiguard.HTTPStatus(err), "the caller's user is not the one who is unauthorized")
}

// statusKinds is what a provider's status means where no code says more.
var statusKinds = map[int]aiguard.Kind{
	400: aiguard.ErrRejected, 401: aiguard.ErrUnauthorized, 402: aiguard.ErrQuota, 403: aiguard.ErrUnauthorized,
	404: aiguard.ErrMisconfigured, 405: aiguard.ErrRejected, 408: aiguard.ErrUnavailable, 409: aiguard.ErrUnavailable,
	410: aiguard.ErrRejected, 413: aiguard.ErrPromptTooLarge, 415: aiguard.ErrRejected, 422: aiguard.ErrRejected, 429: aiguard.ErrRateLimited,
	451: aiguard.ErrRejected, 499: aiguard.ErrRejected, 500: aiguard.ErrUnavailable, 501: aiguard.ErrUnavailable,
	502: aiguard.ErrUnavailable, 503: aiguard.ErrUnavailable, 504: aiguard.ErrUnavailable, 520: aiguard.ErrUnavailable,
	529: aiguard.ErrUnavailable, 599: aiguard.ErrUnavailable,
}

func TestKindOfGoesByStatusWhereNoCodeSaysMore(t *testing.T) {
	for status, kind := range statusKinds {
		for _, err := range []error{
			&openai.APIError{HTTPStatusCode: status},
			&openai.APIError{HTTPStatusCode: status, Code: "some_code_of_tomorrow", Type: "some_type"},
			&openai.APIError{HTTPStatusCode: status, Code: "", Type: "invalid_request_error"}, // covers anything
			&openai.APIError{HTTPStatusCode: status, Code: status},
			&openai.RequestError{HTTPStatusCode: status},
			&openai.RequestError{HTTPStatusCode: status, Err: errors.New("invalid character '<'"), Body: []byte("<html>")},
			&openai.RequestError{HTTPStatusCode: status, Err: io.ErrUnexpectedEOF}, // the error body was cut: the status still counts
			fmt.Errorf("service: %w", &openai.APIError{HTTPStatusCode: status}),
			errors.Join(errors.New("cleanup failed"), &openai.RequestError{HTTPStatusCode: status}),
		} {
			assert.Equal(t, kind, aiguard.KindOf(err), "%d in %#v", status, err)
		}
	}
	assert.Equal(t, aiguard.ErrInvalidResponse, aiguard.KindOf(&openai.RequestError{HTTPStatusCode: 200}), "HTML with status 200, say")
	assert.Equal(t, aiguard.ErrInvalidResponse, aiguard.KindOf(&openai.RequestError{HTTPStatusCode: 302}))
}

func TestKindOfGoesByCodeBeforeStatus(t *testing.T) {
	codes := map[string]aiguard.Kind{
		"insufficient_quota":                aiguard.ErrQuota,
		"billing_not_active":                aiguard.ErrQuota,
		"billing_hard_limit_reached":        aiguard.ErrQuota,
		"credit_balance_exhausted":          aiguard.ErrQuota,
		"project_spend_limit_exceeded":      aiguard.ErrQuota,
		"organization_spend_limit_exceeded": aiguard.ErrQuota,
		"rate_limit_exceeded":               aiguard.ErrRateLimited,
		"slow_down":                         aiguard.ErrRateLimited,
		"context_length_exceeded":           aiguard.ErrPromptTooLarge,
		"server_error":                      aiguard.ErrUnavailable,
		"invalid_api_key":                   aiguard.ErrUnauthorized,
		"content_policy_violation":          aiguard.ErrRejected,
		"content_filter":                    aiguard.ErrRejected,
	}
	for code, kind := range codes {
		for _, status := range []int{0, 200, 400, 403, 429, 500, 503} { // 0: an error event in a stream has no status
			api := openai.APIError{HTTPStatusCode: status, Code: code, Type: "invalid_request_error"}
			assert.Equal(t, kind, aiguard.KindOf(&api), "code %s, status %d", code, status)
			wrapped := fmt.Errorf("service: %w", &api)
			assert.Equal(t, kind, aiguard.KindOf(wrapped), "wrapped: code %s, status %d", code, status)
			byType := kind
			if again := kind == aiguard.ErrRateLimited || kind == aiguard.ErrUnavailable; again && (status == 400 || status == 403) {
				byType = statusKinds[status] // a type is vaguer: it makes no refusal worth repeating
			}
			typed := openai.APIError{HTTPStatusCode: status, Type: code}
			assert.Equal(t, byType, aiguard.KindOf(&typed), "type %s without a code, status %d", code, status)
			nested := &openai.RequestError{HTTPStatusCode: status, Err: &api}
			assert.Equal(t, kind, aiguard.KindOf(nested), "in a RequestError: code %s, status %d", code, status)
		}
	}
}

func TestKindOfUnderstandsTypesOfErrorsWithoutCode(t *testing.T) {
	for typ, kind := range map[string]aiguard.Kind{
		"rate_limit_error":      aiguard.ErrRateLimited, // Anthropic's from here
		"overloaded_error":      aiguard.ErrUnavailable,
		"api_error":             aiguard.ErrUnavailable,
		"authentication_error":  aiguard.ErrUnauthorized,
		"permission_error":      aiguard.ErrUnauthorized,
		"request_too_large":     aiguard.ErrPromptTooLarge,
		"billing_error":         aiguard.ErrQuota,
		"invalid_request_error": aiguard.ErrRejected,
		"tokens":                aiguard.ErrRateLimited, // OpenAI's 429 names the exhausted resource here
		"requests":              aiguard.ErrRateLimited,
	} {
		assert.Equal(t, kind, aiguard.KindOf(&openai.APIError{Type: typ}), typ)
	}
}

func TestKindOfReadsNumericCodesWhereThereIsNoStatus(t *testing.T) {
	for status, kind := range statusKinds {
		for _, code := range []any{status, float64(status), fmt.Sprint(status)} {
			for _, httpStatus := range []int{0, 200} { // routers put {"error":{"code":429}} into a 200
				api := &openai.APIError{Code: code, HTTPStatusCode: httpStatus}
				assert.Equal(t, kind, aiguard.KindOf(api), "code %T %v, status %d", code, code, httpStatus)
			}
		}
	}
	// A provider's error that says nothing is a failure all the same.
	for _, code := range []any{nil, "", 0, 7, -429, 1e300, math.NaN(), true, []any{"x"}} {
		assert.NotEmpty(t, aiguard.KindOf(&openai.APIError{Code: code}), "code %v", code)
	}
}

func TestContentPolicyIsRejectedWithItsOwnStatusAndWords(t *testing.T) {
	for name, api := range map[string]*openai.APIError{
		"OpenAI":               {HTTPStatusCode: 400, Code: "content_policy_violation"},
		"by type":              {HTTPStatusCode: 400, Type: "content_policy_violation"},
		"images":               {HTTPStatusCode: 400, Code: "moderation_blocked", Type: "image_generation_user_error"},
		"in a stream":          {Code: "content_filter"},
		"Azure":                {HTTPStatusCode: 400, Code: "content_filter", InnerError: &openai.InnerError{Code: "ResponsibleAIPolicyViolation"}},
		"Azure, inner only":    {HTTPStatusCode: 400, InnerError: &openai.InnerError{Code: "ResponsibleAIPolicyViolation"}},
		"Azure, in a stream":   {InnerError: &openai.InnerError{Code: "ResponsibleAIPolicyViolation"}},
		"Azure, inner, number": {HTTPStatusCode: 400, Code: 400, InnerError: &openai.InnerError{Code: "ResponsibleAIPolicyViolation"}},
	} {
		t.Run(name, func(t *testing.T) {
			for _, err := range []error{api, fmt.Errorf("service: %w", api), &aiguard.Error{Kind: aiguard.ErrRejected, Err: api}} {
				assert.Equal(t, aiguard.ErrRejected, aiguard.KindOf(err))
				assert.Equal(t, 422, aiguard.HTTPStatus(err))
				assert.Contains(t, aiguard.UserMessage(err), "content policy")
			}
		})
	}
	plain := &openai.APIError{HTTPStatusCode: 400, Code: "unknown_parameter"}
	assert.Equal(t, 400, aiguard.HTTPStatus(plain))
	assert.NotContains(t, aiguard.UserMessage(plain), "content policy")
}

// netTimeout is a time-out as net/http's TLS handshake has it: a net.Error that is no *net.OpError.
type netTimeout struct{}

func (netTimeout) Error() string   { return "net/http: TLS handshake timeout" }
func (netTimeout) Timeout() bool   { return true }
func (netTimeout) Temporary() bool { return true }

func TestKindOfKnowsErrorsOfNet(t *testing.T) {
	dial := func(err error) error { return &net.OpError{Op: "dial", Net: "tcp", Err: err} }
	read := func(err error) error { return &net.OpError{Op: "read", Net: "tcp", Err: err} }
	for name, c := range map[string]struct {
		err  error
		kind aiguard.Kind
	}{
		"refused":                   {dial(os.NewSyscallError("connect", syscall.ECONNREFUSED)), aiguard.ErrUnavailable},
		"unreachable":               {dial(os.NewSyscallError("connect", syscall.ENETUNREACH)), aiguard.ErrUnavailable},
		"DNS":                       {dial(&net.DNSError{Err: "no such host", Name: "api.example", IsNotFound: true}), aiguard.ErrUnavailable},
		"bare DNS":                  {&net.DNSError{Err: "server misbehaving", Name: "api.example"}, aiguard.ErrUnavailable},
		"reset":                     {read(os.NewSyscallError("read", syscall.ECONNRESET)), aiguard.ErrUnavailable},
		"bare reset":                {syscall.ECONNRESET, aiguard.ErrUnavailable},
		"broken pipe":               {syscall.EPIPE, aiguard.ErrUnavailable},
		"closed connection":         {net.ErrClosed, aiguard.ErrUnavailable},
		"EOF before headers":        {&url.Error{Op: "Post", URL: "http://x", Err: io.EOF}, aiguard.ErrUnavailable},
		"cut body":                  {io.ErrUnexpectedEOF, aiguard.ErrTruncated},
		"dial timeout":              {dial(os.ErrDeadlineExceeded), aiguard.ErrTimeout},
		"connect timed out, kernel": {dial(os.NewSyscallError("connect", syscall.ETIMEDOUT)), aiguard.ErrTimeout},
		"read timeout":              {read(os.ErrDeadlineExceeded), aiguard.ErrTimeout},
		"TLS handshake timeout":     {&url.Error{Op: "Post", URL: "https://x", Err: netTimeout{}}, aiguard.ErrTimeout},
		"caller left":               {&url.Error{Op: "Post", URL: "http://x", Err: context.Canceled}, ""},
		"caller's deadline":         {&url.Error{Op: "Post", URL: "http://x", Err: context.DeadlineExceeded}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			for _, err := range []error{
				c.err,
				fmt.Errorf("service: %w", c.err),
				errors.Join(errors.New("cleanup"), c.err),
				&openai.RequestError{Err: c.err}, // no status: what is inside decides
			} {
				assert.Equal(t, c.kind, aiguard.KindOf(err), "%v", err)
			}
		})
	}
}

func TestKindOfKnowsRealConnectionFailures(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, ln.Close()) // now nobody listens there
	_, err = http.Get("http://" + ln.Addr().String())
	assert.Equal(t, aiguard.ErrUnavailable, aiguard.KindOf(err), "%v", err)

	srv := aiguardtest.NewServer(t)
	for name, reply := range map[string]aiguardtest.Reply{"reset": aiguardtest.ResetConn(), "drop": aiguardtest.Drop()} {
		srv.SetDefault(reply)
		tr := srv.Transport()
		_, err = (&http.Client{Transport: tr}).Post(srv.URL+"/chat/completions", "application/json", strings.NewReader("{}"))
		assert.Equal(t, aiguard.ErrUnavailable, aiguard.KindOf(err), "%s: %v", name, err)
		tr.CloseIdleConnections()
	}
}

// net/http's own limits call themselves context.DeadlineExceeded, but no caller has left: the provider was too slow.
func TestKindOfTellsNetHTTPsTimeoutsFromTheCallersDeadline(t *testing.T) {
	inVirtualTime(t, aiguard.Config{}, func(t *testing.T, _ *aiguard.Client, srv *aiguardtest.Server) {
		srv.SetDefault(aiguardtest.Hang())
		tr := srv.Transport()
		tr.ResponseHeaderTimeout = time.Second
		defer tr.CloseIdleConnections()
		_, err := (&http.Client{Transport: tr}).Post(srv.URL+"/chat/completions", "application/json", strings.NewReader("{}"))
		require.ErrorContains(t, err, "timeout awaiting response headers")
		assert.Equal(t, aiguard.ErrTimeout, aiguard.KindOf(err))
	})
}

func TestKindOfIsEmptyForNilUnknownAndTheCallersOwnEnd(t *testing.T) {
	for _, err := range []error{
		nil,
		errors.New("a bug of ours"),
		fmt.Errorf("wrapped: %w", os.ErrNotExist),
		context.Canceled,
		context.DeadlineExceeded,
		fmt.Errorf("service: %w", context.Canceled),
		fmt.Errorf("service: %w", context.DeadlineExceeded),
		errors.Join(errors.New("cleanup"), context.DeadlineExceeded),
		&openai.RequestError{},
		&openai.RequestError{Err: errors.New("unknown")},
		&openai.RequestError{Err: context.Canceled},
	} {
		assert.Empty(t, aiguard.KindOf(err), "%#v", err)
	}
}

func TestHTTPStatusIsDefinedWithoutAKind(t *testing.T) {
	for _, c := range []struct {
		err    error
		status int
	}{
		{nil, 200},
		{context.Canceled, 499},
		{fmt.Errorf("service: %w", context.Canceled), 499},
		{&url.Error{Op: "Post", URL: "http://x", Err: context.Canceled}, 499},
		{context.DeadlineExceeded, 504},
		{fmt.Errorf("service: %w", context.DeadlineExceeded), 504},
		{errors.New("a bug of ours"), 500},
		{aiguard.Kind("of tomorrow"), 500},
	} {
		assert.Equal(t, c.status, aiguard.HTTPStatus(c.err), "%v", c.err)
	}
}

func TestUnavailableKeepsAProvidersOwn503(t *testing.T) {
	for status, want := range map[int]int{0: 502, 408: 502, 409: 502, 500: 502, 502: 502, 503: 503, 504: 502, 529: 502} {
		e := &aiguard.Error{Kind: aiguard.ErrUnavailable, StatusCode: status}
		assert.Equal(t, want, aiguard.HTTPStatus(fmt.Errorf("service: %w", e)), "provider's %d", status)
		if status != 0 {
			assert.Equal(t, want, aiguard.HTTPStatus(&openai.APIError{HTTPStatusCode: status}), "raw APIError %d", status)
			assert.Equal(t, want, aiguard.HTTPStatus(&openai.RequestError{HTTPStatusCode: status}), "raw RequestError %d", status)
		}
	}
}

const secret = "SECRET"

// tellTale are errors whose every free text is a secret: a provider's words, a prompt, a key.
func tellTale() map[string]error {
	marker := secret + " sk-proj-123 \"prompt\"\nsecond line"
	api := &openai.APIError{
		Code: marker, Message: marker, Param: &marker, Type: marker, HTTPStatus: marker, HTTPStatusCode: 400,
		InnerError: &openai.InnerError{Code: marker},
	}
	request := &openai.RequestError{HTTPStatus: marker, HTTPStatusCode: 502, Err: errors.New(marker), Body: []byte(marker)}
	causes := map[string]error{
		"APIError":         api,
		"APIError, wrap":   fmt.Errorf("%s: %w", secret, api),
		"RequestError":     request,
		"RequestError+API": &openai.RequestError{Err: api, Body: []byte(marker)},
		"stream APIError":  &openai.APIError{Code: marker, Message: marker, Type: marker},
		"net":              fmt.Errorf("answering %q: %w", secret, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}),
		"DNS":              fmt.Errorf("answering %q: %w", secret, &net.DNSError{Err: "no such host", Name: "api.example"}),
		"URL with a key":   &url.Error{Op: "Post", URL: "https://api.example/v1?key=" + secret, Err: &net.DNSError{Err: "no such host", Name: "api.example"}},
		"cancelled":        fmt.Errorf("answering %q: %w", secret, context.Canceled),
		"deadline":         fmt.Errorf("answering %q: %w", secret, context.DeadlineExceeded),
		"cut":              fmt.Errorf("answering %q: %w", secret, io.ErrUnexpectedEOF),
		"unknown":          errors.New(marker),
	}
	all := make(map[string]error)
	for name, cause := range causes {
		all["raw "+name] = cause
		for _, k := range kindTable {
			e := &aiguard.Error{Kind: k.kind, Phase: "call", Limit: time.Second, Err: cause}
			all[k.name+" of "+name] = e
			all[k.name+" of own "+name] = &aiguard.Error{Kind: k.kind, Err: fmt.Errorf("%s: %w", secret, e)} // a Do in a Do
		}
	}
	return all
}

func TestUserMessageIsAFixedSentenceWhateverTheError(t *testing.T) {
	all := tellTale()
	for name, err := range all { // the names of things are safe for operators only
		if e, ok := err.(*aiguard.Error); ok {
			e := *e
			e.Op, e.Model, e.RequestID, e.Phase = secret, secret, secret, secret
			all[name+", named"] = &e
		}
		all["joined "+name] = errors.Join(errors.New(secret), err)
	}
	all["unknown kind"] = aiguard.Kind(secret)
	all["unknown kind with facts"] = &aiguard.Error{Kind: secret}
	for name, err := range all {
		msg := aiguard.UserMessage(err)
		assert.NotContains(t, msg, secret, name)
		assert.NotContains(t, msg, "sk-", name)
		assert.NotContains(t, msg, "aiguard", name)
		assert.Regexp(t, `^[A-Z][A-Za-z ,.']+\.$`, msg, "%s: English sentences that end with a period", name)
	}
	assert.Empty(t, aiguard.UserMessage(nil))
}

func TestUserMessagesTellKindsApart(t *testing.T) {
	seen := map[string]string{}
	for _, k := range kindTable {
		msg := aiguard.UserMessage(k.kind)
		assert.NotContains(t, seen, msg, "%s has the words of %s", k.name, seen[msg])
		seen[msg] = k.name
	}
	for _, err := range []error{context.Canceled, context.DeadlineExceeded, errors.New("x")} {
		assert.NotContains(t, seen, aiguard.UserMessage(err))
	}
}

func TestUserMessageSaysHowLongToWait(t *testing.T) {
	for _, kind := range []aiguard.Kind{aiguard.ErrOverloaded, aiguard.ErrRateLimited, aiguard.ErrUnavailable} {
		for wait, words := range map[time.Duration]string{
			0:                       "in a moment.",
			time.Millisecond:        "in a second.",
			time.Second:             "in a second.",
			1001 * time.Millisecond: "in 2 seconds.", // never earlier than asked
			20 * time.Second:        "in 20 seconds.",
			90 * time.Second:        "in 90 seconds.",
			91 * time.Second:        "2 minutes.",
			10 * time.Minute:        "10 minutes.",
		} {
			err := fmt.Errorf("service: %w", &aiguard.Error{Kind: kind, RetryAfter: wait})
			assert.True(t, strings.HasSuffix(aiguard.UserMessage(err), words), "%s, %v: %s", kind, wait, aiguard.UserMessage(err))
		}
		for _, wait := range []time.Duration{2 * time.Hour, 1000 * time.Hour, math.MaxInt64} {
			msg := aiguard.UserMessage(&aiguard.Error{Kind: kind, RetryAfter: wait})
			assert.NotContains(t, msg, "in a moment", "%s: after %v a moment is a false promise", kind, wait)
		}
	}
}

// eachText hands over what operators get to see of an error: its text, and its log records.
func eachText(err error, check func(form, text string)) {
	check("Error", err.Error())
	var out bytes.Buffer
	slog.New(slog.NewTextHandler(&out, nil)).Error("m", "err", err)
	check("slog text", strings.TrimSuffix(out.String(), "\n"))
	out.Reset()
	slog.New(slog.NewJSONHandler(&out, nil)).Error("m", "err", err)
	check("slog JSON", strings.TrimSuffix(out.String(), "\n"))
}

func TestErrorTextAndLogsHaveNoWordOfProviderPromptOrKey(t *testing.T) {
	leaks := map[string]string{} // by form and cause, an example of each: there are hundreds of errors
	for name, err := range tellTale() {
		if _, ok := err.(*aiguard.Error); !ok {
			continue // its words are not ours
		}
		_, cause, _ := strings.Cut(name, " of ")
		eachText(err, func(form, text string) {
			if strings.Contains(text, secret) {
				leaks[form+" of "+cause] = text
			}
		})
	}
	for name, text := range leaks {
		t.Errorf("%s: %s", name, text)
	}
}

// What Do wraps comes from other people's code: its words are unknown to us.
func TestErrorOfDoQuotesNothingOfWhatFnSaid(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	go func() { // a server that does not speak HTTP
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = http.ReadRequest(bufio.NewReader(conn))
			fmt.Fprintf(conn, "HTTP/1.1 %s\r\n\r\n", secret) // net/http quotes the bad status
			conn.Close()
		}
	}()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	get := func(url string) error {
		resp, err := client.Get(url)
		if err == nil {
			resp.Body.Close()
		}
		return err
	}
	g := newGuard(t, aiguard.Config{Retry: aiguard.Retry{MaxAttempts: 1}})
	for name, fn := range map[string]func() error{
		"a provider's bytes": func() error { return get("http://" + ln.Addr().String()) },
		"a key in the URL":   func() error { return get("http://" + ln.Addr().String() + "/?key=" + secret) },
		"a prompt": func() error {
			return fmt.Errorf("asking %q: %w", secret, &net.DNSError{Err: "no such host", Name: "x"})
		},
	} {
		t.Run(name, func(t *testing.T) {
			err := do(t.Context(), g, func(context.Context) error { return fn() })
			e := facts(t, err, aiguard.ErrUnavailable)
			eachText(e, func(form, text string) { assert.NotContains(t, text, secret, form) })
		})
	}
}

func TestErrorTextIsOneBoundedLineWhateverIsInIt(t *testing.T) {
	huge := strings.Repeat("x", 5000) + "\r\n" + strings.Repeat("世", 5000)
	chain := error(io.ErrUnexpectedEOF)
	for range 20 { // a Do in a Do in a Do…
		chain = &aiguard.Error{Kind: aiguard.ErrUnavailable, Op: huge, Model: huge, Err: chain}
	}
	for name, e := range map[string]aiguard.Error{
		"op":              {Op: huge},
		"op, early break": {Op: "a\nb"},
		"model":           {Model: huge},
		"wide letters":    {Model: strings.Repeat("世", 500), Op: "x" + strings.Repeat("世", 500)},
		"request ID":      {RequestID: huge},
		"phase":           {Phase: huge},
		"unknown cause":   {Err: errors.New(huge)},
		"net's cause":     {Err: &net.OpError{Op: huge, Err: errors.New(huge)}},
		"code":            {Err: &openai.APIError{Code: huge, Type: huge, Message: huge}},
		"code, plain":     {Err: &openai.APIError{Code: strings.Repeat("x", 5000), Type: strings.Repeat("x", 5000)}},
		"body":            {Err: &openai.RequestError{Body: []byte(huge), Err: errors.New(huge)}},
		"numbers": {Phase: "call", Limit: math.MaxInt64, Size: math.MinInt64, Max: math.MaxInt64, StatusCode: math.MaxInt, RetryAfter: math.MaxInt64,
			Attempts: math.MaxInt, Queued: math.MaxInt64, Backoff: math.MinInt64, InFlight: math.MaxInt64},
		"chain": {Op: huge, Model: huge, Err: chain},
	} {
		t.Run(name, func(t *testing.T) {
			e.Kind = aiguard.ErrUnavailable
			eachText(&e, func(form, text string) {
				assert.False(t, strings.ContainsAny(text, "\r\n"), "%s: more than a line", form)
				assert.Less(t, len(text), 1<<10, form)
				assert.True(t, utf8.ValidString(text), "%s: cut inside a character", form)
			})
		})
	}
}

func TestErrorTextAndLogsHaveTheFacts(t *testing.T) {
	e := &aiguard.Error{
		Kind: aiguard.ErrRateLimited, Op: "chat.completions", Model: "gpt-4o", StatusCode: 429, RequestID: "req_77",
		RetryAfter: 7 * time.Second, Attempts: 3, Queued: 1500 * time.Millisecond, Backoff: 2 * time.Second, InFlight: 450 * time.Millisecond,
		Err: &openai.APIError{Code: "rate_limit_exceeded"},
	}
	eachText(e, func(form, text string) {
		for _, fact := range []string{"rate_limited", "chat.completions", "gpt-4o", "429", "req_77", "3", "rate_limit_exceeded"} {
			assert.Contains(t, text, fact, form)
		}
		for _, d := range []time.Duration{e.RetryAfter, e.Queued, e.Backoff, e.InFlight} {
			if form == "slog JSON" { // durations are nanoseconds there
				assert.Contains(t, text, fmt.Sprint(int64(d)), form)
			} else {
				assert.Contains(t, text, d.String(), form)
			}
		}
	})
	assert.True(t, strings.HasPrefix(e.Error(), "aiguard: "), "a line in a log says whose it is")
}

func TestErrorTextPutsEachPhaseIntoItsOwnWords(t *testing.T) {
	durations := []string{"call", "first_event", "stream_idle", "stream", "total", "task", "connect", "queue"}
	sizes := []string{"prompt", "prompt_tokens", "request", "weight", "queue", "memory", "task"}
	caps := []string{"response", "event", "error_body"} // how much more it is is not known
	seen := map[string]string{}
	check := func(e *aiguard.Error, facts ...string) {
		for _, fact := range facts {
			assert.Contains(t, e.Error(), fact, e.Phase)
		}
		assert.NotContains(t, seen, e.Error(), "%s has the words of %s", e.Phase, seen[e.Error()])
		seen[e.Error()] = e.Phase
	}
	for _, phase := range durations {
		check(&aiguard.Error{Kind: aiguard.ErrTimeout, Phase: phase, Limit: 31 * time.Second}, "31s")
	}
	for _, phase := range sizes {
		check(&aiguard.Error{Kind: aiguard.ErrOverloaded, Phase: phase, Size: 20_001, Max: 20_000}, "20001", "20000")
	}
	for _, phase := range caps {
		check(&aiguard.Error{Kind: aiguard.ErrResponseTooLarge, Phase: phase, Max: 65_536}, "65536")
	}
	assert.EqualError(t, &aiguard.Error{Kind: aiguard.ErrClosed, Op: "report", Phase: "task"}, "aiguard: report: closed", "no time has passed")
}

func TestErrorNamesTheSettingThatAllowsMore(t *testing.T) {
	hang, answer := aiguardtest.Hang(), aiguardtest.Text("Hello!")
	pause := aiguardtest.HangAfter(aiguardtest.Events(`{"choices":[{"index":0,"delta":{"content":"Hel"}}]}`))
	for setting, c := range map[string]struct {
		cfg   aiguard.Config
		reply aiguardtest.Reply
		call  func(context.Context, *aiguard.Client) (string, error)
	}{
		"MaxPromptChars":     {aiguard.Config{MaxPromptChars: 2}, answer, chat},
		"MaxRequestBytes":    {aiguard.Config{MaxRequestBytes: 10}, answer, chat},
		"MaxResponseBytes":   {aiguard.Config{MaxResponseBytes: 10}, answer, chat},
		"MaxEventBytes":      {aiguard.Config{MaxEventBytes: 10}, answer, streamChat},
		"StreamIdleTimeout":  {aiguard.Config{}, pause, streamChat},
		"Config.CallTimeout": {aiguard.Config{}, hang, chat},
		"MaxConcurrent": {aiguard.Config{}, answer, func(ctx context.Context, c *aiguard.Client) (string, error) {
			return chat(ctx, c.With(aiguard.Call{Weight: 6}))
		}},
		"TaskTimeout": {aiguard.Config{}, answer, func(ctx context.Context, c *aiguard.Client) (string, error) {
			return "", c.Guard().RunTask(ctx, func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
		}},
		"QueueTimeout": {aiguard.Config{MaxConcurrent: 1, CallTimeout: time.Hour}, hang, func(ctx context.Context, c *aiguard.Client) (string, error) {
			other, leave := context.WithCancel(ctx)
			var all sync.WaitGroup
			defer all.Wait()
			defer leave()
			all.Go(func() { _, _ = chat(other, c) })
			synctest.Wait()
			return chat(ctx, c)
		}},
	} {
		t.Run(setting, func(t *testing.T) {
			inVirtualTime(t, c.cfg, func(t *testing.T, client *aiguard.Client, srv *aiguardtest.Server) {
				srv.SetDefault(c.reply)
				_, err := c.call(t.Context(), client)
				assert.ErrorContains(t, err, "("+setting+")")
			})
		})
	}
}
