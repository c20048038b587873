package rttest

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/url"
	"reflect"
)

// BaseCases returns cases over bases that do not follow the whole contract. A RoundTripper over such a base must not
// panic and must follow the contract itself. The requests are POSTs of body to path.
func BaseCases(path, body string) (all []Case) {
	for _, c := range bases {
		all = append(all, Case{c.name, func(t T, wrap func(http.RoundTripper) http.RoundTripper) {
			b := &bench{T: t, o: Options{Body: body}, special: true, path: path, url: "http://provider.example" + path}
			b.rt = wrap(roundTripper(c.trip))
			for range 2 {
				req, reqBody := b.request(t.Context())
				before := snap(req)
				resp, err := b.send(req)
				if c.fails != (err != nil) {
					t.Fatalf("got %v", err)
				}
				if err == nil {
					_, _ = io.Copy(io.Discard, resp.Body)
					b.must(resp.Body.Close())
				}
				b.check(reflect.DeepEqual(before, snap(req)), "changed from %+v to %+v", before, snap(req))
				b.eventually("body closed", reqBody.closed.Load)
			}
		}})
	}
	return all
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// bases are RoundTrippers that break the contract.
var bases = []struct {
	name  string
	fails bool
	trip  func(*http.Request) (*http.Response, error)
}{
	{"nil Response", true, func(req *http.Request) (*http.Response, error) {
		req.Body.Close()
		return nil, nil //nolint:nilnil // that is the case
	}},
	{"nil Body", false, func(req *http.Request) (*http.Response, error) {
		req.Body.Close()
		return &http.Response{StatusCode: 200, Header: http.Header{}, Request: req}, nil
	}},
	{"nil Header", false, func(req *http.Request) (*http.Response, error) {
		req.Body.Close()
		return &http.Response{StatusCode: 200, Body: io.NopCloser(bytes.NewReader([]byte("x"))), ContentLength: -1}, nil
	}},
	{"nothing but a status", false, func(req *http.Request) (*http.Response, error) {
		req.Body.Close()
		return &http.Response{StatusCode: 200}, nil
	}},
	{"nothing but a failure status", false, func(req *http.Request) (*http.Response, error) {
		req.Body.Close()
		return &http.Response{StatusCode: 404}, nil
	}},
	{"a response and an error", true, func(req *http.Request) (*http.Response, error) {
		req.Body.Close()
		return &http.Response{StatusCode: 200, Body: http.NoBody}, errors.New("broken")
	}},
	{"a typed nil as the error", true, func(req *http.Request) (*http.Response, error) {
		req.Body.Close()
		return nil, (*url.Error)(nil)
	}},
	{"edits its request", false, func(req *http.Request) (*http.Response, error) {
		req.Body.Close()
		if len(req.Header.Values("X-Signature")) > 0 || req.URL.RawQuery != "" {
			return nil, errors.New("signed twice")
		}
		req.Header.Add("X-Signature", "s")
		req.URL.RawQuery = "signed=1"
		return &http.Response{StatusCode: 200, Body: http.NoBody, Request: req}, nil
	}},
}
