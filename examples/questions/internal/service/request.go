package service

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net/http"
	"slices"
	"strings"
	"unicode/utf8"
)

const MaxBodyBytes = 64 << 10

// field is a required text of a request.
type field struct {
	name     string
	maxChars int
}

// readTexts returns the texts of a request body, which must be a JSON object with exactly these fields.
func readTexts(r *http.Request, fields []field) (map[string]string, error) {
	// Cross-site forms can send other content types without a CORS preflight.
	if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/json" {
		return nil, &mistake{http.StatusUnsupportedMediaType, "", "The Content-Type must be application/json."}
	}
	body, err := io.ReadAll(r.Body)
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		return nil, err
	}
	if err != nil {
		return nil, &mistake{http.StatusBadRequest, "", "The body could not be read."}
	}
	var values map[string]any
	if err := json.Unmarshal(body, &values); err != nil || values == nil {
		return nil, &mistake{http.StatusBadRequest, "", "The body must be a JSON object."}
	}
	texts := make(map[string]string, len(fields))
	for _, f := range fields {
		if texts[f.name], err = f.text(values); err != nil {
			return nil, err
		}
		delete(values, f.name)
	}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		return nil, &mistake{http.StatusBadRequest, name, fmt.Sprintf("Unknown field %.50q.", name)}
	}
	return texts, nil
}

func (f field) text(values map[string]any) (string, error) {
	text, ok := values[f.name].(string)
	if text = strings.TrimSpace(text); !ok || text == "" {
		return "", &mistake{http.StatusBadRequest, f.name, fmt.Sprintf("The field %q is missing: a text of 1 to %d characters.", f.name, f.maxChars)}
	}
	if n := utf8.RuneCountInString(text); n > f.maxChars {
		return "", &mistake{http.StatusRequestEntityTooLarge, f.name,
			fmt.Sprintf("The field %q has %d characters. The limit is %d.", f.name, n, f.maxChars)}
	}
	return text, nil
}
