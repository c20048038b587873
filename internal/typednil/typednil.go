// Package typednil has the errors that tests of all packages pass to whatever takes an error: interfaces that hold a nil
// pointer, bare and wrapped.
package typednil

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"

	openai "github.com/sashabaranov/go-openai"

	"github.com/aiguard-go/aiguard"
)

// sdkError has the shape of the error types of openai-go and anthropic-sdk-go.
type sdkError struct {
	Response *http.Response
	Code     string
}

func (e *sdkError) Error() string   { return e.Code }
func (e *sdkError) RawJSON() string { return e.Code }

// Errors returns the errors by name.
func Errors() map[string]error {
	bare := map[string]error{
		"Error":        (*aiguard.Error)(nil),
		"APIError":     (*openai.APIError)(nil),
		"RequestError": (*openai.RequestError)(nil),
		"url":          (*url.Error)(nil),
		"OpError":      (*net.OpError)(nil),
		"DNSError":     (*net.DNSError)(nil),
		"path":         (*fs.PathError)(nil),
		"syscall":      (*os.SyscallError)(nil),
		"syntax":       (*json.SyntaxError)(nil),
		"MaxBytes":     (*http.MaxBytesError)(nil),
		"an SDK's":     (*sdkError)(nil),
	}
	all := maps.Clone(bare)
	for name, err := range bare {
		all[name+", wrapped"] = fmt.Errorf("service: %w", err)
		all[name+", joined"] = errors.Join(err, err)
		all[name+", in a url.Error"] = &url.Error{Op: "Post", URL: "x", Err: err}
		all[name+", in an OpError"] = &net.OpError{Op: "dial", Err: err}
		all[name+", in a RequestError"] = &openai.RequestError{Err: err}
		all[name+", in an Error"] = &aiguard.Error{Kind: aiguard.ErrUnavailable, Err: err}
	}
	return all
}
