package dialect

import (
	"strconv"
	"strings"
	"time"

	"github.com/aiguard-go/aiguard/internal/jsonscan"
)

// Failure is what a provider says went wrong.
type Failure struct {
	Code, Type, Message, Param string
	Number                     bool          // Code was a number
	InnerCode                  string        // Azure's inner error, Google's reason, or the exception in a header
	RetryAfter                 time.Duration // that the body asks for; 0: none
}

// Class is the meaning of a failure. It is "" where neither a code nor a phrase tells; then the status does.
type Class string

// The classes of failures.
const (
	Quota          Class = "quota"
	RateLimited    Class = "rate limited"
	PromptTooLarge Class = "prompt too large"
	Unavailable    Class = "unavailable"
	Unauthorized   Class = "unauthorized"
	Misconfigured  Class = "misconfigured"
	Rejected       Class = "rejected"
	ContentPolicy  Class = "content policy"
)

// vocabulary is what a provider's failures are called. Codes and types come first; a phrase, in lower case, counts only in
// the message of a failure that has no code with a meaning.
type vocabulary struct {
	codes   map[string]Class
	phrases []phrase
}

type phrase struct {
	text   string
	class  Class
	status int // that it must come with; 0: any
}

// vocabularies are all asked, whoever answered: relays pass on other providers' errors.
var vocabularies = [...]*vocabulary{&openaiErrors, &anthropicErrors, &geminiErrors, &bedrockErrors, &cohereErrors, &ollamaErrors}

// ClassOfCode returns what a code or a type means by itself, or "".
func ClassOfCode(code string) Class {
	if code == "" {
		return ""
	}
	for _, v := range vocabularies {
		if class := v.codes[code]; class != "" {
			return class
		}
	}
	if strings.HasSuffix(code, "_spend_limit_exceeded") {
		return Quota
	}
	return ""
}

// longWindow is from where on a usage limit is no rate limit: nobody waits for so long.
const longWindow = time.Hour

// Classify returns what a failure with this status means (0: it came inside a success): by its code first, then its type,
// then its message.
func Classify(status int, f Failure) Class {
	class := ClassOfCode(f.Code)
	if class == "" {
		class = ClassOfCode(f.InnerCode)
	}
	if class == "" {
		class = ofType(status, f.Type)
	}
	if class == "" {
		class = ofMessage(status, f)
	} else if class == RateLimited {
		switch said := ofMessage(status, f); said {
		case Quota, PromptTooLarge: // Google and Anthropic have one code for all of them
			class = said
		}
	}
	limited := class == RateLimited || class == "" && status == 429
	switch {
	case (class == "" || limited) && status == 413, limited && neverFits(f.Message):
		return PromptTooLarge
	case class == Quota && (f.Code == "usage_limit_reached" || f.Type == "usage_limit_reached") && 0 < f.RetryAfter && f.RetryAfter < longWindow:
		return RateLimited
	case class == "" && (f.Type == "not_found_error" || f.Type == "NOT_FOUND" || f.Type == "NotFoundError"):
		return Misconfigured
	case class == "" && status == 0 && (f.Type == "invalid_request_error" || f.Type == "INVALID_ARGUMENT"):
		return Rejected
	}
	return class
}

func ofMessage(status int, f Failure) Class {
	message := strings.ToLower(f.Message)
	for _, v := range vocabularies {
		for _, p := range v.phrases {
			if (p.status == 0 || p.status == status || f.Number && f.Code == strconv.Itoa(p.status)) && strings.Contains(message, p.text) {
				return p.class
			}
		}
	}
	return ""
}

// ofType is vaguer than a code: it does not turn a plain 4xx into something to try again.
func ofType(status int, kind string) Class {
	class := ClassOfCode(kind)
	switch status {
	case 408, 409, 429:
		return class
	}
	if status >= 400 && status < 500 && (class == Unavailable || class == RateLimited) {
		return ""
	}
	return class
}

// neverFits reports whether a rate limit's message says that the request by itself is over the limit.
func neverFits(message string) bool {
	limit, ok := numberBehind(message, "Limit ")
	requested, ok2 := numberBehind(message, "Requested ")
	return ok && ok2 && requested > limit
}

func numberBehind(text, word string) (n int64, ok bool) {
	_, rest, ok := strings.Cut(text, word)
	for ok && n < 1<<50 && len(rest) > 0 && (rest[0] >= '0' && rest[0] <= '9' || rest[0] == ',') {
		if rest[0] != ',' {
			n = 10*n + int64(rest[0]-'0')
		}
		rest = rest[1:]
	}
	return n, ok && n > 0
}

// ErrorIn finds the error object in a body that has passed jsonscan.Check, in the forms that providers use inside a
// success: {"error":{…}}, {"error":"text"}, a bare {"type":"error"|"object":"error","code":…,"message":…}, Google's
// [{"error":{…}}] and MiniMax's {"base_resp":{…}}. An error that says nothing is none.
func ErrorIn(body []byte) (f Failure, ok bool) {
	if first(body) == '[' {
		for e := range jsonscan.Elements(body) {
			return errorInObject(e)
		}
		return f, false
	}
	return errorInObject(body)
}

func errorInObject(body []byte) (f Failure, ok bool) {
	bare := false
	for key, value := range jsonscan.Members(body) {
		switch string(key) {
		case "error":
			if !ok && !empty(value) {
				f, ok = failureIn(value), true
			}
		case "type", "object":
			bare = bare || string(value) == `"error"`
		case "base_resp":
			if code := member(value, "status_code"); !ok && !hollow(code) {
				f.Code, f.Number = scalar(code)
				f.Message = text(member(value, "status_msg"))
				ok = true
			}
		}
	}
	if !ok && bare {
		f, ok = failureIn(body), true
		f.Type = ""
	}
	if ok && f.RetryAfter == 0 {
		f.RetryAfter = hints(body)
	}
	return f, ok
}

// Refusal reads the body of a failure status. said is false where it has no error object; then the failure has what a body
// says in another form.
func Refusal(body []byte) (f Failure, said bool) {
	if f, said = ErrorIn(body); said {
		return f, true
	}
	for key, value := range jsonscan.Members(body) {
		switch string(key) {
		case "message", "Message", "detail":
			if f.Message == "" {
				f.Message = text(value)
			}
		case "code", "__type", "reason":
			if f.Code == "" {
				f.Code, f.Number = scalar(value)
				f.Code = f.Code[strings.LastIndexByte(f.Code, '#')+1:] // "com.amazon.coral.service#ThrottlingException"
			}
		case "type":
			f.Type = text(value)
		}
	}
	f.RetryAfter = hints(body)
	return f, false
}

// failureIn reads an error: an object, or a text.
func failureIn(value []byte) (f Failure) {
	if first(value) != '{' {
		f.Message, _ = scalar(value)
		return f
	}
	for key, value := range jsonscan.Members(value) {
		switch string(key) {
		case "message":
			f.Message, _ = scalar(value)
		case "type":
			f.Type, _ = scalar(value)
		case "status": // Google's
			if s, number := scalar(value); f.Type == "" && !number {
				f.Type = s
			}
		case "code":
			f.Code, f.Number = scalar(value)
		case "param":
			f.Param, _ = scalar(value)
		case "innererror":
			f.InnerCode = text(member(value, "code"))
		case "details":
			f.googleDetails(value)
		}
	}
	if f.RetryAfter == 0 {
		f.RetryAfter = hints(value)
	}
	return f
}

// googleDetails reads google.rpc.ErrorInfo and google.rpc.RetryInfo.
func (f *Failure) googleDetails(list []byte) {
	for detail := range jsonscan.Elements(list) {
		for key, value := range jsonscan.Members(detail) {
			switch string(key) {
			case "reason":
				if f.InnerCode == "" {
					f.InnerCode = text(value)
				}
			case "retryDelay":
				if d, err := time.ParseDuration(text(value)); err == nil && d > 0 {
					f.RetryAfter = d
				}
			}
		}
	}
}

// hints finds a time to wait among the members of an object.
func hints(object []byte) time.Duration {
	for key, value := range jsonscan.Members(object) {
		unit := time.Second
		switch string(key) {
		case "retry_after_ms":
			unit = time.Millisecond
		case "resets_in_seconds", "retry_after", "retry_after_seconds":
		default:
			continue
		}
		s, _ := scalar(value)
		if n, err := strconv.ParseFloat(s, 64); err == nil && n > 0 && n < 1e9 {
			return time.Duration(n * float64(unit))
		}
	}
	return 0
}
