package aiguardtest_test

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard/aiguardtest"
)

// wire is an operation of an API other than OpenAI's.
type wire struct {
	whole, stream string // the paths, after the server's URL
	body          string // %STREAM% is true or false
	media         string // content type of a stream
	text          func(answer map[string]any) string
	// split splits a stream into payloads. It fails the test if the framing is wrong.
	split func(t *testing.T, body string) []string
	err   func(t *testing.T, body string) (code, message string)
}

var wires = map[string]wire{
	"anthropic": {
		whole: "/messages", stream: "/messages",
		body:  `{"model":"m","max_tokens":9,"stream":%STREAM%,"messages":[{"role":"user","content":"Hi"}]}`,
		media: "text/event-stream; charset=utf-8",
		text: func(a map[string]any) string {
			if delta, ok := a["delta"].(map[string]any); ok {
				text, _ := delta["text"].(string)
				return text
			}
			return textOf(a["content"])
		},
		split: func(t *testing.T, body string) (events []string) {
			for event := range strings.SplitSeq(strings.TrimSuffix(body, "\n\n"), "\n\n") {
				name, data, ok := strings.Cut(event, "\ndata: ")
				require.True(t, ok, "%.100q", event)
				require.Contains(t, data, `{"type":"`+strings.TrimPrefix(name, "event: ")+`"`)
				events = append(events, data)
			}
			return events
		},
		err: func(t *testing.T, body string) (code, message string) {
			var e struct {
				Type  string
				Error struct{ Type, Message string }
			}
			require.NoError(t, json.Unmarshal([]byte(body), &e))
			assert.Equal(t, "error", e.Type)
			return e.Error.Type, e.Error.Message
		},
	},
	"gemini": {
		whole: "/models/m:generateContent", stream: "/models/m:streamGenerateContent?alt=sse",
		body: geminiBody, media: "text/event-stream; charset=utf-8", text: geminiText,
		split: func(t *testing.T, body string) (events []string) {
			for event := range strings.SplitSeq(strings.TrimSuffix(body, "\r\n\r\n"), "\r\n\r\n") {
				require.True(t, strings.HasPrefix(event, "data: "), "%.100q", event)
				events = append(events, strings.TrimPrefix(event, "data: "))
			}
			return events
		},
		err: geminiErr,
	},
	"gemini array": {
		whole: "/models/m:generateContent", stream: "/models/m:streamGenerateContent",
		body: geminiBody, media: "application/json; charset=UTF-8", text: geminiText,
		split: func(t *testing.T, body string) (events []string) {
			var list []json.RawMessage
			require.NoError(t, json.Unmarshal([]byte(body), &list))
			for _, e := range list {
				events = append(events, string(e))
			}
			return events
		},
		err: geminiErr,
	},
	"ollama chat":     ollama("chat", `"messages":[{"role":"user","content":"Hi"}]`),
	"ollama generate": ollama("generate", `"prompt":"Hi"`),
}

const geminiBody = `{"contents":[{"role":"user","parts":[{"text":"Hi"}]}]}`

func geminiText(a map[string]any) (text string) {
	for _, c := range a["candidates"].([]any) {
		text += textOf(c.(map[string]any)["content"].(map[string]any)["parts"])
	}
	return text
}

func geminiErr(t *testing.T, body string) (code, message string) {
	var e struct {
		Error struct {
			Code            int
			Message, Status string
			Details         []struct{ Reason string }
		}
	}
	body = strings.TrimSuffix(strings.TrimPrefix(body, "["), "]")
	require.NoError(t, json.Unmarshal([]byte(body), &e))
	assert.NotZero(t, e.Error.Code)
	for _, d := range e.Error.Details {
		e.Error.Status += " " + d.Reason
	}
	return e.Error.Status, e.Error.Message
}

func ollama(name, prompt string) wire {
	return wire{
		whole: "/api/" + name, stream: "/api/" + name,
		body:  `{"model":"m","stream":%STREAM%,` + prompt + `}`,
		media: "application/x-ndjson",
		text: func(a map[string]any) string {
			if message, ok := a["message"].(map[string]any); ok {
				return message["content"].(string)
			}
			return a["response"].(string)
		},
		split: func(_ *testing.T, body string) []string {
			return strings.Split(strings.TrimSuffix(body, "\n"), "\n")
		},
		err: func(t *testing.T, body string) (code, message string) {
			var e struct{ Error string }
			require.NoError(t, json.Unmarshal([]byte(body), &e))
			return "", e.Error
		},
	}
}

// textOf joins the texts of a list of parts.
func textOf(parts any) (text string) {
	list, _ := parts.([]any)
	for _, p := range list {
		text += p.(map[string]any)["text"].(string)
	}
	return text
}

func (w wire) ask(streamed bool) (path, body string) {
	if streamed {
		return w.stream, strings.ReplaceAll(w.body, "%STREAM%", "true")
	}
	return w.whole, strings.ReplaceAll(w.body, "%STREAM%", "false")
}

func eachWire(t *testing.T, test func(t *testing.T, w wire, s *aiguardtest.Server, c *http.Client)) {
	for name, w := range wires {
		t.Run(name, func(t *testing.T) {
			eachMode(t, func(t *testing.T, s *aiguardtest.Server, c *http.Client) { test(t, w, s, c) })
		})
	}
}

func object(t *testing.T, body string) (o map[string]any) {
	t.Helper()
	require.NoError(t, json.Unmarshal([]byte(body), &o), "%.200q", body)
	return o
}

func TestTextIsAnsweredInTheAPIOfThePath(t *testing.T) {
	eachWire(t, func(t *testing.T, w wire, s *aiguardtest.Server, c *http.Client) {
		s.SetDefault(aiguardtest.TextN(long, 7))
		path, ask := w.ask(false)
		resp, body, err := postTo(t.Context(), s, c, path, ask)
		require.NoError(t, err)
		assert.Equal(t, 200, resp.StatusCode)
		assert.Equal(t, "application/json", resp.Header.Get("Content-Type"))
		assert.Equal(t, long, w.text(object(t, body)))

		path, ask = w.ask(true)
		resp, body, err = postTo(t.Context(), s, c, path, ask)
		require.NoError(t, err)
		assert.Equal(t, w.media, resp.Header.Get("Content-Type"))
		text := ""
		events := w.split(t, body)
		for _, e := range events {
			if o := object(t, e); o["type"] != "message_start" {
				text += w.text(o)
			}
		}
		assert.Equal(t, long, text)
		assert.GreaterOrEqual(t, len(events), 8, "the chunks, and the reason for the end")

		requests := s.Requests()
		require.Len(t, requests, 2)
		for i, r := range requests {
			assert.Equal(t, "m", r.Model)
			assert.Equal(t, i == 1, r.Stream)
		}
		assert.Zero(t, s.Disconnects())
	})
}

func TestOllamaStreamsByDefault(t *testing.T) {
	s := aiguardtest.NewServer(t, aiguardtest.Pipe())
	resp, body, err := postTo(t.Context(), s, newHTTP(t, s), "/api/chat", `{"model":"m"}`)
	require.NoError(t, err)
	assert.Equal(t, "application/x-ndjson", resp.Header.Get("Content-Type"))
	assert.Greater(t, strings.Count(body, "\n"), 1)
	assert.True(t, s.Requests()[0].Stream)
}

func TestErrorsHaveTheFormOfTheAPI(t *testing.T) {
	type codes struct{ none, own string }
	want := map[string]map[int]codes{
		"anthropic": {400: {"invalid_request_error", "x"}, 401: {"authentication_error", "x"}, 404: {"not_found_error", "x"},
			429: {"rate_limit_error", "x"}, 500: {"api_error", "x"}, 529: {"overloaded_error", "x"}},
		"gemini": {400: {"INVALID_ARGUMENT", "INVALID_ARGUMENT x"}, 401: {"UNAUTHENTICATED", "UNAUTHENTICATED x"},
			404: {"NOT_FOUND", "NOT_FOUND x"}, 429: {"RESOURCE_EXHAUSTED", "RESOURCE_EXHAUSTED x"},
			500: {"INTERNAL", "INTERNAL x"}, 529: {"UNKNOWN", "UNKNOWN x"}},
		"ollama": {400: {}, 401: {}, 404: {}, 429: {}, 500: {}, 529: {}},
	}
	for name, w := range wires {
		t.Run(name, func(t *testing.T) {
			s := aiguardtest.NewServer(t, aiguardtest.Pipe())
			c := newHTTP(t, s)
			for status, codes := range want[strings.Fields(name)[0]] {
				for i, code := range []string{"", "x"} {
					s.Enqueue(aiguardtest.Error(status, code, "Retry-After", "7"))
					path, ask := w.ask(true)
					resp, body, err := postTo(t.Context(), s, c, path, ask)
					require.NoError(t, err)
					assert.Equal(t, status, resp.StatusCode)
					assert.Equal(t, "7", resp.Header.Get("Retry-After"))
					assert.Equal(t, name == "gemini array", strings.HasPrefix(body, "["), "a list, as Gemini's")
					got, message := w.err(t, body)
					assert.Equal(t, []string{codes.none, codes.own}[i], got)
					assert.Contains(t, message, aiguardtest.ProviderText)
				}
			}
			path, _ := w.ask(false)
			resp, err := c.Get(s.URL + path)
			require.NoError(t, err)
			body, err := io.ReadAll(resp.Body)
			require.NoError(t, err)
			require.NoError(t, resp.Body.Close())
			assert.Equal(t, http.StatusMethodNotAllowed, resp.StatusCode)
			_, message := w.err(t, string(body))
			assert.NotEmpty(t, message)
		})
	}
}

func TestOperationsThatAreNotPlayedAreNotFound(t *testing.T) {
	s := aiguardtest.NewServer(t, aiguardtest.Pipe())
	c := newHTTP(t, s)
	for path, err := range map[string]func(*testing.T, string) (string, string){
		"/models/m:countTokens": geminiErr, "/api/embed": wires["ollama chat"].err,
	} {
		resp, body, e := postTo(t.Context(), s, c, path, `{}`)
		require.NoError(t, e)
		assert.Equal(t, http.StatusNotFound, resp.StatusCode, path)
		_, message := err(t, body)
		assert.Contains(t, message, aiguardtest.ProviderText)
	}
}

// OpenAI's paths may look like paths of other APIs.
func TestOpenAIsPathsStayOpenAIs(t *testing.T) {
	s := aiguardtest.NewServer(t, aiguardtest.Pipe())
	c := newHTTP(t, s)
	for _, path := range []string{"/models/ft:gpt-4o:acme::a", "/models/generateContent"} {
		resp, err := c.Get(s.URL + path)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		assert.Equal(t, 200, resp.StatusCode, path)
	}
	s.SetDefault(aiguardtest.Error(404, "x"))
	_, body, err := postTo(t.Context(), s, c, "/threads/th_1/messages", `{}`)
	require.NoError(t, err)
	assert.Equal(t, "x", errorIn(t, body))
}

func TestEventsAreFramedAsTheAPIFramesThem(t *testing.T) {
	for name, w := range wires {
		t.Run(name, func(t *testing.T) {
			s := aiguardtest.NewServer(t, aiguardtest.Pipe())
			payloads := []string{`{"type":"a","n":1}`, `{"type":"b","n":2}`}
			s.SetDefault(aiguardtest.Events(payloads...))
			path, ask := w.ask(true)
			resp, body, err := postTo(t.Context(), s, newHTTP(t, s), path, ask)
			require.NoError(t, err)
			assert.Equal(t, w.media, resp.Header.Get("Content-Type"))
			if name == "gemini array" {
				body += "]" // the closing bracket is not part of a payload
			}
			assert.Equal(t, payloads, w.split(t, body))
		})
	}
}

// A fault behaves the same in every API, and its text contains no words of another API.
func TestVirtualFaultsHaveTheFormOfTheAPI(t *testing.T) {
	for name, w := range wires {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := aiguardtest.NewServer(t, aiguardtest.Pipe())
				c := newHTTP(t, s)
				c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
				for _, f := range inOneRequest() {
					if f == aiguardtest.FaultHugeHeaders || f == aiguardtest.FaultManyHeaders {
						continue // slow, and the same for all APIs
					}
					t.Log(f) // the last one logged is the one that failed
					want := expectations[f]
					if f == aiguardtest.FaultStreamEndlessLine || f == aiguardtest.FaultStreamHugeLine {
						want.limit = 1 << 20
					}
					for _, streamed := range []bool{false, true} {
						s.Play(f)
						s.Reset()
						path, ask := w.ask(streamed)
						o := tryAt(t, s, c, path, ask, want)
						for _, word := range []string{"[gap]", `"choices"`, "chat.completion", "[DONE]", `"object"`} {
							assert.NotContains(t, o.body, word, "%s", f)
						}
						if o.status == 200 && want.ending == whole && strings.HasPrefix(f.String(), "stream/") {
							w.checkStream(t, f, streamed, o)
						}
						if streamed && o.status >= 400 && strings.HasPrefix(f.String(), "refusal/") {
							_, message := w.err(t, o.body)
							assert.Contains(t, message, aiguardtest.ProviderText)
						}
						synctest.Wait()
						assert.Zero(t, s.Active(), "%s", f)
					}
				}
			})
		})
	}
}

// checkStream checks the form of a stream that ends by itself.
func (w wire) checkStream(t *testing.T, f aiguardtest.Fault, streamed bool, o outcome) {
	t.Helper()
	switch f {
	case aiguardtest.FaultStreamLong, aiguardtest.FaultStreamError:
	default:
		return
	}
	if !streamed {
		return // sent as an event stream or array although it was not requested
	}
	assert.Equal(t, w.media, o.header.Get("Content-Type"))
	if f == aiguardtest.FaultStreamLong {
		assert.GreaterOrEqual(t, o.took, 1800*time.Millisecond)
		assert.GreaterOrEqual(t, len(w.split(t, o.body)), 19)
		return
	}
	if w.media == "application/json; charset=UTF-8" {
		o.body += "]" // the stream ends before its closing bracket
	}
	events := w.split(t, o.body)
	_, message := w.err(t, events[len(events)-1])
	assert.Contains(t, message, aiguardtest.ProviderText)
}
