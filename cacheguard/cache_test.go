package cacheguard_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
	"github.com/aiguard-go/aiguard/cacheguard"
)

var (
	missHit  = []string{"miss", "hit"}
	missMiss = []string{"miss", "miss"}
	neither  = []string{"", ""}
)

func TestAnswersAreCachedByEndpointAndRequest(t *testing.T) {
	const (
		chat      = "/chat/completions"
		azure     = "/openai/deployments/gpt/chat/completions?api-version=2024-10-21"
		responses = "/responses"
	)
	for name, c := range map[string]struct {
		endpoint, body string
		want           []string
	}{
		"chat":                               {chat, certain, missHit},
		"chat stream":                        {chat, certainStream, missHit},
		"chat with tools, seed and n":        {chat, `{"temperature":0,"n":3,"seed":7,"tools":[{"type":"function"}],"messages":[]}`, missHit},
		"Azure":                              {azure, certain, missHit},
		"completions":                        {"/completions", `{"temperature":0.0,"prompt":"Hi"}`, missHit},
		"responses":                          {responses, `{"temperature":0,"store":false,"input":"Hi"}`, missHit},
		"responses stream":                   {responses, `{"temperature":0,"store":false,"stream":true,"input":"Hi"}`, missHit},
		"Anthropic messages":                 {"/messages", `{"temperature":0,"max_tokens":9,"messages":[]}`, missHit},
		"Anthropic messages stream":          {"/messages", `{"temperature":0,"max_tokens":9,"stream":true,"messages":[]}`, missHit},
		"embeddings":                         {"/embeddings", `{"input":"Hi"}`, missHit},
		"moderations":                        {"/moderations", `{"input":"Hi"}`, missHit},
		"go-openai's zero temperature":       {chat, `{"temperature":1e-45,"messages":[]}`, missHit},
		"temperature above 0":                {chat, `{"temperature":0.1,"messages":[]}`, missMiss},
		"no temperature":                     {chat, dice, missMiss},
		"null temperature":                   {chat, `{"temperature":null,"messages":[]}`, missMiss},
		"temperature elsewhere":              {chat, `{"messages":[],"metadata":{"temperature":0}}`, missMiss},
		"responses, sampled":                 {responses, `{"store":false,"input":"Hi"}`, missMiss},
		"responses that are stored":          {responses, `{"temperature":0,"input":"Hi"}`, neither},
		"responses in the background":        {responses, `{"temperature":0,"store":false,"background":true,"input":"Hi"}`, neither},
		"responses in a conversation":        {responses, `{"temperature":0,"store":false,"conversation":"c","input":"Hi"}`, neither},
		"stored chat":                        {chat, `{"temperature":0,"store":true,"messages":[]}`, neither},
		"stored chat, escaped":               {chat, `{"temperature":0,"st\u006fre":true,"messages":[]}`, neither},
		"a duplicate field":                  {chat, `{"temperature":0,"messages":[],"temperature":0}`, neither},
		"a duplicate field, escaped":         {chat, `{"temperature":0,"messages":[{"role":"user","rol\u0065":"user"}]}`, neither},
		"not an object":                      {chat, `[]`, neither},
		"broken JSON":                        {chat, `{"temperature":0,"messages":[}`, neither},
		"more than one value":                {chat, certain + "{}", neither},
		"too deep":                           {chat, `{"temperature":0,"x":` + strings.Repeat("[", 200) + strings.Repeat("]", 200) + `}`, neither},
		"a body larger than MaxRequestBytes": {chat, `{"temperature":0,"messages":[],"x":"` + strings.Repeat("x", 4096) + `"}`, neither},
	} {
		t.Run(name, func(t *testing.T) {
			inVirtualTime(t, cacheguard.Config{MaxRequestBytes: 4096}, func(t *testing.T, w *world) {
				var got []string
				var bodies []string
				var lengths []int64
				for range 2 {
					a := w.ask(t.Context(), c.endpoint, c.body)
					require.NoError(t, a.err)
					got, bodies, lengths = append(got, a.source), append(bodies, a.body), append(lengths, a.length)
				}
				require.Equal(t, c.want, got)
				wantRequests := 2
				if got[1] == "hit" {
					wantRequests = 1
					require.Equal(t, bodies[0], bodies[1], "byte for byte")
					require.Equal(t, lengths[0], lengths[1])
				}
				require.Equal(t, wantRequests, w.srv.Count())
				require.EqualValues(t, 2-wantRequests, w.cache.Stats().Stored)
				for _, r := range w.srv.Requests() {
					require.Equal(t, c.body, string(r.Body), "sent as it was written")
				}
			})
		})
	}
}

func TestUncacheableRequestsPassThrough(t *testing.T) {
	inVirtualTime(t, cacheguard.Config{MaxRequestBytes: 1000}, func(t *testing.T, w *world) {
		url := w.srv.URL + "/chat/completions"
		long := `{"temperature":0,"x":"` + strings.Repeat("x", 1000) + `"}`
		for name, req := range map[string]*http.Request{
			"GET": func() *http.Request {
				r := newRequest(t.Context(), w.srv.URL+"/models", "")
				r.Method, r.Body, r.GetBody = http.MethodGet, nil, nil
				return r
			}(),
			"a body that cannot be sent again": func() *http.Request {
				r := newRequest(t.Context(), url, certain)
				r.GetBody = nil
				return r
			}(),
			"a long body of unknown length": func() *http.Request {
				r := newRequest(t.Context(), url, long)
				r.ContentLength = -1
				return r
			}(),
			"another content type":         newRequest(t.Context(), url, certain, "Content-Type", "text/plain"),
			"a compressed body":            newRequest(t.Context(), url, certain, "Content-Encoding", "gzip"),
			"a request that creates state": newRequest(t.Context(), w.srv.URL+"/threads/t/messages", certain),
			"images":                       newRequest(t.Context(), w.srv.URL+"/images/generations", certain),
			"speech":                       newRequest(t.Context(), w.srv.URL+"/audio/speech", certain),
		} {
			before := w.srv.Count()
			for range 2 {
				var want string
				if req.GetBody != nil {
					body, err := req.GetBody()
					require.NoError(t, err)
					all, err := io.ReadAll(body)
					require.NoError(t, err)
					want, req.Body = string(all), io.NopCloser(strings.NewReader(string(all)))
				} else if req.Body != nil {
					want, req.Body = certain, io.NopCloser(strings.NewReader(certain))
				}
				resp, err := w.cache.RoundTrip(req)
				if err == nil {
					require.Empty(t, resp.Header.Get(cacheguard.Header), name)
					resp.Body.Close()
				}
				sent := w.srv.Requests()
				require.Equal(t, want, string(sent[len(sent)-1].Body), name)
			}
			require.GreaterOrEqual(t, w.srv.Count(), before+2, name)
		}
		require.Zero(t, w.cache.Stats().Misses)
		require.Zero(t, w.cache.Stats().Stored)
	})
}

// A guard returns only complete answers. A next that is not a guard may return anything.
func TestOnlyCompleteAnswersAreCached(t *testing.T) {
	const (
		part = `data: {"choices":[{"index":0,"delta":{"content":"Hel"},"finish_reason":null}]}` + "\n\n"
		last = `data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}` + "\n\n"
		done = "data: [DONE]\n\n"
		json = "application/json"
		sse  = "text/event-stream"
	)
	errCut := errors.New("cut")
	cut := func(text string) io.Reader { return io.MultiReader(strings.NewReader(text), failing{errCut}) }
	whole := func(text string) io.Reader { return strings.NewReader(text) }
	for name, c := range map[string]struct {
		status  int
		body    func() io.Reader
		stream  bool
		header  string
		kept    bool
		wantErr error
	}{
		"answer":                         {body: func() io.Reader { return whole(`{"choices":[{"finish_reason":"stop"}]} `) }, kept: true},
		"answer cut at the token limit":  {body: func() io.Reader { return whole(`{"choices":[{"finish_reason":"length"}]}`) }, kept: true},
		"answer with a failure status":   {status: 500, body: func() io.Reader { return whole(`{"choices":[{}]}`) }},
		"answer with status 202":         {status: 202, body: func() io.Reader { return whole(`{"choices":[{}]}`) }},
		"truncated answer":               {body: func() io.Reader { return cut(`{"choices":[{}]}`) }, wantErr: errCut},
		"answer that ends early":         {body: func() io.Reader { return whole(`{"choices":[{}]`) }},
		"answer without choices":         {body: func() io.Reader { return whole(`{"choices":[]}`) }},
		"answer with trailing data":      {body: func() io.Reader { return whole(`{"choices":[{}]} {}`) }},
		"error":                          {body: func() io.Reader { return whole(`{"error":{"message":"no"}}`) }},
		"nothing":                        {body: func() io.Reader { return whole("") }},
		"HTML":                           {body: func() io.Reader { return whole("<html>") }},
		"compressed":                     {body: func() io.Reader { return whole(`{"choices":[{}]}`) }, header: "gzip"},
		"failed answer":                  {body: func() io.Reader { return whole(`{"choices":[{"finish_reason":"engine_overloaded"}]}`) }},
		"answer with a failed choice":    {body: func() io.Reader { return whole(`{"choices":[{"finish_reason":"stop","error":{"code":502}}]}`) }},
		"filtered answer":                {body: func() io.Reader { return whole(`{"choices":[{"finish_reason":"content_filter"}]}`) }},
		"answer without a finish reason": {body: func() io.Reader { return whole(`{"choices":[{"finish_reason":null}]}`) }},
		"failed stream":                  {stream: true, body: func() io.Reader { return whole(part + strings.ReplaceAll(last, "stop", "error") + done) }},
		"filtered stream":                {stream: true, body: func() io.Reader { return whole(part + strings.ReplaceAll(last, "stop", "content_filter") + done) }},
		"stream with [DONE] alone":       {stream: true, body: func() io.Reader { return whole(part + done) }},
		"stream":                         {stream: true, body: func() io.Reader { return whole(part + last + done) }, kept: true},
		"stream with a comment":          {stream: true, body: func() io.Reader { return whole(": ping\n\n" + part + last + done) }, kept: true},
		"stream without [DONE]":          {stream: true, body: func() io.Reader { return whole(part + last) }, kept: true},
		"stream cut after its end":       {stream: true, body: func() io.Reader { return cut(part + last + done) }, kept: true},
		"stream cut before [DONE]":       {stream: true, body: func() io.Reader { return cut(part + last) }, wantErr: errCut},
		"stream without a finish reason": {stream: true, body: func() io.Reader { return whole(part) }},
		"stream with one of two choices finished": {stream: true, body: func() io.Reader {
			return whole(part + strings.ReplaceAll(part, `"index":0`, `"index":1`) + last)
		}},
		"stream with an error":      {stream: true, body: func() io.Reader { return whole(part + `data: {"error":{"message":"no"}}` + "\n\n" + done) }},
		"malformed stream":          {stream: true, body: func() io.Reader { return whole(part + "data: x\n\n" + last + done) }},
		"empty stream":              {stream: true, body: func() io.Reader { return whole(done) }},
		"JSON for a stream request": {stream: true, body: func() io.Reader { return whole(`{"choices":[{}]}`) }},
		"stream for a JSON request": {body: func() io.Reader { return whole(part + last + done) }},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				asked := 0
				request, media := certain, json
				if c.stream {
					request, media = certainStream, sse
				}
				cache := newTransport(t, roundTripper(func(*http.Request) (*http.Response, error) {
					asked++
					resp := reply(media, c.body())
					if c.status != 0 {
						resp.StatusCode = c.status
					}
					if c.header != "" {
						resp.Header.Set("Content-Encoding", c.header)
					}
					return resp, nil
				}), cacheguard.Config{})
				want, _ := io.ReadAll(c.body())
				for range 2 {
					a := read(cache.RoundTrip(newRequest(t.Context(), "http://x/v1/chat/completions", request)))
					require.Equal(t, c.wantErr, a.err)
					require.Equal(t, string(want), a.body)
					synctest.Wait()
				}
				if c.kept {
					require.Equal(t, 1, asked)
				} else {
					require.Equal(t, 2, asked)
				}
			})
		})
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func TestHitTakesNoSlotAndSendsNothing(t *testing.T) {
	for name, body := range map[string]string{"answer": certain, "stream": certainStream} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newGuardedWorld(t, aiguardtest.NewServer(t, aiguardtest.Pipe()), cacheguard.Config{}, aiguard.Config{MaxConcurrent: 1})
				first := w.chat(t.Context(), body)
				require.NoError(t, first.err)

				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				w.srv.SetDefault(aiguardtest.Hang())
				go w.chat(ctx, dice) // holds the only slot
				synctest.Wait()
				require.EqualValues(t, 1, w.guard.Stats().InFlight)
				calls, requests := w.guard.Stats().Calls, w.srv.Count()

				start := time.Now()
				a := w.chat(t.Context(), body)
				require.NoError(t, a.err)
				assert.Equal(t, "hit", a.source)
				assert.Equal(t, first.body, a.body)
				assert.Zero(t, time.Since(start))
				assert.Equal(t, calls, w.guard.Stats().Calls)
				assert.Equal(t, requests, w.srv.Count())
				assert.EqualValues(t, 1, w.cache.Stats().Hits)
			})
		})
	}
}

// In every schedule, the answer is in memory before its caller reads the last byte.
func TestNextRequestOfTheSameCallerIsAHit(t *testing.T) {
	cache := newTransport(t, roundTripper(func(*http.Request) (*http.Response, error) {
		return reply("application/json", strings.NewReader(`{"choices":[{}]}`)), nil
	}), cacheguard.Config{})
	for i := range 500 {
		for _, want := range missHit {
			body := fmt.Sprintf(`{"temperature":0,"messages":[%d]}`, i)
			a := read(cache.RoundTrip(newRequest(t.Context(), "http://x/v1/chat/completions", body)))
			require.NoError(t, a.err)
			require.Equal(t, want, a.source)
		}
	}
}

func TestEndedContextGetsNoAnswer(t *testing.T) {
	inVirtualTime(t, cacheguard.Config{}, func(t *testing.T, w *world) {
		w.srv.SetDefault(aiguardtest.Slowly(time.Second, aiguardtest.TextN("Hello there", 5)))
		stream, err := w.open(t.Context(), "/chat/completions", certainStream)
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		ask := func() {
			_, err := w.cache.RoundTrip(newRequest(ctx, w.srv.URL+"/chat/completions", certainStream))
			require.ErrorIs(t, err, context.Canceled)
		}
		ask() // coalesced
		require.NoError(t, read(stream, nil).err)
		ask() // cached
		assert.Zero(t, w.cache.Stats().Shared)
		assert.Zero(t, w.cache.Stats().Hits)
		assert.Equal(t, 1, w.srv.Count())
	})
}

func TestHeaderReportsTheSource(t *testing.T) {
	inVirtualTime(t, cacheguard.Config{}, func(t *testing.T, w *world) {
		plain := aiguardtest.Text("Hello")
		w.srv.SetDefault(func(rw http.ResponseWriter, r *aiguardtest.Request) {
			rw.Header().Set("Set-Cookie", "session=1")
			rw.Header().Set("X-Ratelimit-Remaining-Requests", "9")
			time.Sleep(time.Second)
			plain(rw, r)
		})
		answers := all(2, func(i int) answer {
			time.Sleep(time.Duration(i) * time.Millisecond)
			return w.chat(t.Context(), certain)
		})
		time.Sleep(90 * time.Second)
		hit := w.chat(t.Context(), certain)
		require.NoError(t, errors.Join(answers[0].err, answers[1].err, hit.err))

		assert.Equal(t, []string{"miss", "shared", "hit"}, []string{answers[0].source, answers[1].source, hit.source})
		assert.Equal(t, "90", hit.header.Get("Age"))
		assert.Empty(t, answers[1].header.Get("Age"))
		for _, a := range append(answers, hit) {
			assert.Equal(t, "application/json", a.header.Get("Content-Type"))
			assert.Equal(t, "req_fake_1", a.header.Get("X-Request-Id"))
		}
		assert.NotEmpty(t, answers[0].header.Get("Set-Cookie"))
		assert.Empty(t, answers[1].header.Get("Set-Cookie"), "a cookie belongs to one caller")
		assert.Empty(t, hit.header.Get("Set-Cookie"))
		assert.Empty(t, hit.header.Get("X-Ratelimit-Remaining-Requests"), "no longer valid")

		st := w.cache.Stats()
		assert.Equal(t, []int64{1, 1, 1, 1}, []int64{st.Misses, st.Shared, st.Hits, st.Stored})
		assert.Equal(t, 1, st.Entries)
		assert.Positive(t, st.Bytes)
	})
}

func TestAccountsDoNotShareAnswers(t *testing.T) {
	for _, header := range []string{"Authorization", "Api-Key", "X-Api-Key", "X-Goog-Api-Key", "OpenAI-Organization",
		"OpenAI-Project", "Cookie", "X-Some-Gateways-Own-Key"} {
		t.Run(header, func(t *testing.T) {
			inVirtualTime(t, cacheguard.Config{}, func(t *testing.T, w *world) {
				w.srv.Handle(func(r *aiguardtest.Request) aiguardtest.Reply {
					return aiguardtest.After(time.Second, aiguardtest.Text("for "+r.Header.Get(header)))
				})
				accounts := []string{"a", "b", "c", "a", "b", "c"}
				for range 2 { // coalesced, then cached
					for i, a := range all(len(accounts), func(i int) answer { return w.chat(t.Context(), certain, header, accounts[i]) }) {
						require.NoError(t, a.err)
						require.Contains(t, a.body, "for "+accounts[i]+`"`)
					}
				}
				assert.Equal(t, 3, w.srv.Count())
			})
		})
	}
}

type tenantKey struct{}

// tenants is a base transport that adds the credentials of the tenant in the request's context. The cache cannot see
// them.
type tenants struct{ base http.RoundTripper }

func (b tenants) RoundTrip(req *http.Request) (*http.Response, error) {
	tenant, _ := req.Context().Value(tenantKey{}).(string)
	req = req.Clone(req.Context())
	req.Header.Set("Authorization", "Bearer "+tenant)
	return b.base.RoundTrip(req)
}

func TestHiddenCredentialsNeedAScope(t *testing.T) {
	tenantOf := func(req *http.Request) string {
		tenant, _ := req.Context().Value(tenantKey{}).(string)
		return tenant
	}
	for name, tc := range map[string]struct {
		scope    func(*http.Request) string
		requests int
	}{
		"undeclared": {nil, 12},
		"declared":   {tenantOf, 3},
		"unknown":    {func(*http.Request) string { return "" }, 12},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				srv := aiguardtest.NewServer(t, aiguardtest.Pipe())
				g, err := aiguard.New(aiguard.Config{MaxConcurrent: 20})
				require.NoError(t, err)
				base := srv.Transport()
				cache := newTransport(t, g.Transport(tenants{base}), cacheguard.Config{Scope: tc.scope})
				t.Cleanup(func() { require.NoError(t, g.Close()); base.CloseIdleConnections() })
				w := &world{cache, g, srv}
				srv.Handle(func(r *aiguardtest.Request) aiguardtest.Reply {
					return aiguardtest.After(time.Second, aiguardtest.Text("for "+r.Header.Get("Authorization")))
				})
				ask := []string{"a", "b", "c", "a", "b", "c"}
				for range 2 { // coalesced, then cached
					for i, a := range all(len(ask), func(i int) answer {
						return w.chat(context.WithValue(t.Context(), tenantKey{}, ask[i]), certain, "Authorization", "")
					}) {
						require.NoError(t, a.err)
						require.Contains(t, a.body, "for Bearer "+ask[i]+`"`)
					}
				}
				require.Equal(t, tc.requests, srv.Count())
			})
		})
	}
}

func TestIgnoredCredentialNeedsAScope(t *testing.T) {
	_, err := cacheguard.New(http.DefaultTransport, cacheguard.Config{IgnoreHeaders: []string{"authorization"}})
	require.EqualError(t, err, `cacheguard: Config.IgnoreHeaders has "authorization", which identifies an account; set Config.Scope to ignore it`)
	newTransport(t, http.DefaultTransport, cacheguard.Config{IgnoreHeaders: []string{"authorization"},
		Scope: func(*http.Request) string { return "all" }})
}

func TestSampledAnswersAreCachedOnRequest(t *testing.T) {
	inVirtualTime(t, cacheguard.Config{Sampled: true}, func(t *testing.T, w *world) {
		assert.Equal(t, missHit, w.sources(t, 2, func() answer { return w.chat(t.Context(), dice) }))
	})
	inVirtualTime(t, cacheguard.Config{}, func(t *testing.T, w *world) {
		asked := cacheguard.WithPolicy(t.Context(), cacheguard.Policy{Sampled: true})
		assert.Equal(t, missHit, w.sources(t, 2, func() answer { return w.chat(asked, dice) }))
		assert.Equal(t, "miss", w.chat(t.Context(), dice).source, "without Sampled it is not served")
	})
}

func TestRefreshReplacesTheEntry(t *testing.T) {
	inVirtualTime(t, cacheguard.Config{}, func(t *testing.T, w *world) {
		w.srv.Enqueue(aiguardtest.Text("old"), aiguardtest.Text("new"))
		require.Contains(t, w.chat(t.Context(), certain).body, "old")
		refresh := cacheguard.WithPolicy(t.Context(), cacheguard.Policy{Refresh: true})
		a := w.chat(refresh, certain)
		assert.Equal(t, "miss", a.source)
		require.Contains(t, a.body, "new")
		a = w.chat(t.Context(), certain)
		assert.Equal(t, "hit", a.source)
		require.Contains(t, a.body, "new")
		assert.Equal(t, 2, w.srv.Count())

		// Concurrent refreshes are coalesced, but not with requests that do not refresh.
		w.srv.Reset()
		w.srv.SetDefault(aiguardtest.After(time.Second, aiguardtest.Text("newer")))
		other := strings.Replace(certain, "Hi", "Ho", 1)
		for _, a := range all(20, func(i int) answer {
			if i%2 == 0 {
				return w.chat(refresh, other)
			}
			return w.chat(t.Context(), other)
		}) {
			require.NoError(t, a.err)
		}
		assert.Equal(t, 2, w.srv.Count())
	})
}

func TestFailedRefreshKeepsTheEntry(t *testing.T) {
	inVirtualTime(t, cacheguard.Config{}, func(t *testing.T, w *world) {
		require.NoError(t, w.chat(t.Context(), certain).err)
		w.srv.SetDefault(aiguardtest.Error(401, "invalid_api_key"))
		require.Error(t, w.chat(cacheguard.WithPolicy(t.Context(), cacheguard.Policy{Refresh: true}), certain).err)
		assert.Equal(t, "hit", w.chat(t.Context(), certain).source)
	})
}

func TestAnswersExpire(t *testing.T) {
	inVirtualTime(t, cacheguard.Config{TTL: time.Minute}, func(t *testing.T, w *world) {
		short := cacheguard.WithPolicy(t.Context(), cacheguard.Policy{TTL: 10 * time.Second})
		other := strings.Replace(certain, "Hi", "Ho", 1)
		start := time.Now()
		at := func(d time.Duration) (string, string) {
			time.Sleep(d - time.Since(start))
			return w.chat(t.Context(), certain).source, w.chat(short, other).source
		}
		for _, c := range []struct {
			at                time.Duration
			usual, ofTheShort string
		}{
			{0, "miss", "miss"},
			{9 * time.Second, "hit", "hit"},
			{11 * time.Second, "hit", "miss"}, // a hit does not extend the lifetime
			{59 * time.Second, "hit", "miss"},
			{61 * time.Second, "miss", "hit"},
		} {
			usual, ofTheShort := at(c.at)
			assert.Equal(t, c.usual, usual, "%v", c.at)
			assert.Equal(t, c.ofTheShort, ofTheShort, "%v", c.at)
		}
	})
}

func TestAbandonedStreamIsNotCached(t *testing.T) {
	inVirtualTime(t, cacheguard.Config{}, func(t *testing.T, w *world) {
		w.srv.Enqueue(aiguardtest.Slowly(time.Second, aiguardtest.TextN("Hello there", 5)))
		resp, err := w.open(t.Context(), "/chat/completions", certainStream)
		require.NoError(t, err)
		_, err = resp.Body.Read(make([]byte, 1000))
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		synctest.Wait()
		assert.Equal(t, 1, w.srv.Disconnects())
		assert.Zero(t, w.cache.Stats().Stored)
		assert.Equal(t, "miss", w.chat(t.Context(), certainStream).source)
	})
}

// SDKs stop at the last event and close the body before its end.
func TestStreamClosedAfterItsLastEventIsCached(t *testing.T) {
	inVirtualTime(t, cacheguard.Config{}, func(t *testing.T, w *world) {
		w.srv.SetDefault(aiguardtest.Slowly(time.Second, aiguardtest.TextN("Hello there", 5)))
		resp, err := w.open(t.Context(), "/chat/completions", certainStream)
		require.NoError(t, err)
		for text := ""; !strings.Contains(text, "[DONE]"); {
			piece := make([]byte, 1000)
			n, err := resp.Body.Read(piece)
			require.NoError(t, err)
			text += string(piece[:n])
		}
		require.NoError(t, resp.Body.Close())
		synctest.Wait()
		assert.Equal(t, "hit", w.chat(t.Context(), certainStream).source)
	})
}

func TestMemoryStaysWithinMaxBytes(t *testing.T) {
	const bound = 100_000
	answerText := `{"choices":[{"message":{"content":"` + strings.Repeat("x", 900) + `"}}]}`
	cache := newTransport(t, roundTripper(func(*http.Request) (*http.Response, error) {
		return reply("application/json", strings.NewReader(answerText)), nil
	}), cacheguard.Config{MaxBytes: bound})
	for i := range 1000 {
		body := fmt.Sprintf(`{"temperature":0,"messages":[%d]}`, i)
		require.NoError(t, read(cache.RoundTrip(newRequest(t.Context(), "http://x/v1/chat/completions", body))).err)
	}
	st := cache.Stats()
	assert.EqualValues(t, 1000, st.Stored)
	assert.LessOrEqual(t, st.Bytes, int64(bound))
	assert.Greater(t, st.Bytes, int64(bound/2))
	assert.LessOrEqual(t, st.Entries, bound/900)
}

func TestNewErrorsNameTheField(t *testing.T) {
	next := roundTripper(nil)
	_, err := cacheguard.New(nil, cacheguard.Config{})
	require.ErrorContains(t, err, "next is nil")
	for want, cfg := range map[string]cacheguard.Config{
		"Config.TTL is -1s; want 0 (the default) or more":             {TTL: -time.Second},
		"Config.MaxBytes is -1":                                       {MaxBytes: -1},
		"Config.MaxEntryBytes is -2":                                  {MaxEntryBytes: -2},
		"Config.MaxRequestBytes is -3":                                {MaxRequestBytes: -3},
		"Config.LookupTimeout is -1ns":                                {LookupTimeout: -1},
		"Config.Store is a nil *cacheguard_test.store":                {Store: (*store)(nil)},
		"Config.Similar.Index is a nil *cacheguard.MemoryIndex":       {Similar: cacheguard.Similar{Index: (*cacheguard.MemoryIndex)(nil)}},
		"Config.MaxEntryBytes is 200; want at most MaxBytes, 100":     {MaxBytes: 100, MaxEntryBytes: 200},
		"Config.MaxEntryBytes is 4294967296; want at most 2147483647": {MaxBytes: 1 << 40, MaxEntryBytes: 1 << 32},
	} {
		_, err := cacheguard.New(next, cfg)
		require.ErrorContains(t, err, want)
	}
	_, err = cacheguard.New(next, cacheguard.Config{TTL: -1, MaxBytes: -1})
	require.ErrorContains(t, err, "TTL")
	require.ErrorContains(t, err, "MaxBytes")
	for _, cfg := range []cacheguard.Config{{}, {MaxBytes: 100}} {
		cache, err := cacheguard.New(next, cfg)
		require.NoError(t, err)
		require.NoError(t, cache.Close())
	}
	require.PanicsWithValue(t, "cacheguard: WithPolicy: Policy.TTL is -1s; want 0 or more", func() {
		cacheguard.WithPolicy(t.Context(), cacheguard.Policy{TTL: -time.Second})
	})
}

// Programs may keep responses for their headers. A closed response must not keep its body in memory.
func TestClosedAnswerFreesMemory(t *testing.T) {
	const answers, size = 20, 900 << 10
	big := `{"choices":[{"index":0,"message":{"role":"assistant","content":"` + strings.Repeat("x", size) + `"},"finish_reason":"stop"}]}`
	cache := newTransport(t, roundTripper(func(*http.Request) (*http.Response, error) {
		return reply("application/json", strings.NewReader(big)), nil
	}), cacheguard.Config{})
	w := &world{cache: cache}
	var kept []*http.Response
	ask := func(close func(*http.Response)) {
		for range answers {
			resp, err := cache.RoundTrip(newRequest(t.Context(), "https://provider.invalid/v1/chat/completions", dice)) // random, so not cached
			require.NoError(t, err)
			close(resp)
			kept = append(kept, resp)
		}
		w.settle(t)
	}
	before := liveHeap()
	ask(func(resp *http.Response) {
		_, err := io.Copy(io.Discard, resp.Body)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
	})
	ask(func(resp *http.Response) { require.NoError(t, resp.Body.Close()) }) // unread
	require.Less(t, liveHeap()-before, int64(size), "bytes of %d answers still in memory", len(kept))
	runtime.KeepAlive(kept)
}

func liveHeap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// The largest value of a field means no limit. A sum with it must not overflow.
func TestLargestValuesLimitNothing(t *testing.T) {
	for name, cfg := range map[string]cacheguard.Config{
		"TTL": {TTL: math.MaxInt64}, "MaxBytes": {MaxBytes: math.MaxInt64}, "MaxRequestBytes": {MaxRequestBytes: math.MaxInt64},
		"MaxEntryBytes": {MaxEntryBytes: math.MaxInt32, MaxBytes: math.MaxInt64}, "LookupTimeout": {LookupTimeout: math.MaxInt64},
	} {
		t.Run(name, func(t *testing.T) {
			inVirtualTime(t, cfg, func(t *testing.T, w *world) {
				require.Equal(t, []string{"miss", "hit"}, w.sources(t, 2, func() answer { return w.chat(t.Context(), certain) }))
			})
		})
	}
}
