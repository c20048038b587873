package aiguard_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
)

// This file keeps the promises of faults_test.go in the other APIs, with net/http as the client. A fault then has the form
// of the API. What it becomes is the same, but for the differences below.

// wireAPI is an operation of an API as it is called without an SDK.
type wireAPI struct {
	whole, stream string        // the paths
	body          string        // STREAM is true or false, and IMAGE the place of one
	image         string        // DATA is its bytes
	text          string        // what stands before a text of the answer
	refusal       string        // a pattern for the body of an error
	usage         aiguard.Usage // of a good answer
	most          int64         // bytes that the client reads; 0: maxRead
}

var wireAPIs = map[string]wireAPI{
	"anthropic": {
		whole: "/v1/messages", stream: "/v1/messages",
		body:    `{"model":"m","max_tokens":9,"stream":STREAM,"messages":[{"role":"user","content":[{"type":"text","text":"Hi"}IMAGE]}]}`,
		image:   `,{"type":"image","source":{"type":"base64","media_type":"image/png","data":"DATA"}}`,
		text:    `"text":"`,
		refusal: `^\{"type":"error","error":\{"type":"[a-z_]+","message":"[^"]+"\}\}$`,
		usage:   aiguard.Usage{Input: 15, Output: 2},
	},
	"gemini": {
		whole: "/v1beta/models/m:generateContent", stream: "/v1beta/models/m:streamGenerateContent?alt=sse",
		body:    `{"contents":[{"role":"user","parts":[{"text":"Hi"}IMAGE]}]}`,
		image:   `,{"inlineData":{"mimeType":"image/png","data":"DATA"}}`,
		text:    `"text":"`,
		refusal: `^\{"error":\{"code":\d+,"message":"[^"]+","status":"[A-Z_]+".*\}\}$`,
		usage:   aiguard.Usage{Input: 11, Output: 2},
	},
	"gemini array": {
		stream:  "/v1beta/models/m:streamGenerateContent",
		body:    `{"contents":[{"role":"user","parts":[{"text":"Hi"}]}]}`,
		text:    `"text":"`,
		refusal: `^\[\{"error":\{"code":\d+,"message":"[^"]+","status":"[A-Z_]+".*\}\}\]$`,
		usage:   aiguard.Usage{Input: 11, Output: 2},
	},
	"ollama chat": {
		whole: "/api/chat", stream: "/api/chat",
		body:    `{"model":"m","stream":STREAM,"messages":[{"role":"user","content":"Hi"IMAGE}]}`,
		image:   `,"images":["DATA"]`,
		text:    `"content":"`,
		refusal: `^\{"error":"[^"]+"\}$`,
		usage:   aiguard.Usage{Input: 8, Output: 2},
	},
	"ollama generate": {
		whole: "/api/generate", stream: "/api/generate",
		body:    `{"model":"m","stream":STREAM,"prompt":"Hi"IMAGE}`,
		image:   `,"images":["DATA"]`,
		text:    `"response":"`,
		refusal: `^\{"error":"[^"]+"\}$`,
	},
}

// request is a call of the API through a client.
func (api wireAPI) request(c *http.Client, srv *aiguardtest.Server, streamed, large bool) request {
	path, image := api.whole, ""
	if streamed {
		path = api.stream
	}
	if large {
		image = strings.Replace(api.image, "DATA", largeText(), 1)
	}
	body := strings.NewReplacer("STREAM", strconv.FormatBool(streamed), "IMAGE", image).Replace(api.body)
	return func(ctx context.Context) (answer, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(srv.URL, "/v1")+path, strings.NewReader(body))
		if err != nil {
			return answer{}, err
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("X-Api-Key", "sk-secret-key")
		resp, err := c.Do(req)
		if err != nil {
			return answer{}, inside(err)
		}
		defer resp.Body.Close()
		if resp.StatusCode >= 400 {
			return answer{}, api.refused(resp)
		}
		read, err := io.ReadAll(io.LimitReader(resp.Body, cmp.Or(api.most, maxRead)))
		a := answer{}
		for _, rest := range bytes.Split(read, []byte(api.text))[1:] { // in an answer, and in each event
			if text, _, ok := bytes.Cut(rest, []byte{'"'}); ok {
				a.text += string(text)
				a.pieces++
			}
		}
		return a, err
	}
}

const maxRead = 16 << 20 // by a client that takes all it can get

// inside is what RoundTrip returned, without http.Client's error around it.
func inside(err error) error {
	if inner := errors.Unwrap(err); inner != nil {
		return inner
	}
	return err
}

// wireRefusal is a failure status as an SDK gets it.
type wireRefusal struct {
	*stainlessError
	body []byte
}

// refused makes an error of a failure status, as an SDK would.
func (api wireAPI) refused(resp *http.Response) error {
	body, err := io.ReadAll(io.LimitReader(resp.Body, cmp.Or(api.most, maxRead)))
	if err != nil {
		return err
	}
	if !bytes.Contains(body, []byte(aiguardtest.ProviderText)) {
		return errors.New("the provider's words are lost")
	}
	said := &stainlessError{StatusCode: resp.StatusCode, Response: resp, Message: string(body)}
	if e := aiguard.Explain(said); e != nil && resp.Header.Get("X-Should-Retry") == "false" {
		return e // of the guard
	}
	return &wireRefusal{said, body}
}

// difference is what an API has of a fault that OpenAI's has otherwise.
type difference struct {
	lacks  string         // why it does not have the fault
	change func(*promise) // what becomes of it there
}

// differences are by an API's name or its first word, "" for all.
var differences = map[aiguardtest.Fault]map[string]difference{
	aiguardtest.FaultGoesDark:    {"": {lacks: "it is about HTTP/2, whatever is asked: see TestFaults"}},
	aiguardtest.FaultNullCode:    noCodes,
	aiguardtest.FaultNumericCode: noCodes,

	// An error inside a 200 that is a text alone says only that there is one.
	aiguardtest.FaultErrorInOK:             {"ollama": {change: becomes(aiguard.ErrInvalidResponse)}},
	aiguardtest.FaultStreamAnsweredError:   {"ollama": {change: becomes(aiguard.ErrUnavailable)}},
	aiguardtest.FaultStreamError:           {"ollama": {change: becomes(aiguard.ErrUnavailable)}},
	aiguardtest.FaultStreamErrorOddSpacing: {"ollama": {change: becomes(aiguard.ErrUnavailable)}},
	aiguardtest.FaultStreamErrorHeldOpen:   {"ollama": {change: becomes(aiguard.ErrUnavailable)}},
	aiguardtest.FaultStreamErrorAfterPing:  {"ollama": {change: becomes(aiguard.ErrUnavailable)}},
	aiguardtest.FaultStreamErrorEvent: {
		"ollama":       {lacks: "an error has one form"},
		"anthropic":    {lacks: "an error has one form"},
		"gemini array": {lacks: "an error has one form"},
	},

	// SDKs over Transport may get a whole answer to what asks for a stream: they, unlike go-openai, may read it.
	aiguardtest.FaultStreamAnsweredJSON: {"": {change: func(p *promise) { *p = promise{text: "Hello!"} }}},
	// No finish reason but an event of its own is the end.
	aiguardtest.FaultStreamNoDone: {"anthropic": {change: func(p *promise) {
		*p = promise{kind: aiguard.ErrTruncated, status: 200, text: "Hello!"}
	}}},
	aiguardtest.FaultStreamNoDoneHeldOpen: {"anthropic": {change: func(p *promise) {
		*p = promise{kind: aiguard.ErrTimeout, phase: "stream_idle", text: "Hello!", leaves: true, cfg: p.cfg, each: shortIdle}
	}}},
	aiguardtest.FaultStreamNoFinishNoLF: {"gemini array": {lacks: "there are no lines between the elements"}},
	aiguardtest.FaultStreamOpenedThenNothing: {"": {change: func(p *promise) {
		*p = promise{
			kind: aiguard.ErrTimeout, phase: "stream_idle", text: "Hel", leaves: true,
			cfg: aiguard.Config{StreamIdleTimeout: shortIdle}, each: shortIdle}
	}}},

	aiguardtest.FaultInsufficientQuota: {"anthropic": {change: comesWith(400)}, "ollama": noQuota},
	aiguardtest.FaultBillingNotActive:  {"anthropic": {change: comesWith(402)}, "gemini": {change: comesWith(403)}, "ollama": noQuota},
	aiguardtest.FaultSpendLimit: {"anthropic": {change: comesWith(400)}, "ollama": noQuota,
		"gemini": {lacks: "no words but those of a rate limit"}},
	aiguardtest.FaultCreditExhausted: {"anthropic": {change: comesWith(400)}, "ollama": noQuota},
	aiguardtest.FaultStatus401:       {"gemini": {change: comesWith(400)}},
}

var (
	noCodes = map[string]difference{
		"anthropic": {lacks: "an error has a type and no code"},
		"gemini":    {lacks: "a code is always the number of the status, as in refusal/500"},
		"ollama":    {lacks: "an error is a text"},
	}
	noQuota = difference{lacks: "an error is a text, and a 429 a rate limit"}
)

func becomes(kind aiguard.Kind) func(*promise) { return func(p *promise) { p.kind = kind } }

func comesWith(status int) func(*promise) { return func(p *promise) { p.status = status } }

// differenceOf returns the difference of an API, or none.
func differenceOf(fault aiguardtest.Fault, api string) difference {
	for _, name := range []string{api, strings.Fields(api)[0], ""} {
		if d, ok := differences[fault][name]; ok {
			return d
		}
	}
	return difference{}
}

// overPipes ends the name of a protocol that is spoken over pipes, in virtual time.
const overPipes = " over pipes"

func TestFaultsOfEveryAPI(t *testing.T) {
	for fault, of := range differences {
		require.Contains(t, promises, fault)
		for name := range of {
			known := func(api string) bool { return name == "" || name == api || name == strings.Fields(api)[0] }
			require.True(t, slices.ContainsFunc(slices.Collect(maps.Keys(wireAPIs)), known), "%s: no such API: %q", fault, name)
		}
	}
	together(t, func(run func(string, func(*testing.T))) {
		for name, api := range wireAPIs {
			run(name, func(t *testing.T) {
				for _, fault := range aiguardtest.Faults() {
					group, _, _ := strings.Cut(fault.String(), "/")
					if api.whole == "" && group != "stream" && group != "refusal" {
						continue
					}
					t.Run(fault.String(), func(t *testing.T) {
						d := differenceOf(fault, name)
						if d.lacks != "" {
							t.Skip(d.lacks)
						}
						for _, proto := range []string{"HTTP1", "HTTP2"} {
							p := promises[fault]
							if proto == "HTTP2" && p.overHTTP2 != nil {
								p.overHTTP2(&p)
							}
							if d.change != nil {
								d.change(&p)
							}
							p.texts, p.usage = true, api.usage
							api.prove(t, p, fault, proto)
						}
					})
				}
			})
		}
	})
}

// prove is promise.prove for the API. What takes time does so in virtual time.
func (api wireAPI) prove(t *testing.T, p promise, fault aiguardtest.Fault, proto string) {
	run := func(name string, test func(*testing.T, string)) {
		t.Run(proto+" "+name, func(t *testing.T) {
			if p.each > 0 || p.retryAfter > 0 || p.leaves {
				synctest.Test(t, func(t *testing.T) { test(t, proto+overPipes) })
				return
			}
			atOnce <- struct{}{}
			defer func() { <-atOnce }()
			test(t, proto)
		})
	}
	if p.test != nil {
		run("guarded", func(t *testing.T, proto string) { api.stays(t, fault, proto) })
		return
	}
	group, _, _ := strings.Cut(fault.String(), "/")
	streamed := group == "stream"
	keeps := func(p promise, streamed bool, attempts int) func(*testing.T, string) {
		return func(t *testing.T, proto string) {
			p.cfg.Retry.MaxAttempts = attempts
			g, base, srv := guardedServer(t, fault, proto, p.cfg)
			c := g.HTTPClient()
			if proto != "HTTP1" {
				c.Transport = g.Transport(base)
			}
			p.keeps(t, srv, g, api.request(c, srv, streamed, p.large), attempts)
		}
	}
	if group != "refusal" || api.whole != "" {
		run("guarded", keeps(p, streamed, p.attempts()))
	}
	if p.or != nil {
		run("guarded, another bound", keeps(*p.or, streamed, p.or.attempts()))
	}
	if p.timeout {
		more := p
		more.cfg.Retry.Timeouts = true
		run("with Retry.Timeouts", keeps(more, streamed, 3))
	}
	if group == "refusal" {
		run("streamed", keeps(p, true, 1))
	}
	if group != "connection" { // faults of a connection have no form of an API: faults_test.go has their controls
		run("control", func(t *testing.T, proto string) {
			srv := faulty(t, fault, proto)
			base := srv.Transport()
			t.Cleanup(base.CloseIdleConnections)
			if p.kind == aiguard.ErrResponseTooLarge {
				api.most = 2 << 20 // above the cap, and for ever if it wanted to
			}
			call := api.request(&http.Client{Transport: base}, srv, streamed || api.whole == "", p.large)
			api.suffers(t, p, fault, srv, call)
		})
	}
}

// stays proves that calls one after another are good, and that they use one connection where the provider lets them.
func (api wireAPI) stays(t *testing.T, fault aiguardtest.Fault, proto string) {
	g, base, srv := guardedServer(t, fault, proto, aiguard.Config{Retry: aiguard.Retry{BaseDelay: patience, MaxDelay: patience}})
	c := g.HTTPClient()
	if proto != "HTTP1" {
		c.Transport = g.Transport(base)
	}
	call := api.request(c, srv, false, false)
	for range 3 {
		a, err := bounded(t, 0, slack, call) // without backoff
		require.NoError(t, err)
		require.Equal(t, "Hello!", a.text)
	}
	requests, connections := 3, 1
	if fault == aiguardtest.FaultStaleKeepAlive {
		requests, connections = 5, 3 // each second one is sent again on a connection of its own
	}
	require.Equal(t, requests, srv.Count())
	_, total := srv.Conns()
	require.LessOrEqual(t, total, connections)
}

// suffers is the control: the client without a guard is told nothing, or too late.
func (api wireAPI) suffers(t *testing.T, p promise, fault aiguardtest.Fault, srv *aiguardtest.Server, call request) {
	if p.kind == aiguard.ErrTimeout || p.leaves && p.kind != aiguard.ErrResponseTooLarge && fault != aiguardtest.FaultHugeError {
		ctx, cancel := context.WithTimeout(t.Context(), watchdog)
		defer cancel()
		_, err := call(ctx)
		require.Error(t, err)
		require.Error(t, ctx.Err(), "did not hang, but end with %v", err)
		return
	}
	a, err := bounded(t, 0, patience, call)
	var said *wireRefusal
	switch {
	case p.kind == "":
		require.NoError(t, err)
		require.Equal(t, p.text, a.text)
	case p.status >= 300 && p.status < 400:
		require.Equal(t, 2, srv.Count(), "it follows: %v", err)
	case p.status >= 400:
		require.ErrorAs(t, err, &said)
		require.Equal(t, p.status, said.StatusCode)
		require.Contains(t, said.Message, aiguardtest.ProviderText)
		if p.said && fault != aiguardtest.FaultErrorText { // which has the form of a gateway
			require.Regexp(t, api.refusal, said.Message)
			require.True(t, json.Valid(said.body))
		}
	case p.status == 0 && p.kind == aiguard.ErrUnavailable:
		require.Error(t, err)
		require.LessOrEqual(t, srv.Count(), 1, "nor is it tried again")
	case slices.Contains([]aiguardtest.Fault{aiguardtest.FaultCutAnswer, aiguardtest.FaultResetAnswer,
		aiguardtest.FaultStreamCut, aiguardtest.FaultStreamReset}, fault):
		require.Error(t, err)
	default:
		require.NoError(t, err, "it looks like success")
	}
}
