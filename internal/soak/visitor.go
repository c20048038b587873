package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/aiguard-go/aiguard/aiguardtest"
	"github.com/aiguard-go/aiguard/task"
)

// visitor is a client of the service.
type visitor struct {
	*service
	rng    *rand.Rand
	client *http.Client
}

// visit makes one random request. Two in five are hostile.
func (v *visitor) visit() {
	switch n := v.rng.IntN(10); {
	case n < 2:
		v.asks("/ask")
	case n < 4:
		v.asks("/stream")
	case n < 6:
		v.submits()
	case n < 9:
		v.harms()
	default:
		v.stalls()
	}
}

// result is the service's response; the status is 0 without one.
type result struct {
	status int
	body   string
	err    error
}

// send sends a request and checks its duration. If the service does not end the request, patience does.
func (v *visitor) send(ctx context.Context, method, path string, body io.Reader, headers ...string) (r result) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, v.url+path, body)
	if err != nil {
		return result{err: err}
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	began := time.Now()
	resp, err := v.client.Do(req)
	if err == nil {
		defer resp.Body.Close()
		var text []byte
		text, err = io.ReadAll(resp.Body)
		r.status, r.body = resp.StatusCode, string(text)
	}
	r.err = err
	v.took("visit of "+path[:min(len(path), 20)], began, edgeTimeout)
	if strings.Contains(r.body, aiguardtest.ProviderText) {
		v.failf("%s shows the provider's text: %.200q", path, r.body)
	}
	return r
}

// question returns a question that the main provider answers well or with a fault.
func (v *visitor) question() (q question, fault string) {
	q = question{ID: v.ids.Add(1), Model: "healthy"}
	if v.rng.IntN(2) == 0 {
		fault = requestFaultNames[v.rng.IntN(len(requestFaultNames))]
		q.Model = fault
	}
	q.Model = fmt.Sprintf("%s#%d", q.Model, v.rng.IntN(modelsAFault))
	q.Text = fmt.Sprintf("soak:%d; %s", q.ID, strings.Repeat("x", v.rng.IntN(5_000)))
	return q, fault
}

func encoded(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // cannot fail: strings and numbers
	}
	return string(b)
}

// context returns the context of a visitor, who may leave early.
func (v *visitor) context() (context.Context, context.CancelFunc) {
	if v.rng.IntN(5) == 0 {
		return context.WithTimeout(context.Background(), ms(1+v.rng.IntN(700)))
	}
	return context.WithCancel(context.Background())
}

func (v *visitor) asks(path string) {
	ctx, cancel := v.context()
	defer cancel()
	q, fault := v.question()
	r := v.send(ctx, http.MethodPost, path, strings.NewReader(encoded(q)), "X-Tenant", tenant(v.rng))
	switch {
	case ctx.Err() != nil:
		v.count("visitor left")
	case r.err == nil && r.status == http.StatusOK:
		good, _ := textOf(q.ID)
		if also, ok := goodEnds[aiguardtest.Fault(fault)]; r.body != good && (!ok || r.body != also) {
			v.failf("%s, fault %q: looks complete with %d bytes: %.100q", path, fault, len(r.body), r.body)
		}
		v.count("visitor ok")
	case r.err == nil && r.status >= 400:
		v.count("visitor refused")
	case path == "/stream" && r.status == http.StatusOK: // truncated, and the client can tell
		v.count("visitor stream cut")
	default:
		v.failf("%s, fault %q: status %d, %v", path, fault, r.status, r.err)
	}
}

// submits starts an operation, watches, polls or cancels it, and checks its end.
func (v *visitor) submits() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	q, fault := v.question()
	r := v.send(ctx, http.MethodPost, "/tasks", strings.NewReader(encoded(q)), "X-Tenant", tenant(v.rng))
	var op task.Operation
	switch {
	case r.err == nil && r.status >= 400:
		v.count("visitor refused")
		return
	case r.err != nil || json.Unmarshal([]byte(r.body), &op) != nil:
		v.failf("/tasks: status %d, %v, %.100q", r.status, r.err, r.body)
		return
	}
	began := time.Now()
	switch v.rng.IntN(4) {
	case 0:
		v.send(ctx, http.MethodDelete, "/tasks/"+op.ID, nil)
	case 1: // watches for a while
		ctx, cancel := context.WithTimeout(ctx, ms(1+v.rng.IntN(500)))
		defer cancel()
		v.send(ctx, http.MethodGet, "/tasks/"+op.ID+"/events", nil)
	}
	bound := config.TaskTimeout + grace + time.Duration(config.MaxQueue)*time.Millisecond // the task's own limit, and time in the queue
	for !op.Status.Final() && time.Since(began) < bound+patience {
		time.Sleep(50 * time.Millisecond)
		r := v.send(ctx, http.MethodGet, "/tasks/"+op.ID, nil)
		if r.err != nil || r.status != http.StatusOK || json.Unmarshal([]byte(r.body), &op) != nil {
			v.failf("task %s: status %d, %v, %.100q", op.ID, r.status, r.err, r.body)
			return
		}
	}
	switch {
	case !op.Status.Final():
		v.failf("a task is still %s after %v", op.Status, time.Since(began))
	case op.Status == task.Succeeded:
		var text string
		good, _ := textOf(q.ID)
		if also, ok := goodEnds[aiguardtest.Fault(fault)]; json.Unmarshal(op.Result, &text) != nil || text != good && (!ok || text != also) {
			v.failf("task, fault %q: looks complete: %.100q", fault, op.Result)
		}
		v.count("task ok")
	case op.ErrorCode == "" || op.ErrorMessage == "":
		v.failf("a task ended without a reason: %+v", op)
	default:
		v.count("task " + string(op.Status))
	}
}

// harms sends hostile input. The service must reject everything that is not a question. Odd questions must end like
// others.
func (v *visitor) harms() {
	ctx, cancel := v.context()
	defer cancel()
	long := strings.Repeat("x", 1+v.rng.IntN(500_000))
	var r result
	post := func(body string, headers ...string) {
		r = v.send(ctx, http.MethodPost, []string{"/ask", "/stream", "/tasks"}[v.rng.IntN(3)], strings.NewReader(body), headers...)
	}
	what := v.rng.IntN(8)
	switch what {
	case 0:
		post(strings.Repeat(`[{"a":`, len(long)/6+1))
	case 1:
		post(`{"id":1,"model":7,"text":[]}` + long)
	case 2:
		r = v.send(ctx, http.MethodGet, "/tasks/"+strings.Repeat("A", 1+v.rng.IntN(8_000)), nil)
	case 3:
		path := "/tasks/" + strings.Repeat("%2e%2e%2f", 1+v.rng.IntN(100)) + "/events"
		r = v.send(ctx, http.MethodGet, path, nil, "Last-Event-ID", long[:min(len(long), 9_000)])
	case 4:
		post(`{"text":"` + strings.Repeat(long, 1+v.rng.IntN(8)) + `"}`)
	case 5:
		post(encoded(question{Text: strings.Repeat("💣", 50_000)}))
	case 6:
		tenant := long[:min(len(long), 50_000)]
		post("{}", "X-Tenant", tenant, "Accept", strings.Repeat("text/html;q=0.1,", 1000), "X-Request-Timeout", "1e309")
	default:
		post(encoded(question{Model: "fault#" + long, Text: "soak:1;"}), "X-Tenant", fmt.Sprint(v.rng.Int64()), "X-Request-Timeout", "100ms")
	}
	switch {
	case ctx.Err() != nil:
		v.count("visitor left")
	case r.err == nil && r.status < 400 && what < 4:
		v.failf("hostile input was accepted with status %d: %.100q", r.status, r.body)
	case r.err == nil && r.status < 400:
		v.count("hostile input accepted")
	default: // with an error status, or by closing the connection of a body that is too large
		v.count("hostile input rejected")
	}
}

// stalls opens its own connection and sends too little or reads nothing. It waits until the service closes the
// connection or a random time has passed.
func (v *visitor) stalls() {
	conn, err := (&net.Dialer{Timeout: patience}).Dial("tcp", strings.TrimPrefix(v.url, "http://"))
	if err != nil {
		v.failf("cannot connect to the service: %v", err)
		return
	}
	defer conn.Close()
	q, _ := v.question()
	body := encoded(q)
	request := fmt.Sprintf("POST /stream HTTP/1.1\r\nHost: service\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	switch v.rng.IntN(3) {
	case 0: // half of the headers
		request = request[:20]
	case 1: // half of the body
		request = request[:len(request)-len(body)/2]
	}
	if _, err := io.WriteString(conn, request); err != nil {
		return
	}
	most := ms(v.rng.IntN(3000))
	if v.rng.IntN(4) == 0 {
		most = edgeTimeout + patience
	}
	began := time.Now()
	_ = conn.SetReadDeadline(began.Add(most))
	_, err = io.Copy(io.Discard, conn)
	if timeout := net.Error(nil); errors.As(err, &timeout) && timeout.Timeout() && most > edgeTimeout {
		v.failf("a connection was still open after %v, though its request was %.30q", most, request)
	}
	v.count("stalled")
}

// tenant returns one of a few tenants, one of very many, or the tenant with most requests.
func tenant(rng *rand.Rand) string {
	switch rng.IntN(4) {
	case 0:
		return fmt.Sprintf("tenant %d", rng.IntN(5))
	case 1:
		return fmt.Sprintf("one-time tenant %d", rng.Int64())
	}
	return "crowd"
}
