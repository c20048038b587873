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

// provider is a fake one, with a guarded client of it.
type provider struct {
	*aiguardtest.Server
	client *aiguard.Client
}

// playFaults lets the second server's connections fail now and then.
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

// play plays f. The port of a server that refused may be taken by a connection of this very process, for a while.
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

// A request says in its model which fault is ordered, and a number: a 429 closes a route, of host and model, and the
// others shall stay open.
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

// answer is what the main server does with a request. Some that order a fault are lucky, so that retries succeed too.
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

// healthy is a good answer, with a text that only this request gets.
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

// goodEnds are the faults with which an answer is complete all the same, or may be taken for that, and its text.
var goodEnds = map[aiguardtest.Fault]string{
	aiguardtest.FaultStaleKeepAlive:       "Hello!",
	aiguardtest.FaultWrongType:            "Hello!",
	aiguardtest.FaultTrailingBytes:        "Hello!",
	aiguardtest.FaultUndrained:            "Hello!",
	aiguardtest.FaultStreamAnsweredJSON:   "Hello!", // where none was asked for
	aiguardtest.FaultStreamManyPings:      "Hello!",
	aiguardtest.FaultStreamNoDone:         "Hello!",
	aiguardtest.FaultStreamNoDoneHeldOpen: "Hello!",
	aiguardtest.FaultStreamLong:           strings.Repeat("Hi ", 18),
	aiguardtest.FaultStreamHugeComments:   strings.Repeat("Hi ", 200),
}
