package cost

import (
	"flag"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard/aiguardtest"
	"github.com/aiguard-go/aiguard/benchmarks/internal/contender"
)

var callers = flag.Int("callers", 10, "number of callers in TestOutage")

// TestOutage counts the requests of callers during an outage of a minute in virtual time. It prints the counts in the
// format of benchmarks.
func TestOutage(t *testing.T) {
	for _, name := range contender.Chatting {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				calls, requests := outage(t, name)
				perCall := float64(requests) / float64(calls)
				fmt.Printf("BenchmarkOutage/%s 1 %.3f requests/call %d calls\n", name, perCall, calls)
				switch name {
				case contender.Bare, contender.Hand:
					require.Equal(t, calls, requests)
				case contender.OpenAI, contender.Failsafe:
					require.InDelta(t, contender.Attempts, perCall, 0.1)
				case contender.Aiguard:
					require.Less(t, perCall, 1.2)
				case contender.Resilience: // holds its slots during the backoff, so most of many calls never get one
					require.LessOrEqual(t, perCall, float64(contender.Attempts))
				default: // contenders with a circuit breaker
					require.Less(t, perCall, 0.5)
				}
			})
		})
	}
}

func outage(t *testing.T, name string) (calls, requests int) {
	const between = 3 * time.Second
	fake := aiguardtest.NewServer(t, aiguardtest.Pipe())
	fake.SetDefault(aiguardtest.After(100*time.Millisecond, aiguardtest.Error(503, "server_error")))
	base := fake.Transport()
	defer base.CloseIdleConnections()
	chat := newChat(t, name, base, fake.URL)

	var made atomic.Int64
	var wg sync.WaitGroup
	over := time.Now().Add(time.Minute)
	for range *callers {
		wg.Go(func() {
			for time.Now().Before(over) {
				made.Add(1)
				_, err := chat(t.Context())
				assert.Error(t, err)
				time.Sleep(between)
			}
		})
	}
	wg.Wait()
	return int(made.Load()), fake.Count()
}
