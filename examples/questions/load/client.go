package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"
)

// client simulates many clients of the service.
type client struct {
	url       string
	http      http.Client
	transport *http.Transport
}

func newClient(url string) *client {
	// A transport may open connections that it then does not use. The service closes them after its ReadHeaderTimeout of
	// 5 s, and a request that is sent at that moment fails. So the client closes them first.
	t := &http.Transport{MaxIdleConnsPerHost: 1000, IdleConnTimeout: 2 * time.Second}
	return &client{url: url, transport: t, http: http.Client{Transport: t, Timeout: 30 * time.Second}}
}

func (c *client) close() { c.transport.CloseIdleConnections() }

// kind classifies the response to a request.
type kind int

const (
	accepted kind = iota
	refused
	improper
	controlled // from the control server
	kinds
)

func (k kind) String() string {
	return [...]string{"202 accepted", "503 refused", "anything else", "control"}[k]
}

// answer is the result of one request.
type answer struct {
	kind     kind
	latency  time.Duration
	location string // of the operation
	err      error  // reason if kind is improper
}

// ask starts an operation. A proper rejection is a problem with a Retry-After header.
func (c *client) ask(ctx context.Context, due time.Time) (a answer) {
	defer func() { a.latency = time.Since(due) }()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url+"/questions", strings.NewReader(`{"topic":"tides"}`))
	if err != nil {
		return answer{kind: improper, err: err}
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.http.Do(req)
	if err != nil {
		return answer{kind: improper, err: err}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	var problem struct {
		Status int
		Detail string
	}
	switch {
	case err != nil:
		return answer{kind: improper, err: err}
	case resp.StatusCode == http.StatusAccepted && resp.Header.Get("Location") != "":
		return answer{kind: accepted, location: resp.Header.Get("Location")}
	case resp.StatusCode == http.StatusServiceUnavailable && resp.Header.Get("Retry-After") != "" &&
		resp.Header.Get("Content-Type") == "application/problem+json" && json.Unmarshal(body, &problem) == nil &&
		problem.Status == resp.StatusCode && problem.Detail != "":
		return answer{kind: refused}
	}
	return answer{kind: improper, err: fmt.Errorf("status %d: %.200s", resp.StatusCode, body)}
}

// crowd sends n requests at once.
func (c *client) crowd(ctx context.Context, n int) error {
	answers := make([]answer, n)
	var wg sync.WaitGroup
	for i := range answers {
		wg.Go(func() { answers[i] = c.ask(ctx, time.Now()) })
	}
	wg.Wait()
	if _, err := c.outcome(ctx, answers); err != nil {
		return err
	}
	return newReport(answers, nil).improper
}

// controlEvery is the number of requests per request to the control server.
const controlEvery = 10

// offer sends each request when it is due at the rate, and sends some requests to the control server too.
func (c *client) offer(ctx context.Context, rate float64, length time.Duration, control *control) []answer {
	answers := make([]answer, int(rate*length.Seconds()))
	controls := make([]answer, len(answers)/controlEvery)
	var wg sync.WaitGroup
	begin := time.Now()
	for i := range answers {
		due := begin.Add(time.Duration(float64(i) / rate * float64(time.Second)))
		select {
		case <-time.After(time.Until(due)):
		case <-ctx.Done():
		}
		wg.Go(func() { answers[i] = c.ask(ctx, due) })
		if n := i / controlEvery; i%controlEvery == 0 && n < len(controls) {
			wg.Go(func() { controls[n] = control.ask(ctx, due) })
		}
	}
	wg.Wait()
	return append(answers, controls...)
}

// operation holds the fields of an operation that the load test uses.
type operation struct {
	Status     string    `json:"status"`
	StartedAt  time.Time `json:"started_at"`
	FinishedAt time.Time `json:"finished_at"`
}

// await waits until an operation is over.
func (c *client) await(ctx context.Context, location string) (op operation, err error) {
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.url+location, nil)
		if err != nil {
			return op, err
		}
		resp, err := c.http.Do(req)
		if err != nil {
			return op, err
		}
		op = operation{}
		err = json.NewDecoder(resp.Body).Decode(&op)
		resp.Body.Close()
		switch {
		case err != nil:
			return op, err
		case resp.StatusCode != http.StatusOK:
			return op, fmt.Errorf("GET %s: status %d", location, resp.StatusCode)
		case !op.FinishedAt.IsZero():
			return op, nil
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return op, ctx.Err()
		}
	}
}

// outcome counts the final statuses of the accepted operations.
func (c *client) outcome(ctx context.Context, answers []answer) (ended map[string]int, err error) {
	ended = make(map[string]int)
	for _, a := range answers {
		if a.kind == accepted {
			op, err := c.await(ctx, a.location)
			if err != nil {
				return nil, err
			}
			ended[op.Status]++
		}
	}
	return ended, nil
}

// capacity measures how many operations the service completes per second when it is not overloaded.
func (c *client) capacity(ctx context.Context) (perSecond float64, err error) {
	answers := make([]answer, 2*maxConcurrent)
	for i := range answers {
		if answers[i] = c.ask(ctx, time.Now()); answers[i].kind != accepted {
			return 0, errors.Join(errors.New("the idle service did not accept an operation"), answers[i].err)
		}
	}
	var took time.Duration
	for _, a := range answers {
		op, err := c.await(ctx, a.location)
		if err != nil {
			return 0, err
		}
		took += op.FinishedAt.Sub(op.StartedAt)
	}
	return maxConcurrent * float64(len(answers)) / took.Seconds(), nil
}
