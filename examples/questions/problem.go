package main

import (
	"encoding/json"
	"errors"
	"net/http"

	"github.com/aiguard-go/aiguard/httpguard"
)

// mistake is what is wrong with a request.
type mistake struct {
	status int
	field  string // "" if it is none of a single field
	detail string
}

func (m *mistake) Error() string { return m.detail }

// refuse answers with a problem (RFC 9457): it names the field of a mistake, or says why no operation could be started.
func refuse(w http.ResponseWriter, r *http.Request, err error) {
	var m *mistake
	if !errors.As(err, &m) {
		httpguard.Error(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(m.status)
	_ = json.NewEncoder(w).Encode(struct { // an error means that the client is gone
		Type   string `json:"type"`
		Title  string `json:"title"`
		Status int    `json:"status"`
		Detail string `json:"detail"`
		Field  string `json:"field,omitempty"`
	}{"about:blank", http.StatusText(m.status), m.status, m.detail, m.field})
}
