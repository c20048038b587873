package provider

import (
	"net/http"
	"strconv"
	"time"
)

// Rate limit headers of providers: a limit, what remains of it, and when it will be full again. OpenAI and compatible
// servers name the limit first, and Anthropic names the unit first.
var limitHeaders = [...]struct{ requests, tokens [3]string }{
	{
		[3]string{"X-Ratelimit-Limit-Requests", "X-Ratelimit-Remaining-Requests", "X-Ratelimit-Reset-Requests"},
		[3]string{"X-Ratelimit-Limit-Tokens", "X-Ratelimit-Remaining-Tokens", "X-Ratelimit-Reset-Tokens"},
	},
	{
		[3]string{"Anthropic-Ratelimit-Requests-Limit", "Anthropic-Ratelimit-Requests-Remaining", "Anthropic-Ratelimit-Requests-Reset"},
		[3]string{"Anthropic-Ratelimit-Tokens-Limit", "Anthropic-Ratelimit-Tokens-Remaining", "Anthropic-Ratelimit-Tokens-Reset"},
	},
}

// Limits reads the provider's rate limits from the headers of an answer. ok is false if there are none.
func Limits(h http.Header) (requests, tokens Told, ok bool) {
	requests, tokens = Unknown, Unknown
	for i := range limitHeaders {
		names := &limitHeaders[i]
		if told := limit(h, &names.requests); told.Limit > 0 {
			requests, ok = told, true
		}
		if told := limit(h, &names.tokens); told.Limit > 0 {
			tokens, ok = told, true
		}
	}
	return requests, tokens, ok
}

func limit(h http.Header, names *[3]string) Told {
	if len(h[names[0]]) == 0 {
		return Unknown
	}
	return Told{number(h.Get(names[0])), number(h.Get(names[1])), reset(h.Get(names[2]), h)}
}

// number parses a count; -1: not a count.
func number(s string) float64 {
	n, err := strconv.ParseFloat(s, 64)
	if err != nil || !(n >= 0 && n <= 1e15) {
		return -1
	}
	return n
}

// reset parses a duration such as 6m0s, a number of seconds, or a time; -1: none of these.
func reset(s string, h http.Header) time.Duration {
	d, err := time.ParseDuration(s)
	if err != nil {
		if seconds := number(s); seconds >= 0 && seconds < 1e6 {
			return time.Duration(seconds * float64(time.Second))
		}
		at, err := time.Parse(time.RFC3339, s)
		if err != nil {
			return -1
		}
		d = max(at.Sub(Now(h)), 0)
	}
	if d < 0 {
		return -1
	}
	return d
}

// Now returns the time of the answer on the provider's clock, which may differ from ours. It returns our time if the
// answer has no date.
func Now(h http.Header) time.Time {
	if t, err := http.ParseTime(h.Get("Date")); err == nil {
		return t
	}
	return time.Now()
}
