package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/httpguard"
	"github.com/aiguard-go/aiguard/sqlstore"
	"github.com/aiguard-go/aiguard/task"
)

const (
	edgeTimeout = 6 * time.Second // for a request to the service; longer than a call may take
	keepTasks   = 20 * time.Second
	grace       = time.Second // for a task's function to return
)

// service is a web service over the guard. It has plain, streamed and background requests.
type service struct {
	*soak
	url    string
	server *http.Server
	served chan error
	folder string
	store  *sqlstore.Store
	runner *task.Runner
}

// question is the request of a visitor.
type question struct {
	ID    int64  `json:"id"`
	Model string `json:"model"`
	Text  string `json:"text"`
}

func startService(s *soak) (_ *service, err error) {
	v := &service{soak: s, served: make(chan error, 1)}
	if v.folder, err = os.MkdirTemp("", "aiguard-soak-"); err != nil {
		return nil, err
	}
	if v.store, err = sqlstore.OpenSQLite(context.Background(), filepath.Join(v.folder, "tasks.db")); err != nil {
		return nil, errors.Join(err, os.RemoveAll(v.folder))
	}
	v.runner, err = task.NewRunner(s.guard, v.store, task.Config{Grace: grace})
	if err != nil {
		return nil, err
	}
	task.Register(v.runner, "ask", v.ask)

	edge, err := httpguard.Limit(s.guard, httpguard.Config{Timeout: edgeTimeout, MaxConcurrent: 40, QueueTimeout: time.Second})
	if err != nil {
		return nil, err
	}
	ready, err := httpguard.Readyz(s.guard, httpguard.HealthConfig{})
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("POST /ask", edge(v.withTenant(v.serveAsk)))
	mux.Handle("POST /stream", edge(v.withTenant(v.serveStream)))
	mux.Handle("POST /tasks", edge(v.withTenant(v.serveSubmit)))
	mux.Handle("/tasks/", http.StripPrefix("/tasks", task.Handler(v.runner)))
	mux.Handle("GET /readyz", ready)

	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	v.url = "http://" + ln.Addr().String()
	v.server = &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: time.Second, // for clients that never finish their headers
		IdleTimeout:       5 * time.Second,
		WriteTimeout:      edgeTimeout + 5*time.Second, // for clients that never read
	}
	go func() { v.served <- v.server.Serve(ln) }()
	return v, nil
}

// shutdown stops the parts of the service in order of their dependencies.
func (v *service) shutdown() {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := v.server.Shutdown(ctx); err != nil {
		v.failf("the service's Shutdown: %v", err)
	}
	if err := <-v.served; !errors.Is(err, http.ErrServerClosed) {
		v.failf("the service: %v", err)
	}
	if err := v.runner.Shutdown(ctx); err != nil {
		v.failf("the runner's Shutdown: %v", err)
	}
	if st := v.runner.Stats(); st.Running+st.Pending+st.Stuck > 0 || st.Lost+st.StoreErrors > 0 {
		v.failf("the runner after Shutdown: %+v", st)
	}
	fmt.Printf("tasks: %+v\n", v.runner.Stats())
	if err := errors.Join(v.store.Close(), os.RemoveAll(v.folder)); err != nil {
		v.failf("the store: %v", err)
	}
}

// forget deletes old operations.
func (v *service) forget() {
	if _, err := v.store.DeleteFinished(context.Background(), time.Now().Add(-keepTasks)); err != nil {
		v.failf("DeleteFinished: %v", err)
	}
}

// withTenant takes the tenant from a header. Clients can set any header, so it cuts the value to the maximum length.
func (v *service) withTenant(next http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tenant := r.Header.Get("X-Tenant")
		next(w, r.WithContext(aiguard.WithCall(r.Context(), aiguard.Call{Tenant: tenant[:min(len(tenant), 256)]})))
	})
}

func readQuestion(r *http.Request) (q question, err error) {
	if err = json.NewDecoder(r.Body).Decode(&q); err != nil {
		if tooLarge := new(http.MaxBytesError); errors.As(err, &tooLarge) {
			return q, err
		}
		return q, &aiguard.Error{Kind: aiguard.ErrRejected, Err: err}
	}
	return q, nil
}

func (v *service) serveAsk(w http.ResponseWriter, r *http.Request) {
	q, err := readQuestion(r)
	if err == nil {
		var text string
		if text, err = v.ask(r.Context(), q); err == nil {
			w.Header().Set("Content-Type", "text/plain")
			_, _ = io.WriteString(w, text) // fails only if the client has disconnected
			return
		}
	}
	httpguard.Error(w, r, err)
}

func (v *service) ask(ctx context.Context, q question) (string, error) {
	o := &order{soak: v.soak, to: v.main, id: q.ID, req: request(q.Model, q.Text)}
	return o.chat(ctx)
}

// serveStream relays a stream. If the stream breaks, httpguard.Error aborts the response, so that it does not look
// complete.
func (v *service) serveStream(w http.ResponseWriter, r *http.Request) {
	q, err := readQuestion(r)
	if err != nil {
		httpguard.Error(w, r, err)
		return
	}
	st, err := v.main.client.CreateChatCompletionStream(r.Context(), request(q.Model, q.Text))
	if err != nil {
		httpguard.Error(w, r, err)
		return
	}
	defer st.Close()
	for {
		ev, err := st.Recv()
		switch {
		case err == io.EOF:
			return
		case err != nil:
			httpguard.Error(w, r, err)
			return
		}
		for _, choice := range ev.Choices {
			_, _ = io.WriteString(w, choice.Delta.Content)
		}
		if err := http.NewResponseController(w).Flush(); err != nil {
			return
		}
	}
}

func (v *service) serveSubmit(w http.ResponseWriter, r *http.Request) {
	q, err := readQuestion(r)
	if err != nil {
		httpguard.Error(w, r, err)
		return
	}
	op, err := v.runner.Submit(r.Context(), "ask", q)
	if err != nil {
		httpguard.Error(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusAccepted)
	_ = json.NewEncoder(w).Encode(op) // fails only if the client has disconnected
}
