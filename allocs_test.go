package aiguard_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"net/http"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"testing"

	openai "github.com/sashabaranov/go-openai"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
)

// Allocations are what of a call's cost a test can pin down exactly: they don't depend on the machine. Who adds one to a hot
// path changes a number here, and says why.

func allocs(t *testing.T, want float64, f func()) {
	t.Helper()
	if raceEnabled {
		t.Skip("the race detector allocates too: run it without -race")
	}
	require.Equal(t, want, testing.AllocsPerRun(1000, f))
}

// The call itself is reused.
func TestDoAllocatesTheContextOfFnAlone(t *testing.T) {
	g := newGuard(t, aiguard.Config{})
	allocs(t, 1, func() {
		_, _ = aiguard.Do(t.Context(), g, func(context.Context) (int, error) { return 1, nil })
	})
}

func TestRefusalAllocatesItsErrorAlone(t *testing.T) {
	g := newGuard(t, aiguard.Config{MaxConcurrent: 1, MaxQueue: 1})
	_, err := aiguard.Do(t.Context(), g, func(ctx context.Context) (int, error) {
		queued, leave := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = aiguard.Do(queued, g, func(context.Context) (int, error) { return 0, nil })
		}()
		defer func() { leave(); <-done }()
		for g.Stats().Waiting == 0 {
			runtime.Gosched()
		}
		outside := context.Background() // not nested in this call
		allocs(t, 1, func() { _, _ = aiguard.Do(outside, g, func(context.Context) (int, error) { return 0, nil }) })
		return 0, nil
	})
	require.NoError(t, err)
}

func TestCheckPromptAllocatesNothing(t *testing.T) {
	g := newGuard(t, aiguard.Config{})
	for _, text := range []string{"short", strings.Repeat("a", 20_000), strings.Repeat("漢", 20_000), strings.Repeat("aé漢😀", 5_000)} {
		allocs(t, 0, func() {
			if g.CheckPrompt("gpt-4o", text) != nil {
				panic("it fits")
			}
		})
	}
}

// inMemory is a provider without a network.
type inMemory struct {
	contentType string
	body        []byte
}

func (m inMemory) RoundTrip(r *http.Request) (*http.Response, error) {
	_, err := io.Copy(io.Discard, r.Body)
	r.Body.Close()
	return &http.Response{StatusCode: http.StatusOK, ProtoMajor: 1, ProtoMinor: 1, Request: r,
		Header: http.Header{"Content-Type": {m.contentType}},
		Body:   io.NopCloser(bytes.NewReader(m.body)), ContentLength: int64(len(m.body))}, err
}

func inMemoryConfig(contentType, body string) openai.ClientConfig {
	oc := openai.DefaultConfig("sk-secret-key")
	oc.HTTPClient = &http.Client{Transport: inMemory{contentType, []byte(body)}}
	return oc
}

// The guard adds ten, and saves six of http.Client. Three of the ten are the attempt's own URL and header, which a base that
// is no *http.Transport gets.
func TestAllocationsThatTheGuardAddsToAChat(t *testing.T) {
	oc := inMemoryConfig("application/json", `{"object":"chat.completion","model":"gpt-4o-mini","choices":[{"index":0,`+
		`"message":{"role":"assistant","content":"Hello."},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1}}`)
	bare, guarded := openai.NewClientWithConfig(oc), newGuard(t, aiguard.Config{}).Client(oc)
	ctx := context.Background()
	run := func(create func(context.Context, openai.ChatCompletionRequest) (openai.ChatCompletionResponse, error)) float64 {
		return testing.AllocsPerRun(1000, func() {
			if _, err := create(ctx, chatRequest); err != nil {
				panic(err)
			}
		})
	}
	if raceEnabled {
		t.Skip("the race detector allocates too: run it without -race")
	}
	require.Equal(t, 4., run(guarded.CreateChatCompletion)-run(bare.CreateChatCompletion))
}

func TestStreamEventAllocatesNothingOfOurs(t *testing.T) {
	event := `data: {"object":"chat.completion.chunk","model":"gpt-4o-mini","choices":[{"index":0,"delta":{"content":"word "}}]}` + "\n\n"
	end := `data: {"object":"chat.completion.chunk","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}` + "\n\ndata: [DONE]\n\n"
	ctx := context.Background()
	run := func(guard bool, events int) float64 {
		oc := inMemoryConfig("text/event-stream", strings.Repeat(event, events)+end)
		stream := openai.NewClientWithConfig(oc).CreateChatCompletionStream
		if guard {
			stream = newGuard(t, aiguard.Config{}).Client(oc).CreateChatCompletionStream
		}
		return testing.AllocsPerRun(20, func() {
			s, err := stream(ctx, chatRequest)
			if err != nil {
				panic(err)
			}
			defer s.Close()
			for err == nil {
				_, err = s.Recv()
			}
			if !errors.Is(err, io.EOF) {
				panic(err)
			}
		})
	}
	if raceEnabled {
		t.Skip("the race detector allocates too: run it without -race")
	}
	const few, many = 10, 1010
	bare, guarded := run(false, many)-run(false, few), run(true, many)-run(true, few)
	require.InDelta(t, bare, guarded, 0.01*(many-few), "per event")
}

// A goroutine starts with a stack of 2 KiB. A call that has to wait, and what follows its wait, should fit in it: a
// larger stack doubles the memory of the wait, and copying it is most of the time of a short call.
func TestWaitAllocatesNoLargerStack(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates too: run it without -race")
	}
	for name, leave := range map[string]bool{"served": false, "canceled": true} {
		t.Run(name, func(t *testing.T) {
			least := int64(math.MaxInt64)
			for range 5 { // on a busy machine some goroutines need 4 KiB, to be preempted
				if least = min(least, stackOfAWait(t, leave)); least < 3500 {
					return
				}
			}
			t.Errorf("a call needs %d bytes of stack", least)
		})
	}
}

// stackOfAWait returns how much stack a goroutine has after a Do that had to wait. If leave is set, the caller cancels it.
func stackOfAWait(t *testing.T, leave bool) int64 {
	const calls = 1000
	g := newGuard(t, aiguard.Config{MaxConcurrent: 1, MaxQueue: calls})
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // a collection shrinks stacks
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var over sync.WaitGroup
	measured := make(chan struct{})
	before := stacks()
	_, err := aiguard.Do(t.Context(), g, func(context.Context) (int, error) {
		for range calls {
			over.Add(1)
			go func() {
				_, _ = aiguard.Do(ctx, g, func(context.Context) (int, error) { return 0, nil })
				over.Done()
				<-measured // keep the stack
			}()
		}
		for g.Stats().Waiting < calls {
			runtime.Gosched()
		}
		if leave {
			cancel()
		}
		return 0, nil
	})
	require.NoError(t, err)
	over.Wait()
	after := stacks()
	close(measured)
	return (after - before) / calls
}

func stacks() int64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.StackInuse)
}
