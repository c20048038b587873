package aiguard

import (
	"net/http"
	"reflect"
	"time"

	"github.com/aiguard-go/aiguard/internal/callctx"
	"github.com/aiguard-go/aiguard/internal/dialect"
	"github.com/aiguard-go/aiguard/internal/jsonscan"
)

// foreign holds the facts in the error of another SDK. It reads these types by their shape, because importing the
// SDKs would make every user download them:
//
//	openai-go, anthropic-sdk-go  Response *http.Response; Code and Type, or the error's JSON in RawJSON()
//	genai                        Code int, Message, Status string, Details
//	Ollama's client              StatusCode int, Status, ErrorMessage or SigninURL string
//	forks of go-openai (eino)    HTTPStatusCode int, Code any, Type string
type foreign struct {
	facts      *Error // of the guard that returned the response
	status     int
	failure    dialect.Failure
	requestID  string
	retryAfter time.Duration
}

func (f *foreign) kind() Kind { return kindOfProvider(f.status, f.failure, ErrUnavailable) }

// readForeign reads err, but not the errors it wraps.
func readForeign(err error) (f foreign, ok bool) {
	v := reflect.ValueOf(err)
	if v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	if v.Kind() != reflect.Struct {
		return f, false
	}
	s := shape{v}
	if resp, _ := s.field("Response").(*http.Response); resp != nil {
		f.facts, _ = callctx.Facts(resp).(*Error)
		f.status, f.requestID, f.retryAfter = resp.StatusCode, requestID(resp.Header), retryAfter(resp.Header, time.Now())
		f.failure = dialect.Failure{Code: s.text("Code"), Type: s.text("Type")}
		if f.failure == (dialect.Failure{}) {
			f.failure = rawFailure(err)
		} else {
			f.failure.Message = s.text("Message")
		}
		return f, resp.StatusCode >= 400
	}
	if code, ok := s.field("Code").(int); ok && s.has("Message", "Status", "Details") {
		f.status, f.failure.Code, f.failure.Message = code, s.text("Status"), s.text("Message")
		details, _ := s.field("Details").([]map[string]any)
		f.failure.InnerCode, f.retryAfter = detailed(details)
		return f, code >= 400
	}
	if code, ok := s.field("StatusCode").(int); ok && (s.has("Status", "ErrorMessage") || s.has("Status", "SigninURL")) {
		f.status, f.failure.Message = code, s.text("ErrorMessage")
		return f, code >= 400
	}
	if code, ok := s.field("HTTPStatusCode").(int); ok {
		f.status, f.failure = code, dialect.Failure{Code: codeText(s.field("Code")), Type: s.text("Type"), Message: s.text("Message")}
		return f, code >= 400
	}
	return f, false
}

// detailed returns the reason and the delay in the details of a genai error.
func detailed(details []map[string]any) (reason string, wait time.Duration) {
	for _, d := range details {
		if r, ok := d["reason"].(string); ok && reason == "" {
			reason = r
		}
		if delay, ok := d["retryDelay"].(string); ok {
			if d, err := time.ParseDuration(delay); err == nil && d > 0 {
				wait = d
			}
		}
	}
	return reason, wait
}

// rawFailure reads the JSON of a provider's error from an SDK's error.
func rawFailure(err error) (f dialect.Failure) {
	raw, ok := err.(interface{ RawJSON() string })
	if !ok {
		return f
	}
	body := []byte(raw.RawJSON())
	if end, err := jsonscan.Check(body, dialect.MaxShape); err == nil {
		f, _ = dialect.Refusal(body[:end])
	}
	return f
}

// shape is a struct of a type that this package does not import.
type shape struct{ v reflect.Value }

// field returns the value of a field of the struct itself, or nil.
func (s shape) field(name string) any {
	f, ok := s.v.Type().FieldByName(name)
	if !ok || !f.IsExported() || len(f.Index) > 1 {
		return nil
	}
	return s.v.Field(f.Index[0]).Interface()
}

func (s shape) text(name string) string {
	text, _ := s.field(name).(string)
	return text
}

func (s shape) has(names ...string) bool {
	for _, name := range names {
		if f, ok := s.v.Type().FieldByName(name); !ok || len(f.Index) > 1 {
			return false
		}
	}
	return true
}
