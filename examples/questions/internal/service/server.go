package service

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/httpguard"
	"github.com/aiguard-go/aiguard/task"
)

// Service is the web service. Call Register before Routes.
type Service struct {
	Client *aiguard.Client
	Engine task.Engine
	Model  string
	Fake   bool // the provider is the fake, which supports ?fault=…
	Logger *slog.Logger

	Draining atomic.Bool // /readyz fails
}

// operation is one kind of work that the service offers.
type operation struct {
	name   string
	fields []field
	run    func(ctx context.Context, client *aiguard.Client, model string, texts map[string]string) (any, error)
}

// input is the input of an operation. The engine keeps it.
type input struct {
	Model string            `json:"model"`
	Texts map[string]string `json:"texts"`
}

// Register registers the service's operations with its engine.
func (s *Service) Register() {
	for _, o := range []operation{questionsOperation(), feedbackOperation()} {
		task.Register(s.Engine, o.name, func(ctx context.Context, in input) (any, error) { return o.run(ctx, s.Client, in.Model, in.Texts) })
	}
}

// Routes returns the handler of the service.
func (s *Service) Routes() (http.Handler, error) {
	mux := http.NewServeMux()
	// These requests end when their operation has started in the background. The event streams below last longer and
	// therefore have no time limit.
	limit, err := httpguard.Limit(s.Client.Guard(), httpguard.Config{Timeout: 10 * time.Second, MaxBodyBytes: MaxBodyBytes, Logger: s.Logger})
	if err != nil {
		return nil, err
	}
	mux.Handle("POST /questions", limit(s.starts(questionsOperation())))
	mux.Handle("POST /feedback", limit(s.starts(feedbackOperation())))

	// Here every client with an ID may see and cancel the operation. A service with accounts should record the owner
	// in starts and wrap this handler in a check of r.PathValue("id").
	operations := http.StripPrefix("/operations", task.Handler(s.Engine))
	mux.Handle("/operations/{id}", operations)
	mux.Handle("/operations/{id}/events", operations)

	ready, err := httpguard.Readyz(s.Client.Guard(), httpguard.HealthConfig{})
	if err != nil {
		return nil, err
	}
	mux.Handle("GET /livez", httpguard.Livez())
	mux.Handle("GET /readyz", s.unlessDraining(ready))

	debug, err := httpguard.Debug(s.Client.Guard(), nil) // for browsers on this machine
	if err != nil {
		return nil, err
	}
	mux.Handle("GET /debug/aiguard", debug)

	handlePage(mux, s.Fake)
	return http.NewCrossOriginProtection().Handler(secured(mux)), nil
}

// starts returns a handler that starts an operation and responds with it.
func (s *Service) starts(o operation) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		op, err := s.start(w, r, o)
		if err != nil {
			refuse(w, r, err)
			return
		}
		w.Header().Set("Location", "/operations/"+op.ID)
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		w.WriteHeader(http.StatusAccepted)
		_ = json.NewEncoder(w).Encode(op) // fails only if the client has disconnected
	})
}

func (s *Service) start(w http.ResponseWriter, r *http.Request, o operation) (task.Operation, error) {
	model, err := s.modelFor(r)
	if err != nil {
		return task.Operation{}, err
	}
	texts, err := readTexts(r, o.fields)
	if err != nil {
		return task.Operation{}, err
	}
	return s.Engine.Submit(r.Context(), o.name, input{model, texts})
}

func (s *Service) modelFor(r *http.Request) (string, error) {
	fault := r.URL.Query().Get("fault")
	switch {
	case fault == "":
		return s.Model, nil
	case !s.Fake:
		return "", &mistake{http.StatusBadRequest, "fault", "Faults are available only with the fake provider."}
	case !knownFault(fault):
		return "", &mistake{http.StatusBadRequest, "fault", fmt.Sprintf("Unknown fault. Use one of %q.", Faults())}
	}
	return faultModel + fault, nil
}

// unlessDraining rejects requests as soon as the service drains. The guard still works then, so its own readiness
// would come too late.
func (s *Service) unlessDraining(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.Draining.Load() {
			httpguard.Error(w, r, aiguard.ErrClosed)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// secured sets the security headers of all responses.
func secured(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "+
			"form-action 'none'; base-uri 'none'; frame-ancestors 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		next.ServeHTTP(w, r)
	})
}
