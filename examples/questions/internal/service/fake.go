package service

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/aiguard-go/aiguard/aiguardtest"
)

// faultModel is the prefix of the model names for which the fake provider fails. A fault therefore affects only the
// operation that requests it.
const faultModel = "fault-"

// Faults returns the valid values of ?fault=.
func Faults() []string { return []string{"timeout", "outage", "ratelimit", "truncated", "slow"} }

func knownFault(name string) bool { return slices.Contains(Faults(), name) }

// FakeAnswer returns a handler that sends the expected answers piece by piece at the given pace, or plays the model's
// fault.
func FakeAnswer(pace time.Duration) func(*aiguardtest.Request) aiguardtest.Reply {
	return func(r *aiguardtest.Request) aiguardtest.Reply {
		answer := aiguardtest.TextN(fakeText(r), 12)
		switch strings.TrimPrefix(r.Model, faultModel) {
		case "timeout":
			return aiguardtest.Hang()
		case "outage":
			return aiguardtest.Error(http.StatusServiceUnavailable, "service_unavailable")
		case "ratelimit":
			return aiguardtest.Error(http.StatusTooManyRequests, "rate_limit_exceeded", "Retry-After", "1")
		case "truncated":
			return aiguardtest.Cut(2000, aiguardtest.Slowly(pace, answer))
		case "slow":
			return aiguardtest.Slowly(8*pace, answer)
		}
		return aiguardtest.Slowly(pace, answer)
	}
}

// fakeText returns an answer to the user's message in the request.
func fakeText(r *aiguardtest.Request) string {
	var body struct {
		Messages []struct{ Content string }
	}
	var texts map[string]string
	if json.Unmarshal(r.Body, &body) == nil && len(body.Messages) == 2 {
		_ = json.Unmarshal([]byte(body.Messages[1].Content), &texts) // other requests get a feedback answer
	}
	var answer any = feedback{
		Score:        4,
		Strengths:    []string{"The answer gets to the point.", "It gives a reason."},
		Improvements: []string{"An example would make it easier to follow.", "Say where it does not hold."},
		Summary:      "A good answer that an example would make a very good one. (Made up: no model has read it.)",
	}
	if topic, ok := texts["topic"]; ok {
		answer = questions{Questions: []string{
			"In one sentence: what does “" + topic + "” mean?",
			"“" + topic + "”: where have you met it in daily life?",
			"“" + topic + "”: what has it to do with what you know already?",
			"“" + topic + "”: what would change without it?",
			"“" + topic + "”: what does nobody know yet?",
		}}
	}
	b, err := json.Marshal(answer)
	if err != nil {
		panic(err) // cannot fail: strings and numbers
	}
	return string(b)
}
