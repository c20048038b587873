package main

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aiguard-go/aiguard/aiguardtest"
)

// A question with one of these texts selects the fake provider's behaviour.
const (
	hangs  = "Please hang."
	breaks = "Please break."
)

// moody answers in 20 ms. Some answers are late and some fail. A question can also request a failure.
func moody() func(*aiguardtest.Request) aiguardtest.Reply {
	answer := aiguardtest.Slowly(20*time.Millisecond, aiguardtest.TextN("It is the moon's work, and the sun's.", 5))
	var n atomic.Int64
	return func(r *aiguardtest.Request) aiguardtest.Reply {
		switch n := n.Add(1); {
		case strings.Contains(string(r.Body), hangs):
			return aiguardtest.Hang()
		case strings.Contains(string(r.Body), breaks):
			return aiguardtest.Error(http.StatusInternalServerError, "")
		case n%100 == 0:
			return aiguardtest.Error(http.StatusServiceUnavailable, "")
		case n%10 == 7:
			return aiguardtest.After(500*time.Millisecond, answer)
		}
		return answer
	}
}

// play simulates users until ctx ends. One user asks all the time. From time to time there is a crowd, a question
// that is too long, questions for which the provider fails, and a tenant who spends most of its budget.
func play(ctx context.Context, s *service) {
	var users sync.WaitGroup
	defer users.Wait()
	ask := func(n int, text string) {
		users.Go(func() {
			_, _ = s.ask(ctx, question{text: text, tenant: fmt.Sprintf("tenant-%d", n%3), stream: n%2 == 0}) // the guard counts the result
		})
	}
	try := func(n int) {
		users.Go(func() {
			for range n {
				_, _ = s.ask(ctx, question{text: "Why are there tides?", tenant: trialTenant})
			}
		})
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		ask(n, "Why are there tides?")
		switch n % 100 {
		case 10:
			ask(n, strings.Repeat("Why? ", 5000))
		case 20:
			try(25)
		case 30:
			ask(n, hangs)
		case 60: // enough failures in a row for an outage
			for range 8 {
				ask(n, breaks)
			}
		case 80:
			for i := range 40 {
				ask(i, "Why are there tides?")
			}
		}
	}
}
