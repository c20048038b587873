package aiguard

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"reflect"
	"strconv"
	"strings"
	"syscall"

	openai "github.com/sashabaranov/go-openai"

	"github.com/aiguard-go/aiguard/internal/dialect"
	"github.com/aiguard-go/aiguard/internal/errtree"
)

// KindOf classifies any error. It understands *Error and Kind, the error types of go-openai, openai-go,
// anthropic-sdk-go, genai and Ollama's client, and errors of net and net/http, also when wrapped. For SDK errors the
// provider's code takes precedence over the status. For joined errors the first known error decides. KindOf returns
// "" for nil, for unknown errors, and for the caller's own cancellation or deadline, which is never a failure of the
// call.
func KindOf(err error) Kind {
	k, _, _ := classify(err)
	return k
}

// Explain returns the facts of a failure. These come from the *Error in err, or from a response that a Guard's
// Transport returned and an SDK's error carries, or else from the error's status and code. Explain returns nil if
// KindOf returns "".
func Explain(err error) *Error {
	k, by, _ := classify(err)
	if k == "" {
		return nil
	}
	if e, ok := by.(*Error); ok {
		return e
	}
	e := &Error{Kind: k, StatusCode: providerStatus(by), Err: err}
	if f, ok := readForeign(by); ok {
		e.RequestID, e.RetryAfter = f.requestID, f.retryAfter
	}
	e.MayBeBilled = mayBeBilled(e)
	return e
}

// classify returns the kind of err and the error in its tree that has it. known is false if another branch of the
// tree may decide instead. The caller's own cancellation is known and has no kind. A typed nil is an unknown error.
func classify(err error) (k Kind, by error, known bool) {
	if errtree.IsNil(err) {
		return "", nil, false
	}
	switch e := err.(type) {
	case *Error:
		return e.Kind, e, true
	case Kind:
		return e, e, true
	case *openai.APIError:
		return kindOfProvider(e.HTTPStatusCode, apiFailure(e), ErrUnavailable), e, true
	case *openai.RequestError:
		if e.HTTPStatusCode == 0 { // the wrapped error says more
			break
		}
		if said := errtree.Find[*openai.APIError](e.Err); said != nil {
			return kindOfProvider(e.HTTPStatusCode, apiFailure(said), ErrUnavailable), e, true
		}
		return kindOfStatus(e.HTTPStatusCode), e, true
	case *net.DNSError:
		return ErrUnavailable, e, true
	case *net.OpError: // before unwrapping, because timeouts of package net claim to be context.DeadlineExceeded
		if timedOut(e) {
			return ErrTimeout, e, true
		}
		return ErrUnavailable, e, true
	case syscall.Errno:
		switch e {
		case syscall.ECONNREFUSED, syscall.ECONNRESET, syscall.ECONNABORTED, syscall.EPIPE, syscall.ETIMEDOUT,
			syscall.ENETUNREACH, syscall.EHOSTUNREACH:
			return ErrUnavailable, e, true
		}
	}
	switch err {
	case context.Canceled, context.DeadlineExceeded:
		return "", err, true
	case io.ErrUnexpectedEOF:
		return ErrTruncated, err, true
	case net.ErrClosed:
		return ErrUnavailable, err, true
	}
	if c, ok := err.(contentType); ok {
		return ErrInvalidResponse, c, true
	}
	if isClientTimeout(err) {
		return "", context.DeadlineExceeded, true
	}
	if f, ok := readForeign(err); ok {
		if f.facts != nil {
			return f.facts.Kind, f.facts, true
		}
		return f.kind(), err, true
	}
	switch e := err.(type) {
	case interface{ Unwrap() error }:
		k, by, known = classify(e.Unwrap())
	case interface{ Unwrap() []error }:
		for _, branch := range e.Unwrap() {
			if k, by, known = classify(branch); known {
				break
			}
		}
	}
	if ne, ok := err.(net.Error); ok && !known { // such as *url.Error: the exchange itself failed
		if timedOut(ne) {
			return ErrTimeout, err, true
		}
		return ErrUnavailable, err, true
	}
	return k, by, known
}

// isClientTimeout reports whether err says that the Timeout of the caller's http.Client expired. Other timeouts of
// net/http have the same type, and only the text differs.
func isClientTimeout(err error) bool {
	t := reflect.TypeOf(err)
	return t.Kind() == reflect.Pointer && t.Elem().PkgPath() == "net/http" && t.Elem().Name() == "timeoutError" &&
		strings.Contains(err.Error(), " (Client.Timeout ")
}

// timedOut returns err.Timeout(), or false if err wraps a typed nil. Errors of package net call Timeout on what they
// wrap.
func timedOut(err net.Error) bool {
	for inner := error(err); inner != nil; inner = errors.Unwrap(inner) {
		if errtree.IsNil(inner) {
			return false
		}
	}
	return err.Timeout()
}

// describe returns one line about err without text from the provider or the caller. A wrapping error may quote a
// prompt, net/http quotes malformed answers, and a URL may contain a key.
func describe(err error) string {
	if own := errtree.Find[logTexter](err); own != nil {
		return printable(own.LogText(), maxLogText)
	}
	_, by, _ := classify(err)
	switch by := by.(type) {
	case nil:
	case *openai.APIError:
		return strings.TrimSpace("provider error " + identifier(codeText(by.Code)) + " " + identifier(by.Type))
	case *openai.RequestError:
		return ""
	case *Error:
		return short(by.Error())
	case Kind, syscall.Errno:
		return short(by.Error())
	case *net.DNSError:
		return "lookup " + short(by.Name) + " failed"
	case *net.OpError:
		where := by.Op + " " + by.Net
		if by.Addr != nil {
			where += " " + by.Addr.String()
		}
		return short(strings.TrimSpace(where) + ": " + reason(by))
	case contentType:
		return by.Error()
	default:
		switch by {
		case context.Canceled, context.DeadlineExceeded, io.ErrUnexpectedEOF, net.ErrClosed:
			return by.Error()
		}
	}
	return reason(err)
}

const maxLogText = 512 // bytes

// logTexter is implemented by errors that provide a text for logs, such as those of a Budget.
type logTexter interface {
	error
	LogText() string
}

// reason names the cause of a failed connection: an errno, an end of file, or the type of the innermost error.
func reason(err error) string {
	if errno := errtree.Find[syscall.Errno](err); errno != 0 {
		return errno.Error()
	}
	for _, known := range []error{io.EOF, http.ErrSchemeMismatch} {
		if errtree.Is(err, known) {
			return known.Error()
		}
	}
	switch {
	case errtree.Has[*tls.CertificateVerificationError](err):
		return "the server's certificate is not trusted"
	case errtree.Has[*json.UnmarshalTypeError](err):
		return "JSON that does not match the API's types"
	}
	if ne := errtree.Find[net.Error](err); ne != nil && timedOut(ne) {
		return "i/o timeout"
	}
	for inner := err; inner != nil; inner = errors.Unwrap(inner) {
		if err = inner; errtree.IsNil(inner) {
			break
		}
	}
	return fmt.Sprintf("%T", err)
}

// contentType is the cause of an ErrInvalidResponse: the media type of the answer.
type contentType string

func (c contentType) Error() string {
	if strings.Trim(string(c), "abcdefghijklmnopqrstuvwxyz0123456789/+.-") != "" || len(c) > 64 {
		return "content type not printable"
	}
	return "content type " + string(c)
}

func providerStatus(err error) int {
	switch e := err.(type) {
	case *Error:
		return e.StatusCode
	case *openai.APIError:
		return e.HTTPStatusCode
	case *openai.RequestError:
		return e.HTTPStatusCode
	}
	f, _ := readForeign(err)
	return f.status
}

// isContentPolicy reports whether the provider declined the request because of its content.
func isContentPolicy(err error) bool {
	return errtree.Search(err, func(err error) bool {
		if ae, ok := err.(*openai.APIError); ok {
			return dialect.Classify(ae.HTTPStatusCode, apiFailure(ae)) == dialect.ContentPolicy
		}
		f, ok := readForeign(err)
		return ok && dialect.Classify(f.status, f.failure) == dialect.ContentPolicy
	})
}

// aboutContext reports whether err may be only a consequence of the end of a context.
func aboutContext(err error) bool {
	return errtree.Is(err, context.Canceled) || errtree.Is(err, context.DeadlineExceeded) || errtree.Is(err, os.ErrDeadlineExceeded) ||
		errtree.Is(err, net.ErrClosed) || errtree.Is(err, io.ErrUnexpectedEOF) || errtree.Has[net.Error](err)
}

// kindOfProvider classifies a provider's failure by its code, then by its status. nameless is the kind for an error
// inside a 200 without a code.
func kindOfProvider(status int, f dialect.Failure, nameless Kind) Kind {
	if k := kindOfClass(dialect.Classify(status, f)); k != "" {
		return k
	}
	if status != 0 && status != http.StatusOK {
		return kindOfStatus(status)
	}
	if n, err := strconv.Atoi(f.Code); err == nil && n >= 400 && n < 600 {
		return kindOfStatus(n)
	}
	return nameless
}

func kindOfClass(c dialect.Class) Kind {
	switch c {
	case dialect.Quota:
		return ErrQuota
	case dialect.RateLimited:
		return ErrRateLimited
	case dialect.PromptTooLarge:
		return ErrPromptTooLarge
	case dialect.Unavailable:
		return ErrUnavailable
	case dialect.Unauthorized:
		return ErrUnauthorized
	case dialect.Misconfigured:
		return ErrMisconfigured
	case dialect.Rejected, dialect.ContentPolicy:
		return ErrRejected
	}
	return ""
}

func kindOfStatus(status int) Kind {
	switch {
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		return ErrUnauthorized
	case status == http.StatusTooManyRequests:
		return ErrRateLimited
	case status == http.StatusPaymentRequired:
		return ErrQuota
	case status == http.StatusRequestEntityTooLarge:
		return ErrPromptTooLarge
	case status == http.StatusNotFound:
		return ErrMisconfigured
	case status == http.StatusRequestTimeout, status == http.StatusConflict, status >= 500:
		return ErrUnavailable
	case status >= 400:
		return ErrRejected
	}
	return ErrInvalidResponse
}

// providerCause builds go-openai's error for a provider's failure: an *openai.APIError if the body has a known
// format, else an *openai.RequestError.
func providerCause(status int, f dialect.Failure, ok bool, body []byte) error {
	text := ""
	if status != 0 {
		text = fmt.Sprintf("%d %s", status, http.StatusText(status))
	}
	if !ok {
		return &openai.RequestError{HTTPStatus: text, HTTPStatusCode: status, Err: errors.New("no error object in the body"), Body: body}
	}
	e := &openai.APIError{Message: f.Message, Type: f.Type, HTTPStatus: text, HTTPStatusCode: status}
	if f.Code != "" {
		e.Code = f.Code
	}
	if n, err := strconv.Atoi(f.Code); err == nil && f.Number {
		e.Code = n // as go-openai decodes it
	}
	if f.Param != "" {
		e.Param = &f.Param
	}
	if f.InnerCode != "" {
		e.InnerError = &openai.InnerError{Code: f.InnerCode}
	}
	return e
}

func apiFailure(e *openai.APIError) dialect.Failure {
	f := dialect.Failure{Code: codeText(e.Code), Type: e.Type, Message: e.Message}
	_, f.Number = e.Code.(int)
	if e.InnerError != nil {
		f.InnerCode = e.InnerError.Code
	}
	return f
}
