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
	keepAlive    = 15 * time.Second // between two signs of life on a stream of events
	writeTimeout = 10 * time.Second // for a client to take one event
)

// Handler serves the operations of r:
//
//	GET    /{id}         the operation as JSON
//	DELETE /{id}         cancels it: 200 and the operation if it is over, 202 while its function still runs
//	GET    /{id}/events  server-sent events until it is over
//
// What goes wrong is answered as application/problem+json (RFC 9457), an unknown id with 404. Each event has the operation as data and its
// revision as id; the type is "progress", for the last one "finished". A client that comes back with Last-Event-ID gets what is
// new since then; one that has the last event gets 204, which tells an EventSource to stop.
//
// It asks nobody who they are. An id cannot be guessed, but may be passed on; put your check around the handler, on
// patterns that tell it the id as r.PathValue("id"):
//
//	operations := http.StripPrefix("/operations", onlyOwner(task.Handler(runner)))
//	mux.Handle("/operations/{id}", operations)
//	mux.Handle("/operations/{id}/events", operations)
func Handler(r *Runner) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{id}", r.serveGet)
	mux.HandleFunc("DELETE /{id}", r.serveCancel)
	mux.HandleFunc("GET /{id}/events", r.serveEvents)
	return mux
}

func (r *Runner) serveGet(w http.ResponseWriter, req *http.Request) {
	op, err := r.Get(req.Context(), req.PathValue("id"))
	if err != nil {
		r.refuse(w, req, err)
		return
	}
	reply(w, http.StatusOK, op)
}

func (r *Runner) serveCancel(w http.ResponseWriter, req *http.Request) {
	op, err := r.Cancel(req.Context(), req.PathValue("id"))
	if err != nil {
		r.refuse(w, req, err)
		return
	}
	status := http.StatusAccepted
	if op.Status.Final() {
		status = http.StatusOK
	}
	reply(w, status, op)
}

func (r *Runner) serveEvents(w http.ResponseWriter, req *http.Request) {
	id := req.PathValue("id")
	seen, err := strconv.ParseInt(req.Header.Get("Last-Event-ID"), 10, 64)
	if err != nil {
		seen = 0 // none, or not one of ours
	}
	op, err := r.Get(req.Context(), id)
	switch {
	case err != nil:
		r.refuse(w, req, err)
		return
	case op.Status.Final() && op.Revision == seen:
		w.WriteHeader(http.StatusNoContent)
		return
	case seen > op.Revision:
		seen = 0
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Accel-Buffering", "no")                           // nginx would collect the events
	if sendEvent(w, ": \n\n") != nil || req.Method == http.MethodHead { // the headers, at once
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
		next, err := r.next(ctx, id, seen)
		quiet := ctx.Err() != nil
		cancel()
		switch {
		case err == nil:
			op = next
		case req.Context().Err() != nil || !quiet:
			return // the client is gone, or the store: an EventSource comes back
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
	_ = control.SetWriteDeadline(time.Now().Add(writeTimeout)) // where there is no such thing, the server's own holds
	defer control.SetWriteDeadline(time.Time{})                // HTTP/2 resets a stream at its deadline, idle or not
	if _, err := io.WriteString(w, event); err != nil {
		return err
	}
	return control.Flush()
}

func reply(w http.ResponseWriter, status int, op Operation) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(op) // an error means that the client is gone
}

// refuse answers with what may be said of err: an id that is not known, or a store that fails.
func (r *Runner) refuse(w http.ResponseWriter, req *http.Request, err error) {
	switch {
	case errtree.Is(err, ErrNotFound):
		problem(w, http.StatusNotFound, "There is no operation with this id.")
	case req.Context().Err() != nil: // nobody is left to tell
	default:
		r.storeFailed("serve", Operation{ID: req.PathValue("id")}, err)
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
