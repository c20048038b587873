package httpguard_test

import (
	"fmt"
	"html/template"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"time"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/httpguard"
)

// The client of a route that calls a model gets an error response at the time limit, even if the handler ignores its
// context.
func ExampleLimit() {
	guard, err := aiguard.New(aiguard.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer guard.Close()
	limit, err := httpguard.Limit(guard, httpguard.Config{Timeout: 50 * time.Millisecond})
	if err != nil {
		log.Fatal(err)
	}

	never := make(chan struct{})
	mux := http.NewServeMux()
	mux.Handle("POST /ask", limit(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-never })))
	srv := httptest.NewServer(mux)
	defer srv.Close()
	defer close(never)

	resp, err := http.Post(srv.URL+"/ask", "text/plain", strings.NewReader("What is a semaphore?"))
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	fmt.Println(resp.Status)
	fmt.Println("Content-Type:", resp.Header.Get("Content-Type"))
	fmt.Println("Retry-After:", resp.Header.Get("Retry-After"))
	// Output:
	// 504 Gateway Timeout
	// Content-Type: application/problem+json
	// Retry-After: 10
}

// Error turns any error into a response without the provider's text.
func ExampleError() {
	handler := func(w http.ResponseWriter, r *http.Request) {
		err := &aiguard.Error{Kind: aiguard.ErrRateLimited, StatusCode: 429, RetryAfter: 19500 * time.Millisecond}
		httpguard.Error(w, r, err)
	}
	r := httptest.NewRequest("POST", "/ask", nil)
	r.Header.Set("X-Request-Id", "req-42")
	w := httptest.NewRecorder()
	handler(w, r)
	resp := w.Result()
	body, _ := io.ReadAll(resp.Body)
	fmt.Println(resp.StatusCode, resp.Header.Get("Retry-After"))
	fmt.Println(strings.ReplaceAll(string(body), `,"`, ",\n\""))
	// Output:
	// 429 20
	// {"type":"about:blank",
	// "title":"Too Many Requests",
	// "status":429,
	// "detail":"The AI service is receiving too many requests. Please try again in 20 seconds.",
	// "code":"rate_limited",
	// "retry_after":20,
	// "request_id":"req-42"}
}

// A service can write its error pages itself.
func ExampleConfig_page() {
	guard, err := aiguard.New(aiguard.Config{})
	if err != nil {
		log.Fatal(err)
	}
	page := template.Must(template.New("error").Parse(
		`<!doctype html><title>{{.Title}}</title>{{if eq .Code "closed"}}<p>Tea break! Back in {{.RetryAfter}} seconds.{{else}}<p>{{.Detail}}{{end}}`))
	limit, err := httpguard.Limit(guard, httpguard.Config{Page: page})
	if err != nil {
		log.Fatal(err)
	}

	_ = guard.Close() // as during a shutdown
	r := httptest.NewRequest("GET", "/", nil)
	r.Header.Set("Accept", "text/html")
	w := httptest.NewRecorder()
	limit(http.NotFoundHandler()).ServeHTTP(w, r)
	fmt.Println(w.Body)
	// Output:
	// <!doctype html><title>Service Unavailable</title><p>Tea break! Back in 10 seconds.
}

func ExampleReadyz() {
	guard, err := aiguard.New(aiguard.Config{})
	if err != nil {
		log.Fatal(err)
	}
	ready, err := httpguard.Readyz(guard, httpguard.HealthConfig{})
	if err != nil {
		log.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /livez", httpguard.Livez())
	mux.Handle("GET /readyz", ready)
	ask := func(path string) {
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		status, _, _ := strings.Cut(w.Body.String(), `,"stats"`)
		fmt.Println(path, w.Code, strings.TrimSpace(status))
	}
	ask("/livez")
	ask("/readyz")
	_ = guard.Close()
	ask("/readyz")
	// Output:
	// /livez 200 {"status":"ok"}
	// /readyz 200 {"status":"ok"
	// /readyz 503 {"status":"unavailable","reasons":["draining"]
}
