package task

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/aiguard-go/aiguard/internal/errtree"
)

const (
	keepAlive    = 15 * time.Second // between keep-alive comments on an event stream
	writeTimeout = 10 * time.Second // for a client to receive one event
)

// Handler returns a handler that serves the operations of e:
//
//	GET    /{id}         the operation as JSON
//	DELETE /{id}         cancels it: 200 and the operation if it is over, 202 while its function still runs
//	GET    /{id}/events  server-sent events until it is over
//
// Errors are application/problem+json (RFC 9457). An unknown ID gives 404. Each event has the operation as its data
// and the operation's revision as its ID. The last event has the type "finished", and all others have the type
// "progress". A client that reconnects with Last-Event-ID gets newer changes. A client that already has the last
// event gets 204, which stops an EventSource.
//
// Handler performs no authentication. An ID cannot be guessed, but users may share it. Wrap Handler in your own
// check. The patterns below give the check the ID as r.PathValue("id"):
//
//	operations := http.StripPrefix("/operations", onlyOwner(task.Handler(runner)))
//	mux.Handle("/operations/{id}", operations)
//	mux.Handle("/operations/{id}/events", operations)
func Handler(e Engine) http.Handler {
	s := server{e}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{id}", s.get)
	mux.HandleFunc("DELETE /{id}", s.cancel)
	mux.HandleFunc("GET /{id}/events", s.events)
	return mux
}

// server serves the operations of an engine.
type server struct{ Engine }

func (s server) get(w http.ResponseWriter, req *http.Request) {
	op, err := s.Get(req.Context(), req.PathValue("id"))
	if err != nil {
		s.refuse(w, req, err)
		return
	}
	reply(w, http.StatusOK, op)
}

func (s server) cancel(w http.ResponseWriter, req *http.Request) {
	op, err := s.Cancel(req.Context(), req.PathValue("id"))
	if err != nil {
		s.refuse(w, req, err)
		return
	}
	status := http.StatusAccepted
	if op.Status.Final() {
		status = http.StatusOK
	}
	reply(w, status, op)
}

func (s server) events(w http.ResponseWriter, req *http.Request) {
	id := req.PathValue("id")
	seen, err := strconv.ParseInt(req.Header.Get("Last-Event-ID"), 10, 64)
	if err != nil {
		seen = 0 // missing or malformed
	}
	op, err := s.Get(req.Context(), id)
	switch {
	case err != nil:
		s.refuse(w, req, err)
		return
	case op.Status.Final() && op.Revision == seen:
		w.WriteHeader(http.StatusNoContent)
		return
	case seen > op.Revision:
		seen = 0
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Accel-Buffering", "no")                           // keeps nginx from buffering the events
	if sendEvent(w, ": \n\n") != nil || req.Method == http.MethodHead { // sends the headers at once
		return
	}
	for {
		if op.Revision > seen {
			if sendOperation(w, op) != nil || op.Status.Final() {
				return
			}
			seen = op.Revision
		}
		ctx, cancel := context.WithTimeout(req.Context(), keepAlive)
		next, err := s.Next(ctx, id, seen)
		quiet := ctx.Err() != nil
		cancel()
		switch {
		case err == nil:
			op = next
		case req.Context().Err() != nil || !quiet:
			return // the client disconnected or the store failed; an EventSource reconnects
		case sendEvent(w, ": \n\n") != nil:
			return
		}
	}
}

func sendOperation(w http.ResponseWriter, op Operation) error {
	data, err := json.Marshal(op)
	if err != nil {
		return err
	}
	name := "progress"
	if op.Status.Final() {
		name = "finished"
	}
	return sendEvent(w, fmt.Sprintf("id: %d\nevent: %s\ndata: %s\n\n", op.Revision, name, data))
}

func sendEvent(w http.ResponseWriter, event string) error {
	control := http.NewResponseController(w)
	_ = control.SetWriteDeadline(time.Now().Add(writeTimeout)) // if unsupported, the server's WriteTimeout applies
	defer control.SetWriteDeadline(time.Time{})                // HTTP/2 resets a stream at its deadline even if the stream is idle
	if _, err := io.WriteString(w, event); err != nil {
		return err
	}
	return control.Flush()
}

func reply(w http.ResponseWriter, status int, op Operation) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(op) // fails only if the client has disconnected
}

// refuse sends the error response for an unknown ID or a failed store.
func (s server) refuse(w http.ResponseWriter, req *http.Request, err error) {
	switch {
	case errtree.Is(err, ErrNotFound):
		problem(w, http.StatusNotFound, "There is no operation with this id.")
	case req.Context().Err() != nil: // the client has disconnected
	default:
		s.StoreFailed("serve", Operation{ID: req.PathValue("id")}, err)
		w.Header().Set("Retry-After", "1")
		problem(w, http.StatusServiceUnavailable, "The operation cannot be looked up right now. Please try again in a moment.")
	}
}

func problem(w http.ResponseWriter, status int, detail string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(struct {
		Type   string `json:"type"`
		Title  string `json:"title"`
		Status int    `json:"status"`
		Detail string `json:"detail"`
	}{"about:blank", http.StatusText(status), status, detail})
}
