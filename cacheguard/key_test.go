package cacheguard

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const plainBody = `{"model":"m","temperature":0,"messages":[{"role":"user","content":"Hi"}]}`

// keyOf returns the key of a request with this body, or false if it has none.
func keyOf(t testing.TB, tr *Transport, method, url, body string, headers ...string) (key, bool) {
	t.Helper()
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	require.NoError(t, err)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer sk-one")
	for i := 0; i < len(headers); i += 2 {
		req.Header[headers[i]] = append(req.Header[headers[i]], headers[i+1])
	}
	q, err := tr.read(req, Policy{})
	require.NoError(t, err)
	return q.key, q.mode != apart
}

func newKeyer(t testing.TB, cfg Config) *Transport {
	tr, err := New(http.DefaultTransport, cfg)
	require.NoError(t, err)
	t.Cleanup(func() { _ = tr.Close() })
	return tr
}

const chatURL = "https://api.openai.com/v1/chat/completions"

func TestEquivalentBodiesHaveTheSameKey(t *testing.T) {
	tr := newKeyer(t, Config{})
	of := func(body string) key {
		k, ok := keyOf(t, tr, http.MethodPost, chatURL, body)
		require.True(t, ok, body)
		return k
	}
	for name, same := range map[string][2]string{
		"order of fields":           {`{"a":1,"b":2}`, `{"b":2,"a":1}`},
		"order of inner fields":     {`{"a":[{"b":1,"c":{"d":2,"e":3}}]}`, `{"a":[{"c":{"e":3,"d":2},"b":1}]}`},
		"white space":               {`{"a":[1,2],"b":{"c":null}}`, " {\n\t\"a\" : [ 1 , 2 ] , \"b\":{ \"c\" :null } }\r\n "},
		"escaped letter":            {`{"a":"A/é"}`, `{"a":"\u0041\/\u00e9"}`},
		"escaped name":              {`{"ab":1}`, `{"\u0061b":1}`},
		"escaped pair":              {`{"a":"😀"}`, `{"a":"\uD83d\ude00"}`},
		"short and long escapes":    {`{"a":"\n\t\"\\\b"}`, `{"a":"\u000a\u0009\u0022\u005c\u0008"}`},
		"line separator":            {`{"a":"` + "\u2028" + `"}`, `{"a":"\u2028"}`},
		"names sorted unescaped":    {`{"\u0062":1,"a":2}`, `{"a":2,"b":1}`},
		"a name that needs quoting": {`{"\u0022":1,"!":2}`, `{"!":2,"\"":1}`},
	} {
		assert.Equal(t, of(same[0]), of(same[1]), name)
	}
}

func TestDifferentBodiesHaveDifferentKeys(t *testing.T) {
	tr := newKeyer(t, Config{})
	seen := map[key]string{}
	for _, body := range []string{
		`{}`, `{"a":null}`, `{"a":false}`, `{"a":true}`, `{"a":0}`, `{"a":""}`, `{"a":[]}`, `{"a":{}}`, `{"a":"null"}`, `{"a":"0"}`,
		`{"a":1}`, `{"a":1.0}`, `{"a":1e0}`, `{"a":-0}`, // numbers are compared as text
		`{"a":9007199254740992}`, `{"a":9007199254740993}`, `{"a":1e400}`, `{"a":1e401}`,
		`{"a":0.1}`, `{"a":0.10000000000000000001}`,
		`{"a":[1,2]}`, `{"a":[2,1]}`, `{"a":[12]}`, `{"a":[[1],2]}`, `{"a":[1,[2]]}`, `{"a":[[1,2]]}`,
		`{"a":1,"b":2}`, `{"a":2,"b":1}`, `{"a":{"b":1}}`, `{"a":"b","c":"d"}`, `{"a":"b\",\"c\":\"d"}`,
		`{"a":"x"}`, `{"a":"x "}`, `{"a":" x"}`, `{"A":"x"}`, `{"a":"X"}`,
		`{"a":"é"}`, `{"a":"e` + "\u0301" + `"}`, // composed or decomposed: the model sees different tokens
		`{"a":"\ud800"}`, `{"a":"\ud801"}`, `{"a":"\udc00"}`, `{"a":"\\ud800"}`, "{\"a\":\"\xff\"}", "{\"a\":\"\xfe\"}", `{"a":"` + "\ufffd" + `"}`,
		`{"a":"\n"}`, `{"a":"n"}`, `{"a":"\\n"}`, `{"a":"\u0000"}`,
	} {
		k, ok := keyOf(t, tr, http.MethodPost, chatURL, body)
		require.True(t, ok, body)
		require.Empty(t, seen[k], "%s has the key of %s", body, seen[k])
		seen[k] = body
	}
}

func TestAmbiguousBodiesHaveNoKey(t *testing.T) {
	tr := newKeyer(t, Config{})
	for _, body := range []string{
		``, ` `, `null`, `1`, `"a"`, `[]`, `[{}]`, `{`, `{"a"}`, `{"a":1,}`, `{"a":01}`, `{"a":1} x`, `{}{}`, `{'a':1}`,
		`{"a":1,"a":1}`, `{"a":1,"b":2,"a":3}`, `{"x":[{"a":1,"a":2}]}`, `{"a":1,"\u0061":1}`, `{"":1,"":1}`,
	} {
		_, ok := keyOf(t, tr, http.MethodPost, chatURL, body)
		assert.False(t, ok, body)
	}
}

func TestKeyIncludesURLAndHeaders(t *testing.T) {
	tr := newKeyer(t, Config{IgnoreHeaders: []string{"x-tenant-trace"}})
	base, ok := keyOf(t, tr, http.MethodPost, chatURL, plainBody)
	require.True(t, ok)
	for name, headers := range map[string][]string{
		"nothing":                      {},
		"user agent":                   {"User-Agent", "x/1"},
		"trace context":                {"Traceparent", "00-1", "Tracestate", "a=b", "Baggage", "c=d"},
		"request ids":                  {"X-Request-Id", "1", "X-Client-Request-Id", "2", "Idempotency-Key", "3"},
		"headers of openai-go":         {"X-Stainless-Retry-Count", "0", "X-Stainless-Lang", "go"},
		"a name in another case":       {"x-request-id", "1"},
		"headers of Config":            {"X-Tenant-Trace", "1"},
		"ignored name in another case": {"x-tenant-trace", "1"},
	} {
		k, ok := keyOf(t, tr, http.MethodPost, chatURL, plainBody, headers...)
		require.True(t, ok)
		assert.Equal(t, base, k, name)
	}
	seen := map[key]string{base: "base"}
	for name, ask := range map[string]func() (key, bool){
		"another host": func() (key, bool) { return keyOf(t, tr, "POST", "https://example.com/v1/chat/completions", plainBody) },
		"another scheme": func() (key, bool) {
			return keyOf(t, tr, "POST", "http://api.openai.com/v1/chat/completions", plainBody)
		},
		"another path": func() (key, bool) {
			return keyOf(t, tr, "POST", "https://api.openai.com/v2/chat/completions", plainBody)
		},
		"a query":         func() (key, bool) { return keyOf(t, tr, "POST", chatURL+"?api-version=1", plainBody) },
		"another query":   func() (key, bool) { return keyOf(t, tr, "POST", chatURL+"?api-version=2", plainBody) },
		"another account": func() (key, bool) { return keyOf(t, tr, "POST", chatURL, plainBody, "Authorization", "Bearer sk-two") },
		"api-key":         func() (key, bool) { return keyOf(t, tr, "POST", chatURL, plainBody, "Api-Key", "1") },
		"x-api-key":       func() (key, bool) { return keyOf(t, tr, "POST", chatURL, plainBody, "X-Api-Key", "1") },
		"organization":    func() (key, bool) { return keyOf(t, tr, "POST", chatURL, plainBody, "Openai-Organization", "o") },
		"project":         func() (key, bool) { return keyOf(t, tr, "POST", chatURL, plainBody, "Openai-Project", "o") },
		"beta":            func() (key, bool) { return keyOf(t, tr, "POST", chatURL, plainBody, "Openai-Beta", "o") },
		"accept":          func() (key, bool) { return keyOf(t, tr, "POST", chatURL, plainBody, "Accept", "text/event-stream") },
		"unknown":         func() (key, bool) { return keyOf(t, tr, "POST", chatURL, plainBody, "X-Unknown", "1") },
		"two values": func() (key, bool) {
			return keyOf(t, tr, "POST", chatURL, plainBody, "X-Unknown", "1", "X-Unknown", "2")
		},
		"values joined": func() (key, bool) { return keyOf(t, tr, "POST", chatURL, plainBody, "X-Unknown", "12") },
		"values that look like another header": func() (key, bool) {
			return keyOf(t, tr, "POST", chatURL, plainBody, "X-Unknown", "1", "X-Unknown", "X-Unknowo", "X-Unknown", "2")
		},
		"two headers": func() (key, bool) {
			return keyOf(t, tr, "POST", chatURL, plainBody, "X-Unknown", "1", "X-Unknowo", "2")
		},
	} {
		k, ok := ask()
		require.True(t, ok, name)
		require.Empty(t, seen[k], "%s has the key of %s", name, seen[k])
		seen[k] = name
	}
}

func TestKeyIncludesHost(t *testing.T) {
	tr := newKeyer(t, Config{})
	of := func(query, host string) key {
		req, err := http.NewRequest(http.MethodPost, chatURL+query, strings.NewReader(plainBody))
		require.NoError(t, err)
		req.Header.Set("Authorization", "Bearer sk-one")
		req.Header.Set("Content-Type", "application/json")
		req.Host = host
		q, err := tr.read(req, Policy{})
		require.NoError(t, err)
		return q.key
	}
	assert.NotEqual(t, of("", "a"), of("", "b"))
	assert.NotEqual(t, of("?q=", "ab"), of("?q=a", "b"), "different parts do not give the same bytes")
}

func TestRequestIsNotModified(t *testing.T) {
	tr := newKeyer(t, Config{})
	req, err := http.NewRequest(http.MethodPost, chatURL, strings.NewReader(plainBody))
	require.NoError(t, err)
	req.Header.Set("Authorization", "Bearer sk-one")
	req.Header.Set("Content-Type", "application/json")
	closed := &closeable{Reader: strings.NewReader(plainBody)}
	req.Body = closed
	before := *req
	q, err := tr.read(req, Policy{})
	require.NoError(t, err)
	assert.Equal(t, 1, closed.closed)
	assert.Equal(t, before.Body, req.Body)
	assert.Equal(t, before.Header, req.Header)
	for range 2 {
		body, err := io.ReadAll(q.outgoing(t.Context()).Body)
		require.NoError(t, err)
		assert.Equal(t, plainBody, string(body))
	}
}

func TestWrongContentLengthPassesThrough(t *testing.T) {
	tr := newKeyer(t, Config{})
	for length, want := range map[int64]mode{5: apart, 500: apart, -1: cached, int64(len(plainBody)): cached} {
		req, err := http.NewRequest(http.MethodPost, chatURL, strings.NewReader(plainBody))
		require.NoError(t, err)
		req.Header.Set("Authorization", "Bearer sk-one")
		req.Header.Set("Content-Type", "application/json")
		req.ContentLength = length
		q, err := tr.read(req, Policy{})
		require.NoError(t, err)
		assert.Equal(t, want, q.mode, "%d", length)
		if want == apart {
			assert.Equal(t, length, q.send.ContentLength)
		} else {
			assert.EqualValues(t, len(plainBody), q.send.ContentLength)
		}
	}
}

func TestBodyReadErrorReachesTheCaller(t *testing.T) {
	tr := newKeyer(t, Config{})
	req, err := http.NewRequest(http.MethodPost, chatURL, strings.NewReader(plainBody))
	require.NoError(t, err)
	req.Header.Set("Authorization", "Bearer sk-one")
	req.Header.Set("Content-Type", "application/json")
	body := &closeable{Reader: io.MultiReader(strings.NewReader("{"), failure{})}
	req.Body = body
	_, err = tr.RoundTrip(req)
	require.ErrorIs(t, err, failure{})
	assert.Equal(t, 1, body.closed)
}

type closeable struct {
	io.Reader
	closed int
}

func (c *closeable) Close() error { c.closed++; return nil }

type failure struct{}

func (failure) Error() string            { return "failed" }
func (failure) Read([]byte) (int, error) { return 0, failure{} }

// decoded decodes a body and keeps numbers as text.
func decoded(t testing.TB, body []byte) (v any) {
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	require.NoError(t, d.Decode(&v))
	return v
}

func FuzzCanonical(f *testing.F) {
	for _, body := range []string{plainBody, `{}`, `{"a":{"b":[1,2.0,-0,1e9,true,null,"x\u0041\ud83d\ude00\ud800"]}}`, `{"b":1,"a":1,"\u0061":2}`,
		` {"x" : [ ] , "y":{ } } `, "{\"a\":\"\xff\\n\"}", `{"a":"\u2028</script>"}`, `[]`, `{"a":01}`} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		plain, ok := canonical(body)
		if !ok {
			return
		}
		require.True(t, json.Valid(body))
		require.True(t, json.Valid(plain))
		again, ok := canonical(plain)
		require.True(t, ok)
		require.Equal(t, plain, again, "the canonical form is stable")

		// The same object from another writer has sorted fields, other escapes and white space.
		other, err := json.MarshalIndent(decoded(t, body), " ", "\t")
		require.NoError(t, err)
		if bytes.ContainsRune(other, utf8.RuneError) {
			return // invalid Unicode stays unchanged
		}
		require.Equal(t, decoded(t, body), decoded(t, plain), "the meaning is unchanged")
		same, ok := canonical(other)
		require.True(t, ok)
		require.Equal(t, plain, same)
	})
}

func sampleEntry() (*entry, key) {
	k := key{1, 2, 3}
	return &entry{stored: time.Unix(1_700_000_000, 5), body: []byte("data: {}\n\n"),
		header: http.Header{"Content-Type": {"text/event-stream"}, "X-Request-Id": {"req_1"}}}, k
}

func TestEntryRoundTrip(t *testing.T) {
	e, k := sampleEntry()
	back, ok := decode(e.encode(k), k)
	require.True(t, ok)
	assert.True(t, e.stored.Equal(back.stored))
	assert.Equal(t, e.header, back.header)
	assert.Equal(t, e.body, back.body)
}

func TestTruncatedOrCorruptEntryIsRejected(t *testing.T) {
	e, k := sampleEntry()
	good := e.encode(k)
	for i := range good {
		_, ok := decode(good[:i], k)
		require.False(t, ok, "cut at %d", i)
		for bit := range 8 {
			bad := bytes.Clone(good)
			bad[i] ^= 1 << bit
			_, ok = decode(bad, k)
			require.False(t, ok, "bit %d of byte %d", bit, i)
		}
	}
	_, ok := decode(append(bytes.Clone(good), 0), k)
	require.False(t, ok)
	_, ok = decode(good, key{9})
	require.False(t, ok, "an entry of another request")
}

func FuzzEntry(f *testing.F) {
	e, k := sampleEntry()
	f.Add(e.encode(k), []byte("body"), "text/plain", int64(0))
	whole := e.encode(k)
	parts := whole[1+len(k) : len(whole)-sha256.Size]
	f.Add(parts, []byte{}, "", int64(-1))
	overlong := bytes.Clone(parts)
	overlong[len(parts)-len(e.body)-1] += 8 // makes the body reach into the checksum
	f.Add(overlong, []byte{}, "", int64(-1))
	f.Fuzz(func(t *testing.T, b, body []byte, contentType string, nanos int64) {
		_, _ = decode(b, k)                                    // must not panic
		forged := slices.Concat([]byte{entryVersion}, k[:], b) // nor with a valid checksum
		sum := sha256.Sum256(forged)
		forged = append(forged, sum[:]...)
		if back, ok := decode(forged, k); ok {
			require.Equal(t, forged, back.encode(k), "a decoded entry encodes to the same bytes")
		}
		if nanos < 0 {
			return
		}
		e := &entry{stored: time.Unix(0, nanos), body: body, header: http.Header{"Content-Type": {contentType}}}
		back, ok := decode(e.encode(k), k)
		require.True(t, ok)
		require.True(t, e.stored.Equal(back.stored))
		require.True(t, bytes.Equal(body, back.body))
		require.Equal(t, contentType, back.header.Get("Content-Type"))
	})
}

// After a flight ends and before it is unlisted, no caller can join it.
func TestEndedFlightAdmitsNoCaller(t *testing.T) {
	tr := newKeyer(t, Config{})
	f := newFlight(tr, &request{})
	ended := false
	f.cancel = func() {
		ended = true
		assert.Nil(t, f.admit(t.Context()), "all callers have left")
	}
	require.NoError(t, f.admit(t.Context()).Close())
	require.True(t, ended)

	f = newFlight(tr, &request{})
	f.cancel = func() {}
	r := f.admit(t.Context())
	f.moveOn()
	assert.Nil(t, f.admit(t.Context()), "its start was dropped")
	require.NoError(t, r.Close())
}

func BenchmarkHit(b *testing.B) {
	for _, size := range []int{1 << 10, 16 << 10} {
		b.Run(fmt.Sprintf("body=%dKiB", size>>10), func(b *testing.B) {
			tr := newKeyer(b, Config{})
			tr.next = answering(`{"choices":[{"message":{"content":"` + strings.Repeat("y", 1000) + `"}}]}`)
			body := `{"temperature":0,"messages":[{"role":"user","content":"` + strings.Repeat("x", size) + `"}]}`
			ask := func() {
				req, _ := http.NewRequestWithContext(b.Context(), http.MethodPost, chatURL, strings.NewReader(body))
				req.Header.Set("Authorization", "Bearer sk-one")
				req.Header.Set("Content-Type", "application/json")
				resp, err := tr.RoundTrip(req)
				require.NoError(b, err)
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
			ask()
			b.ReportAllocs()
			for b.Loop() {
				ask()
			}
		})
	}
}

type answering string

func (a answering) RoundTrip(*http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"application/json"}},
		Body: io.NopCloser(strings.NewReader(string(a))), ContentLength: int64(len(a))}, nil
}
