package httpguard

import (
	"strconv"
	"strings"
)

// prefersHTML reports whether the Accept headers (RFC 9110, section 12.5.1) prefer text/html to application/json and
// application/problem+json.
func prefersHTML(accept []string) bool {
	var html, problem, plain quality
	for _, field := range accept {
		for part := range strings.SplitSeq(field, ",") {
			mediaRange, params, _ := strings.Cut(part, ";")
			mediaRange, q := strings.ToLower(strings.TrimSpace(mediaRange)), weight(params)
			html.offer("text/html", mediaRange, q)
			problem.offer("application/problem+json", mediaRange, q)
			plain.offer("application/json", mediaRange, q)
		}
	}
	return html.q > max(problem.q, plain.q)
}

// quality is the weight of a media type, taken from the most specific range that matches.
type quality struct {
	q           float64
	specificity int
}

func (have *quality) offer(mediaType, mediaRange string, q float64) {
	specificity := 0
	switch class, _, _ := strings.Cut(mediaType, "/"); mediaRange {
	case mediaType:
		specificity = 3
	case class + "/*":
		specificity = 2
	case "*/*":
		specificity = 1
	}
	if specificity > have.specificity {
		*have = quality{q, specificity}
	}
}

// weight returns the parameter q: 1 by default, and 0 if malformed.
func weight(params string) float64 {
	for param := range strings.SplitSeq(params, ";") {
		name, value, _ := strings.Cut(strings.TrimSpace(param), "=")
		if !strings.EqualFold(name, "q") {
			continue
		}
		if q, err := strconv.ParseFloat(value, 64); err == nil && q >= 0 && q <= 1 {
			return q
		}
		return 0
	}
	return 1
}
