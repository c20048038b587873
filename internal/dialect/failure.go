package dialect

import (
	"strconv"
	"strings"
	"time"

	"github.com/aiguard-go/aiguard/internal/jsonscan"
)

// Failure describes an error that a provider reported.
type Failure struct {
	Code, Type, Message, Param string
	Number                     bool          // Code was a number
	InnerCode                  string        // Azure's inner error, Google's reason, or the exception named in a header
	RetryAfter                 time.Duration // requested in the body; 0: none
}

// Class is the meaning of a failure. "" means that neither a code nor a phrase determines the class; the status then
// does.
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

// vocabulary maps the codes, types and phrases of a provider's failures to classes. Codes and types come first. A
// phrase is in lower case. It counts only in the message of a failure whose code has no class.
type vocabulary struct {
	codes   map[string]Class
	numbers map[string]Class // codes that are JSON numbers; another provider gives the same digits in a string another meaning
	phrases []phrase
}

type phrase struct {
	text   string
	class  Class
	status int // status required for a match; 0: any
}

// Failures are looked up in all vocabularies, because relays pass on other providers' errors.
var vocabularies = [...]*vocabulary{&openaiErrors, &anthropicErrors, &geminiErrors, &bedrockErrors, &cohereErrors, &ollamaErrors}

// ClassOfCode returns the class of a code or a type alone, or "".
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

func classOfNumber(f Failure) (class Class) {
	for _, v := range vocabularies {
		if f.Number && class == "" {
			class = v.numbers[f.Code]
		}
	}
	return class
}

// A usage limit with a window of at least longWindow counts as quota and not as a rate limit, because calls cannot wait
// that long.
const longWindow = time.Hour

// Classify returns the class of a failure with this HTTP status. Status 0 stands for an error inside a success. The
// code decides first, then the type, then the message.
func Classify(status int, f Failure) Class {
	class := classOfNumber(f)
	if class == "" {
		class = ClassOfCode(f.Code)
	}
	if class == "" {
		class = ClassOfCode(f.InnerCode)
	}
	if class == "" {
		class = ofType(status, f.Type)
	}
	switch class {
	case "", RateLimited, Rejected: // some providers use one code for several classes
		said := ofMessage(status, f)
		if said != "" && class != RateLimited || said == Quota || said == PromptTooLarge {
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

// ofType returns the class of a type. Types are vaguer than codes, so a type does not make a plain 4xx retryable.
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

// neverFits reports whether the message of a rate limit says that the request alone exceeds the limit.
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

// ErrorIn finds the error object in a body that passed jsonscan.Check. It knows the forms that providers use inside a
// success: {"error":{…}}, {"error":"text"}, a bare {"type":"error"|"object":"error","code":…,"message":…}, Google's
// [{"error":{…}}] and MiniMax's {"base_resp":{…}}. It ignores empty errors.
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
		if f, ok = failureIn(body), true; f.Type == "error" { // which is not a type of errors
			f.Type = ""
		}
	}
	if ok && f.RetryAfter == 0 {
		f.RetryAfter = hints(body)
	}
	return f, ok
}

// Refusal reads the body of a failure status. said is false if the body has no error object. The failure then holds
// what the body reports in another form.
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

// failureIn reads an error that is an object or a text.
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
		case "status": // Google
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

// hints returns the delay for a retry that a member of the object requests, or 0.
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
