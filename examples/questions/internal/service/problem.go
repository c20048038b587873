package service

import (
	"encoding/json"
	"errors"
	"net/http"

	"github.com/aiguard-go/aiguard/httpguard"
)

// mistake describes an invalid request.
type mistake struct {
	status int
	field  string // "" if no single field is invalid
	detail string
}

func (m *mistake) Error() string { return m.detail }

// refuse sends a problem (RFC 9457). It names the invalid field, or gives the reason why the operation could not
// start.
func refuse(w http.ResponseWriter, r *http.Request, err error) {
	var m *mistake
	if !errors.As(err, &m) {
		httpguard.Error(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(m.status)
	_ = json.NewEncoder(w).Encode(struct { // fails only if the client has disconnected
		Type   string `json:"type"`
		Title  string `json:"title"`
		Status int    `json:"status"`
		Detail string `json:"detail"`
		Field  string `json:"field,omitempty"`
	}{"about:blank", http.StatusText(m.status), m.status, m.detail, m.field})
}
