package main

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
)

// provider is a fake provider with a guarded client.
type provider struct {
	*aiguardtest.Server
	client *aiguard.Client
}

// playFaults makes the second server's connections fail from time to time.
func (s *soak) playFaults(ctx context.Context) {
	var faults []aiguardtest.Fault
	for _, f := range aiguardtest.Faults() {
		if f.Connection() {
			faults = append(faults, f)
		}
	}
	rng := rand.New(rand.NewPCG(s.seed, 1<<32))
	for n := rng.IntN(len(faults)); sleep(ctx, playEvery/2+time.Duration(rng.Int64N(int64(playEvery)))); n++ {
		s.play(faults[n%len(faults)])
		sleep(ctx, playFor)
		s.play("")
	}
}

// play plays f. It retries, because a connection of this process may briefly hold the port of the stopped server.
func (s *soak) play(f aiguardtest.Fault) {
	try := func() (why any) {
		defer func() { why = recover() }()
		s.second.Play(f)
		return nil
	}
	for n := 0; ; n++ {
		switch why := try(); {
		case why == nil:
			return
		case n == 10:
			s.failf("the second server: %v", why)
			return
		}
	}
}

// requestFaults are the faults that a request can name in its model. A number follows the name. A 429 pauses a route,
// which is a host and a model, so the number keeps other routes open.
var requestFaults = func() map[string]aiguardtest.Fault {
	faults := map[string]aiguardtest.Fault{}
	for _, f := range aiguardtest.Faults() {
		if !f.Connection() {
			faults[string(f)] = f
		}
	}
	return faults
}()

var requestFaultNames = slices.Sorted(maps.Keys(requestFaults))

// answer is the handler of the main server. One in ten requests for a fault gets a good answer, so that retries can
// succeed.
func (s *soak) answer(r *aiguardtest.Request) aiguardtest.Reply {
	if r.Header.Get(dialectHeader) != "" {
		return answerIn(r)
	}
	name, _, _ := strings.Cut(r.Model, "#")
	rng := rand.New(rand.NewPCG(s.seed, 1<<33+s.replay.Add(1)))
	if f, ok := requestFaults[name]; ok && rng.IntN(10) > 0 {
		return f.Reply()
	}
	return healthy(r.Body)
}

// healthy returns a good answer with a text that is unique to the request.
func healthy(body []byte) aiguardtest.Reply {
	_, rest, _ := strings.Cut(string(body), "soak:")
	number, _, _ := strings.Cut(rest, ";")
	id, _ := strconv.ParseInt(number, 10, 64)
	text, chunks := textOf(id)
	reply := aiguardtest.TextN(text, chunks)
	switch id % 8 {
	case 0, 1:
		reply = aiguardtest.Slowly(ms(int(id%20)), reply)
	case 2:
		reply = aiguardtest.After(ms(int(id%300)), reply)
	}
	return reply
}

func textOf(id int64) (text string, chunks int) {
	rng := rand.New(rand.NewPCG(uint64(id), 0))
	sentence := fmt.Sprintf("Call %d: the quick brown fox jumps over the lazy dog. ", id)
	return strings.Repeat(sentence, 1+rng.IntN(100)), 1 + rng.IntN(30)
}

// goodEnds maps each fault whose answer may look complete to the text of that answer.
var goodEnds = map[aiguardtest.Fault]string{
	aiguardtest.FaultStaleKeepAlive:       "Hello!",
	aiguardtest.FaultWrongType:            "Hello!",
	aiguardtest.FaultTrailingBytes:        "Hello!",
	aiguardtest.FaultUndrained:            "Hello!",
	aiguardtest.FaultStreamAnsweredJSON:   "Hello!", // in reply to a plain request
	aiguardtest.FaultStreamManyPings:      "Hello!",
	aiguardtest.FaultStreamNoDone:         "Hello!",
	aiguardtest.FaultStreamNoDoneHeldOpen: "Hello!",
	aiguardtest.FaultStreamLong:           strings.Repeat("Hi ", 18),
	aiguardtest.FaultStreamHugeComments:   strings.Repeat("Hi ", 200),
}
