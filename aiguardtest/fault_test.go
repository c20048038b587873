package aiguardtest_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard/aiguardtest"
)

// ending is how the exchange of a client with a fault ends.
type ending int

const (
	whole   ending = iota // the answer is complete
	broken                // the server ends the answer before it is complete
	stalled               // the client times out
	endless               // the client stops reading at its limit
	either                // as endless, but the whole answer may have been sent by then
)

// outcome is what a client received.
type outcome struct {
	status int // 0: no headers
	header http.Header
	body   string
	err    error
	took   time.Duration
	proto  string
}

// has asserts that the body contains these texts in this order.
func (o outcome) has(t *testing.T, texts ...string) {
	t.Helper()
	rest := o.body
	for _, text := range texts {
		_, after, ok := strings.Cut(rest, text)
		require.True(t, ok, "%q is missing in %.300q", text, rest)
		rest = after
	}
}

func (o outcome) json(t *testing.T) (v any) {
	t.Helper()
	require.NoError(t, json.Unmarshal([]byte(o.body), &v), "%.300s", o.body)
	return v
}

// events returns the payloads of a stream. Each must be JSON or [DONE].
func (o outcome) events(t *testing.T) []string {
	t.Helper()
	assert.Equal(t, "text/event-stream; charset=utf-8", o.header.Get("Content-Type"))
	var events []string
	for line := range strings.Lines(o.body) {
		if data, ok := strings.CutPrefix(line, "data: "); ok {
			data = strings.TrimSuffix(data, "\n")
			require.True(t, data == "[DONE]" || json.Valid([]byte(data)), "%.300q", data)
			events = append(events, data)
		}
	}
	return events
}

// errorIn returns the code of an OpenAI error.
func errorIn(t *testing.T, body string) string {
	t.Helper()
	var e struct {
		Error struct{ Message, Code string }
	}
	require.NoError(t, json.Unmarshal([]byte(body), &e), "%.300q", body)
	assert.Contains(t, e.Error.Message, aiguardtest.ProviderText)
	return e.Error.Code
}

type expectation struct {
	status int // default 200; -1: no headers
	ending ending
	limit  int64 // bytes to read; default 4 MB
	check  func(t *testing.T, o outcome)
}

const patience = 100 * time.Millisecond

// try sends a request to the server with a limited time and a limited number of bytes.
func try(t *testing.T, s *aiguardtest.Server, c *http.Client, want expectation) outcome {
	t.Helper()
	return tryAt(t, s, c, "/chat/completions", streamBody, want)
}

func tryAt(t *testing.T, s *aiguardtest.Server, c *http.Client, path, ask string, want expectation) outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	if want.ending == stalled {
		ctx, cancel = context.WithTimeout(t.Context(), 3*patience) // what is sent must arrive in full
	}
	defer cancel()
	start := time.Now()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.URL+path, strings.NewReader(ask))
	require.NoError(t, err)
	var o outcome
	resp, err := c.Do(req)
	if err == nil {
		defer resp.Body.Close()
		if want.limit == 0 {
			want.limit = 4 << 20
		}
		var b bytes.Buffer
		_, err = io.Copy(&b, io.LimitReader(resp.Body, want.limit))
		o = outcome{status: resp.StatusCode, header: resp.Header, body: b.String(), proto: resp.Proto}
	}
	o.err, o.took = err, time.Since(start)
	return o
}

func expect(t *testing.T, s *aiguardtest.Server, c *http.Client, want expectation) {
	t.Helper()
	s.Reset()
	o := try(t, s, c, want)
	switch want.status {
	case 0:
		require.Equal(t, 200, o.status, "%v", o.err)
	case -1:
		require.Zero(t, o.status)
	default:
		require.Equal(t, want.status, o.status, "%v", o.err)
	}
	left := 0
	switch want.ending {
	case whole:
		require.NoError(t, o.err)
	case broken:
		require.Error(t, o.err)
		require.NotErrorIs(t, o.err, context.DeadlineExceeded)
	case stalled:
		require.ErrorIs(t, o.err, context.DeadlineExceeded)
		left = 1
	case endless, either:
		require.NoError(t, o.err)
		assert.EqualValues(t, want.limit, len(o.body))
		left = 1
	}
	if want.check != nil {
		want.check(t, o)
	}
	eventually(t, func() bool { return s.Active() == 0 }, "the request ends with the client")
	if want.ending != either {
		assert.Equal(t, left, s.Disconnects())
	}
}

// stream expects a stream of that many events, [DONE] included.
func stream(events int, ending ending) expectation {
	return expectation{ending: ending, check: func(t *testing.T, o outcome) {
		assert.Len(t, o.events(t), events)
		assert.True(t, strings.HasSuffix(o.body, "\n\n"))
	}}
}

// text expects texts in this order.
func text(status int, ending ending, texts ...string) expectation {
	return expectation{status: status, ending: ending, check: func(t *testing.T, o outcome) { o.has(t, texts...) }}
}

// exactly expects this body.
func exactly(status int, body string) expectation {
	return expectation{status: status, check: func(t *testing.T, o outcome) { assert.Equal(t, body, o.body) }}
}

// refusal expects an OpenAI error, with headers given as name, value pairs.
func refusal(status int, code string, headers ...string) expectation {
	return expectation{status: status, check: func(t *testing.T, o outcome) {
		assert.Equal(t, code, errorIn(t, o.body))
		for i := 0; i < len(headers); i += 2 {
			assert.Equal(t, headers[i+1], o.header.Get(headers[i]))
		}
	}}
}

func answer(check func(t *testing.T, o outcome)) expectation { return expectation{check: check} }

// lastEvent expects a stream of two events. The last is a rate limit error.
func lastEvent(ending ending, pattern string) expectation {
	return expectation{ending: ending, check: func(t *testing.T, o outcome) {
		before, after, _ := strings.Cut(pattern, "ERROR")
		o.has(t, `"content":"Hel"`, "\n\n"+before)
		i := strings.LastIndex(o.body, before)
		require.GreaterOrEqual(t, i, 0)
		require.True(t, strings.HasSuffix(o.body, after))
		assert.Equal(t, "rate_limit_exceeded", errorIn(t, strings.TrimSuffix(o.body[i+len(before):], after)))
	}}
}

const someMB = 3_000_000

// expectations has all faults that a single request shows, on every transport.
var expectations = map[aiguardtest.Fault]expectation{
	aiguardtest.FaultEOF:         {status: -1, ending: broken},
	aiguardtest.FaultReset:       {status: -1, ending: broken},
	aiguardtest.FaultRedirect301: {status: 301, check: movedTo("/moved/v1/chat/completions")},
	aiguardtest.FaultRedirect302: {status: 302, check: movedTo("/moved/v1/chat/completions")},
	aiguardtest.FaultRedirect307: {status: 307, check: movedTo("/moved/v1/chat/completions")},
	aiguardtest.FaultRedirect308: {status: 308, check: movedTo("/moved/v1/chat/completions")},
	aiguardtest.FaultRedirectHost: {status: 307, check: func(t *testing.T, o outcome) {
		assert.Regexp(t, `^//localhost(:\d+)?/moved/v1/chat/completions$`, o.header.Get("Location"))
	}},
	aiguardtest.FaultHugeHeaders: answer(func(t *testing.T, o outcome) {
		total := 0
		for _, v := range o.header["X-Huge"] {
			total += len(v)
		}
		assert.Equal(t, 9_000_000, total)
		o.json(t)
	}),
	aiguardtest.FaultManyHeaders: answer(func(t *testing.T, o outcome) {
		if o.proto == "HTTP/2.0" {
			assert.Len(t, o.header["X"], 290_000)
		} else {
			assert.Greater(t, len(o.header), 900_000)
		}
		o.json(t)
	}),
	aiguardtest.FaultEndlessEarlyHints: {status: -1, ending: stalled},

	aiguardtest.FaultNoHeaders:   {status: -1, ending: stalled},
	aiguardtest.FaultHeadersOnly: {ending: stalled, check: func(t *testing.T, o outcome) { assert.Empty(t, o.body) }},
	aiguardtest.FaultByteASecond: {ending: stalled, check: func(t *testing.T, o outcome) { assert.Empty(t, o.body) }},
	aiguardtest.FaultStalledError429: {status: 429, ending: stalled, check: func(t *testing.T, o outcome) {
		assert.Equal(t, "1", o.header.Get("Retry-After"))
		o.has(t, `{"error":{"message":"`)
	}},
	aiguardtest.FaultStalledError500: text(500, stalled, `{"error":{"message":"`),
	aiguardtest.FaultHugeAnswer: {ending: endless, limit: someMB, check: func(t *testing.T, o outcome) {
		o.has(t, `"choices"`, `"content":"aaaa`, strings.Repeat("a", someMB/2))
	}},
	aiguardtest.FaultManyObjects: answer(func(t *testing.T, o outcome) {
		assert.Len(t, o.json(t).(map[string]any)["choices"], 300_001)
		assert.InDelta(t, 900_000, len(o.body), 1000)
	}),
	aiguardtest.FaultDeepNesting: answer(func(t *testing.T, o outcome) {
		assert.Equal(t, `{"choices":[`+strings.Repeat("[", 100_000)+strings.Repeat("]", 100_000)+"]}", o.body)
	}),
	aiguardtest.FaultGzipBomb: {ending: either, limit: someMB, check: func(t *testing.T, o outcome) {
		o.has(t, `"content":"aaaa`, strings.Repeat("a", someMB/2))
	}},
	aiguardtest.FaultGzipBombError: {status: 500, ending: either, limit: someMB, check: func(t *testing.T, o outcome) {
		o.has(t, `{"error":{"message":"`, strings.Repeat("a", someMB/2))
	}},
	aiguardtest.FaultHugeError: {status: 500, ending: endless, limit: someMB, check: func(t *testing.T, o outcome) {
		o.has(t, `{"error":{"message":"`, strings.Repeat("a", someMB/2))
	}},
	aiguardtest.FaultTruncatedJSON: answer(func(t *testing.T, o outcome) {
		assert.False(t, json.Valid([]byte(o.body)))
		o.has(t, `{"id":`)
	}),
	aiguardtest.FaultCutAnswer:   text(200, broken, `{"id":`),
	aiguardtest.FaultResetAnswer: text(200, broken, `{"id":`),
	aiguardtest.FaultErrorInOK:   refusal(200, "rate_limit_exceeded"),
	aiguardtest.FaultNull:        exactly(200, "null"),
	aiguardtest.FaultNoChoices:   exactly(200, "{}"),
	aiguardtest.FaultEmptyBody:   exactly(200, ""),
	aiguardtest.FaultNoContent:   exactly(204, ""),
	aiguardtest.FaultHTML:        text(200, whole, "<html>", aiguardtest.ProviderText),
	aiguardtest.FaultWrongType: answer(func(t *testing.T, o outcome) {
		assert.Equal(t, "image/png", o.header.Get("Content-Type"))
		o.json(t)
	}),
	aiguardtest.FaultTrailingBytes: answer(func(t *testing.T, o outcome) {
		assert.True(t, strings.HasSuffix(o.body, "}}"+strings.Repeat("x", 16<<10)))
	}),
	aiguardtest.FaultUndrained: answer(func(t *testing.T, o outcome) {
		o.json(t)
		assert.Greater(t, len(o.body)-len(strings.TrimSpace(o.body)), 4000)
		assert.Empty(t, o.header.Get("Content-Length"))
	}),
	aiguardtest.FaultErrorText:      exactly(500, `{"error":"`+aiguardtest.ProviderText+`"}`),
	aiguardtest.FaultHTML502:        text(502, whole, "<html>", aiguardtest.ProviderText),
	aiguardtest.FaultHTML504:        text(504, whole, "<html>", aiguardtest.ProviderText),
	aiguardtest.FaultNullCode:       text(500, whole, `"code":null}}`),
	aiguardtest.FaultNumericCode:    text(500, whole, `"code":500}}`),
	aiguardtest.FaultFailedResponse: text(200, whole, `"object":"response"`, `"status":"failed"`, `"code":"server_error"`),

	aiguardtest.FaultStreamNoEvent: {ending: stalled, check: func(t *testing.T, o outcome) {
		assert.Empty(t, o.events(t))
	}},
	aiguardtest.FaultStreamSilence: stream(2, stalled),
	aiguardtest.FaultStreamOnlyPings: {ending: stalled, check: func(t *testing.T, o outcome) {
		assert.Empty(t, strings.ReplaceAll(o.body, ": ping\n\n", ""))
		assert.GreaterOrEqual(t, strings.Count(o.body, "ping"), 2)
	}},
	aiguardtest.FaultStreamManyPings: answer(func(t *testing.T, o outcome) {
		assert.Len(t, o.events(t), 4)
		assert.True(t, strings.HasPrefix(o.body, strings.Repeat(": ping\n\n", 200)+"data: "))
	}),
	aiguardtest.FaultStreamNeverEnds: {ending: stalled, check: func(t *testing.T, o outcome) {
		assert.GreaterOrEqual(t, strings.Count(o.body, "\n\n"), 2)
	}},
	aiguardtest.FaultStreamLong: answer(func(t *testing.T, o outcome) {
		assert.Len(t, o.events(t), 20)
		assert.GreaterOrEqual(t, o.took, 2*time.Second)
	}),
	aiguardtest.FaultStreamHugeLine: {ending: endless, limit: someMB, check: func(t *testing.T, o outcome) {
		o.has(t, "data: ", `"content":"a`)
		assert.NotContains(t, o.body, "\n")
	}},
	aiguardtest.FaultStreamEndlessLine: {ending: endless, limit: someMB, check: func(t *testing.T, o outcome) {
		o.has(t, "data: ", `"content":"a`)
		assert.NotContains(t, o.body, "\n")
	}},
	aiguardtest.FaultStreamHugeComments: {limit: 20 << 20, check: func(t *testing.T, o outcome) {
		assert.Len(t, o.events(t), 202)
		comments := 0
		for line := range strings.Lines(o.body) {
			if line[0] == ':' {
				require.Len(t, line, 64<<10)
				comments++
			}
		}
		assert.Equal(t, 200, comments)
	}},
	aiguardtest.FaultStreamNoFinish: answer(func(t *testing.T, o outcome) {
		assert.Len(t, o.events(t), 2)
		assert.NotContains(t, o.body, "stop")
	}),
	aiguardtest.FaultStreamNoFinishNoLF: answer(func(t *testing.T, o outcome) {
		assert.Len(t, o.events(t), 2)
		assert.True(t, strings.HasSuffix(o.body, "}"))
	}),
	aiguardtest.FaultStreamNoDone:         stream(3, whole),
	aiguardtest.FaultStreamNoDoneHeldOpen: stream(3, stalled),
	aiguardtest.FaultStreamError:          lastEvent(whole, "data: ERROR\n\n"),
	aiguardtest.FaultStreamErrorOddSpacing: answer(func(t *testing.T, o outcome) {
		o.has(t, `"content":"Hel"`, "\n\ndata:  {", ` "error" : `, "\n\n")
		_, data, _ := strings.Cut(o.body, "\n\ndata:")
		assert.Equal(t, "rate_limit_exceeded", errorIn(t, data))
	}),
	aiguardtest.FaultStreamErrorHeldOpen:  lastEvent(stalled, "data: ERROR\n"),
	aiguardtest.FaultStreamErrorAfterPing: lastEvent(whole, ": ping\n\ndata: ERROR\n\n"),
	aiguardtest.FaultStreamErrorEvent:     lastEvent(whole, "event: error\ndata: ERROR\n\n"),
	aiguardtest.FaultStreamMalformed: answer(func(t *testing.T, o outcome) {
		payloads := strings.Split(strings.TrimSuffix(o.body, "\n\n"), "\n\n")
		require.Len(t, payloads, 4)
		for i, want := range []bool{true, false, true} {
			assert.Equal(t, want, json.Valid([]byte(strings.TrimPrefix(payloads[i], "data: "))))
		}
	}),
	aiguardtest.FaultStreamAnsweredJSON: answer(func(t *testing.T, o outcome) {
		assert.Equal(t, "application/json", o.header.Get("Content-Type"))
		assert.NotEmpty(t, o.json(t).(map[string]any)["choices"])
	}),
	aiguardtest.FaultStreamAnsweredHTML:  text(200, whole, "<html>"),
	aiguardtest.FaultStreamAnsweredError: refusal(200, "rate_limit_exceeded", "Content-Type", "application/json"),
	aiguardtest.FaultStreamCut:           text(200, broken, `"content":"Hel"`, "\n\ndata: {"),
	aiguardtest.FaultStreamReset:         text(200, broken, `"content":"Hel"`, "\n\ndata: {"),

	aiguardtest.FaultStreamOpenedThenNothing: stream(1, stalled),
	aiguardtest.FaultStreamManyObjects: answer(func(t *testing.T, o outcome) {
		events := o.events(t)
		require.Len(t, events, 2)
		assert.Equal(t, 300_001, strings.Count(events[0], "{}"))
	}),

	aiguardtest.FaultRetryAfter: refusal(429, "rate_limit_exceeded", "Retry-After", "1"),
	aiguardtest.FaultRetryAfterDate: {status: 429, check: func(t *testing.T, o outcome) {
		date, err := http.ParseTime(o.header.Get("Retry-After"))
		require.NoError(t, err)
		assert.WithinDuration(t, time.Now().Add(1500*time.Millisecond), date, time.Second)
	}},
	aiguardtest.FaultRetryAfterMS:       refusal(429, "rate_limit_exceeded", "retry-after-ms", "500"),
	aiguardtest.FaultXMSRetryAfterMS:    refusal(429, "rate_limit_exceeded", "x-ms-retry-after-ms", "500"),
	aiguardtest.FaultRetryAfterLong:     refusal(429, "rate_limit_exceeded", "Retry-After", "3600"),
	aiguardtest.FaultRetryAfterAbsurd:   refusal(429, "rate_limit_exceeded", "Retry-After", "1000000000"),
	aiguardtest.FaultRetryAfterNegative: refusal(429, "rate_limit_exceeded", "Retry-After", "-5"),
	aiguardtest.FaultRetryAfterGarbage:  refusal(429, "rate_limit_exceeded", "Retry-After", "soon; perhaps"),
	aiguardtest.FaultRetryAfterNaN:      refusal(429, "rate_limit_exceeded", "Retry-After", "NaN"),
	aiguardtest.FaultInsufficientQuota:  refusal(429, "insufficient_quota"),
	aiguardtest.FaultBillingNotActive:   refusal(429, "billing_not_active"),
	aiguardtest.FaultSpendLimit:         refusal(429, "project_spend_limit_exceeded"),
	aiguardtest.FaultCreditExhausted:    refusal(429, "credit_balance_exhausted"),
	aiguardtest.FaultSlowDown:           refusal(429, "slow_down"),
	aiguardtest.FaultPromptTooLong:      refusal(400, "context_length_exceeded"),
	aiguardtest.FaultContentPolicy:      refusal(400, "content_policy_violation"),
	aiguardtest.FaultStatus401:          refusal(401, "invalid_api_key"),
	aiguardtest.FaultStatus403:          refusal(403, "unsupported_country_region_territory"),
	aiguardtest.FaultStatus408:          refusal(408, ""),
	aiguardtest.FaultStatus409:          refusal(409, ""),
	aiguardtest.FaultStatus500:          refusal(500, ""),
	aiguardtest.FaultStatus502:          refusal(502, ""),
	aiguardtest.FaultStatus503:          refusal(503, ""),
	aiguardtest.FaultStatus504:          refusal(504, ""),
	aiguardtest.FaultStatus529:          refusal(529, ""),
}

func movedTo(path string) func(t *testing.T, o outcome) {
	return func(t *testing.T, o outcome) { assert.Equal(t, path, o.header.Get("Location")) }
}

// inOneRequest returns the faults in expectations. The others have their own tests.
func inOneRequest() []aiguardtest.Fault {
	return slices.DeleteFunc(aiguardtest.Faults(), func(f aiguardtest.Fault) bool {
		return f.Connection() || f == aiguardtest.FaultStaleKeepAlive
	})
}

// meets asserts that a request meets the fault as expected.
func meets(t *testing.T, s *aiguardtest.Server, c *http.Client, f aiguardtest.Fault) {
	t.Helper()
	want, ok := expectations[f]
	require.True(t, ok, "%s has no expectation", f)
	// Connect before the client's timeout starts.
	s.Play("")
	expect(t, s, c, expectation{})
	s.Play(f)
	expect(t, s, c, want)
}

func TestEveryFaultDoesWhatItSays(t *testing.T) {
	for _, mode := range []string{"http1", "http2"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			s := aiguardtest.NewServer(t, modes[mode]...)
			c := newHTTP(t, s)
			c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
			for _, f := range inOneRequest() {
				if f != aiguardtest.FaultStreamLong { // takes virtual time only
					t.Run(f.String(), func(t *testing.T) { meets(t, s, c, f) })
				}
			}
		})
	}
}

func TestVirtualEveryFaultDoesWhatItSays(t *testing.T) {
	eachPipe(t, func(t *testing.T, s *aiguardtest.Server, c *http.Client) {
		c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
		for _, f := range inOneRequest() {
			if f == aiguardtest.FaultHugeHeaders || f == aiguardtest.FaultManyHeaders {
				continue // slow, and the same on every transport
			}
			t.Log(f) // the last one logged is the one that failed
			meets(t, s, c, f)
		}
	})
}

func TestFaultTableIsDocumented(t *testing.T) {
	page, err := os.ReadFile("doc.go")
	require.NoError(t, err)
	source, err := os.ReadFile("fault.go")
	require.NoError(t, err)
	seen := map[aiguardtest.Fault]bool{}
	rest := string(page)
	for _, f := range aiguardtest.Faults() {
		assert.False(t, seen[f], "%s is listed twice", f)
		seen[f] = true
		assert.NotEmpty(t, f.Doc())
		// The order is the same, and the constant has the fault's name.
		before, _, ok := strings.Cut(string(source), " = "+strconv.Quote(string(f))+"\n")
		require.True(t, ok, f)
		constant := strings.Fields(before[strings.LastIndex(before, "\n")+1:])[0]
		_, after, ok := strings.Cut(rest, "//\t"+constant+" ")
		require.True(t, ok, "%s: is not in the documentation, or not in its place", constant)
		line, after, _ := strings.Cut(after, "\n")
		assert.Equal(t, f.Doc(), strings.TrimSpace(line), constant)
		rest = after
	}
	assert.Equal(t, strings.Count(string(source), "Fault = \""), len(seen), "a constant is not in the table")
	assert.Len(t, seen, len(expectations)+5)
}

func TestPlayPrecedesTheScriptAndKeepsIt(t *testing.T) {
	eachMode(t, func(t *testing.T, s *aiguardtest.Server, c *http.Client) {
		status := func(code int) aiguardtest.Reply { return aiguardtest.JSON(code, "{}") }
		s.SetDefault(status(203))
		s.Handle(func(*aiguardtest.Request) aiguardtest.Reply { return status(202) })
		s.Enqueue(status(201), aiguardtest.FaultStatus529.Reply())
		s.Play(aiguardtest.FaultStatus503)
		for _, want := range []int{503, 503, 201, 529, 202} {
			if want == 201 {
				s.Play("")
			}
			resp, _, err := post(t.Context(), s, c, chatBody)
			require.NoError(t, err)
			assert.Equal(t, want, resp.StatusCode)
		}
		assert.Equal(t, 5, s.Count())
	})
}

func TestFaultsThatDoNotExistOrCannotBeReplies(t *testing.T) {
	s := aiguardtest.NewServer(t, aiguardtest.Pipe())
	nonsense := aiguardtest.Fault("nonsense")
	assert.PanicsWithValue(t, "aiguardtest: unknown fault nonsense", func() { s.Play(nonsense) })
	assert.PanicsWithValue(t, "aiguardtest: unknown fault nonsense", func() { nonsense.Reply() })
	assert.Empty(t, nonsense.Doc())
	assert.False(t, nonsense.Connection())
	below := 0
	for _, f := range aiguardtest.Faults() {
		if f.Connection() {
			below++
			assert.Panics(t, func() { f.Reply() })
		} else {
			assert.NotNil(t, f.Reply())
		}
	}
	assert.Equal(t, 4, below)
}

func TestHugeBodiesHaveTheDocumentedSize(t *testing.T) {
	t.Parallel()
	s := aiguardtest.NewServer(t)
	c := newHTTP(t, s)
	for f, want := range map[aiguardtest.Fault]float64{
		aiguardtest.FaultHugeAnswer:     200e6,
		aiguardtest.FaultHugeError:      200e6,
		aiguardtest.FaultStreamHugeLine: 50e6,
	} {
		s.Play(f)
		resp, err := c.Post(s.URL+"/chat/completions", "application/json", strings.NewReader(streamBody))
		require.NoError(t, err)
		last := &tail{}
		n, err := io.Copy(last, resp.Body)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		assert.InDelta(t, want, n, 1000, f)
		end := "}}"
		if f == aiguardtest.FaultStreamHugeLine {
			end = "data: [DONE]\n\n"
		}
		assert.True(t, bytes.HasSuffix(last.b, []byte(end)), "%s ends with %q", f, last.b)
	}
	assert.Zero(t, s.Disconnects())
}

// tail is a writer that keeps the end of the data.
type tail struct{ b []byte }

func (w *tail) Write(p []byte) (int, error) {
	w.b = append(w.b, p[max(0, len(p)-100):]...)
	w.b = w.b[max(0, len(w.b)-100):]
	return len(p), nil
}

func TestAGzipBombIsSmallOnTheWire(t *testing.T) {
	t.Parallel()
	s := aiguardtest.NewServer(t)
	tr := s.Transport()
	tr.DisableCompression = true
	t.Cleanup(tr.CloseIdleConnections)
	s.Play(aiguardtest.FaultGzipBomb)
	_, body, err := post(t.Context(), s, &http.Client{Transport: tr}, chatBody)
	require.NoError(t, err)
	assert.Less(t, len(body), 5<<20)

	// The first two members of the stream are enough to calculate the rest.
	all := strings.NewReader(body)
	z, err := gzip.NewReader(all)
	require.NoError(t, err)
	z.Multistream(false)
	first, err := io.ReadAll(z)
	require.NoError(t, err)
	require.NoError(t, z.Reset(all))
	z.Multistream(false)
	before := all.Len()
	n, err := io.Copy(io.Discard, z)
	require.NoError(t, err)
	assert.EqualValues(t, 4<<20, n)
	assert.Contains(t, string(first), `"content":"`)
	size := before - all.Len() + 10 // including its header
	assert.InDelta(t, 1024, len(body)/size, 2)
}

func TestFollowedRedirectsAreAnswered(t *testing.T) {
	eachMode(t, func(t *testing.T, s *aiguardtest.Server, c *http.Client) {
		for _, f := range []aiguardtest.Fault{
			aiguardtest.FaultRedirect301, aiguardtest.FaultRedirect302, aiguardtest.FaultRedirect307,
			aiguardtest.FaultRedirect308, aiguardtest.FaultRedirectHost,
		} {
			s.Reset()
			s.Play(f)
			resp, body, err := post(t.Context(), s, c, chatBody)
			require.NoError(t, err, f)
			requests := s.Requests()
			require.Len(t, requests, 2, f)
			assert.Equal(t, "/moved/v1/chat/completions", requests[1].Path)
			if f == aiguardtest.FaultRedirect301 || f == aiguardtest.FaultRedirect302 {
				assert.Equal(t, http.MethodGet, requests[1].Method, "as net/http does")
				assert.Equal(t, http.StatusMethodNotAllowed, resp.StatusCode)
				continue
			}
			assert.Equal(t, 200, resp.StatusCode, f)
			assert.Contains(t, body, "Hello!")
			assert.Equal(t, chatBody, string(requests[1].Body))
			if f == aiguardtest.FaultRedirectHost {
				assert.True(t, strings.HasPrefix(requests[1].Host, "localhost"), requests[1].Host)
			}
		}
		s.Play("")
		s.Enqueue(aiguardtest.Redirect(307, "/v1/models"))
		resp, _, err := post(t.Context(), s, c, chatBody)
		require.NoError(t, err)
		assert.Equal(t, "/v1/models", resp.Request.URL.Path)
	})
}
