package aiguard_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"reflect"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	openai "github.com/sashabaranov/go-openai"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
	"github.com/aiguard-go/aiguard/budget"
	"github.com/aiguard-go/aiguard/httpguard"
)

// eachNumber hands over every field of cfg that holds a number, by its name in error messages. A field of a type
// that it does not know fails the test: somebody must decide how New validates it.
func eachNumber(t *testing.T, cfg *aiguard.Config, f func(name string, field reflect.Value)) {
	t.Helper()
	var walk func(prefix string, s reflect.Value)
	walk = func(prefix string, s reflect.Value) {
		for i := range s.NumField() {
			name, field := prefix+s.Type().Field(i).Name, s.Field(i)
			switch field.Kind() {
			case reflect.Int, reflect.Int64, reflect.Float64:
				f(name, field)
			case reflect.Struct:
				if name != "Hedge" { // a fraction without Off
					walk(name+".", field)
				}
			case reflect.String, reflect.Map, reflect.Bool, reflect.Func, reflect.Interface, reflect.Slice, reflect.Pointer: // any value is valid, or tested by itself
			default:
				t.Fatalf("Config.%s is a %s: extend this test", name, field.Kind())
			}
		}
	}
	walk("", reflect.ValueOf(cfg).Elem())
}

func setNumber(field reflect.Value, n int64) {
	if field.CanFloat() {
		field.SetFloat(float64(n))
	} else {
		field.SetInt(max(n, -1<<(field.Type().Bits()-1))) // int has 32 bits on some machines
	}
}

func countBytes(_, text string) (int, error) { return len(text), nil }

func TestNewNamesTheFieldItsValueAndWhatIsAllowed(t *testing.T) {
	fields := 0
	eachNumber(t, &aiguard.Config{}, func(name string, _ reflect.Value) {
		fields++
		for _, bad := range []int64{-2, -1000, math.MinInt64} {
			cfg := aiguard.Config{CountTokens: countBytes}
			shown := ""
			eachNumber(t, &cfg, func(n string, field reflect.Value) {
				if n == name {
					setNumber(field, bad)
					shown = fmt.Sprint(field.Interface())
				}
			})
			g, err := aiguard.New(cfg)
			require.Error(t, err, "%s %d", name, bad)
			assert.Nil(t, g)
			assert.Regexp(t, `^aiguard: Config\.`+name+` is `+strings.NewReplacer("+", `\+`, ".", `\.`).Replace(shown)+`; want .*0 for the default.*Off`, err.Error())
			assert.Equal(t, 1, strings.Count(err.Error(), "Config."), "one mistake, one complaint: %v", err)

			_, err = aiguard.NewClient(openai.DefaultConfig("k"), cfg)
			require.Error(t, err, "NewClient")
		}
		for _, good := range []int64{aiguard.Off, 0, 1} {
			cfg := aiguard.Config{CountTokens: countBytes}
			eachNumber(t, &cfg, func(n string, field reflect.Value) {
				if n == name {
					setNumber(field, good)
				}
			})
			_, err := aiguard.New(cfg)
			assert.NoError(t, err, "%s %d", name, good)
		}
	})
	assert.GreaterOrEqual(t, fields, 18, "the walk finds the fields")
}

// The largest value of a field means no limit. A sum with it must not overflow.
func TestLargestValuesLimitNothing(t *testing.T) {
	try := func(t *testing.T, cfg aiguard.Config, call aiguard.Call) {
		if _, err := aiguard.New(cfg); err != nil {
			return // it does not fit the other fields
		}
		inVirtualTime(t, cfg, func(t *testing.T, c *aiguard.Client, _ *aiguardtest.Server) {
			g, ctx := c.Guard(), aiguard.WithCall(t.Context(), call)
			inside := func(ctx context.Context) error { return ctx.Err() }
			require.NoError(t, do(ctx, g, inside))
			require.NoError(t, g.With(call).RunTask(ctx, inside))
			_, err := chat(ctx, c)
			require.NoError(t, err)
			_, err = streamChat(ctx, c)
			require.NoError(t, err)
			require.GreaterOrEqual(t, g.Config().TotalTimeout, g.Config().CallTimeout)
			limit, err := httpguard.Limit(g, httpguard.Config{QueueTimeout: time.Nanosecond})
			require.NoError(t, err)
			w := httptest.NewRecorder()
			limit(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
			require.Equal(t, http.StatusNoContent, w.Code)
		})
	}
	eachNumber(t, &aiguard.Config{}, func(name string, _ reflect.Value) {
		t.Run(name, func(t *testing.T) {
			cfg := aiguard.Config{CountTokens: countBytes}
			eachNumber(t, &cfg, func(n string, field reflect.Value) {
				if n == name {
					setLargest(field)
				}
			})
			try(t, cfg, aiguard.Call{})
		})
	})
	all := aiguard.Config{CountTokens: countBytes}
	eachNumber(t, &all, func(name string, field reflect.Value) {
		if name != "Retry.Budget" {
			setLargest(field)
		}
	})
	t.Run("all", func(t *testing.T) {
		_, err := aiguard.New(all)
		require.NoError(t, err)
		try(t, all, aiguard.Call{})
	})
	t.Run("all of a call", func(t *testing.T) {
		try(t, aiguard.Config{}, aiguard.Call{Timeout: math.MaxInt64, TotalTimeout: math.MaxInt64, StreamIdleTimeout: math.MaxInt64,
			Attempts: math.MaxInt, MaxPromptChars: math.MaxInt, MaxOutputTokens: math.MaxInt})
	})
	t.Run("Call.Timeout", func(t *testing.T) { try(t, aiguard.Config{}, aiguard.Call{Timeout: math.MaxInt64}) })
}

func setLargest(field reflect.Value) {
	if field.CanFloat() {
		field.SetFloat(100)
	} else {
		field.SetInt(math.MaxInt64 >> (64 - field.Type().Bits()))
	}
}

func TestNewReportsEveryMistakeAtOnce(t *testing.T) {
	cfg := aiguard.Config{CountTokens: countBytes, Middleware: []aiguard.Middleware{nil}}
	var names []string
	eachNumber(t, &cfg, func(name string, field reflect.Value) {
		names = append(names, name)
		setNumber(field, -7)
	})
	_, err := aiguard.New(cfg)
	require.Error(t, err)
	for _, name := range append(names, "Middleware[0]") {
		assert.Contains(t, err.Error(), "Config."+name+" is ")
	}
}

func TestNewChecksRelationsAndOddValues(t *testing.T) {
	pass := func(ctx context.Context, _ aiguard.Call, next func(context.Context) error) error { return next(ctx) }
	for name, c := range map[string]struct {
		cfg  aiguard.Config
		want []string // parts of the error; none: valid
	}{
		"a nil pointer as the Limiter": {aiguard.Config{Limiter: (*countingLimiter)(nil)}, []string{"Config.Limiter is a nil *aiguard_test.countingLimiter"}},
		"a nil pointer as the Budget":  {aiguard.Config{Budget: (*budget.Budget)(nil)}, []string{"Config.Budget is a nil *budget.Budget", "or nil for none"}},
		"tokens without a counter":     {aiguard.Config{MaxPromptTokens: 5}, []string{"Config.MaxPromptTokens is 5", "CountTokens"}},
		"tokens with a counter":        {aiguard.Config{MaxPromptTokens: 5, CountTokens: countBytes}, nil},
		"a counter that stops early": {aiguard.Config{MaxPromptTokens: 500, CountTokens: func(_, text string) (int, error) { return min(len(text), 101), nil }},
			[]string{"Config.CountTokens is a function that counts 101 tokens", "MaxPromptTokens (500)"}},
		"an estimate":                   {aiguard.Config{MaxPromptTokens: 500, CountTokens: func(_, text string) (int, error) { return len(text) / 4, nil }}, nil},
		"a counter of words":            {aiguard.Config{MaxPromptTokens: 500, CountTokens: func(_, text string) (int, error) { return len(strings.Fields(text)), nil }}, nil},
		"more tokens than New counts":   {aiguard.Config{MaxPromptTokens: math.MaxInt32, CountTokens: countBytes}, nil},
		"a counter that knows no model": {aiguard.Config{MaxPromptTokens: 500, CountTokens: func(string, string) (int, error) { return 0, errors.ErrUnsupported }}, nil},
		"tokens off":                    {aiguard.Config{MaxPromptTokens: aiguard.Off}, nil},
		"a counter alone":               {aiguard.Config{CountTokens: countBytes}, nil},
		"min above max":                 {aiguard.Config{MinConcurrent: 9, MaxConcurrent: 8}, []string{"Config.MinConcurrent is 9", "MaxConcurrent (8)"}},
		"min above the default max":     {aiguard.Config{MinConcurrent: 6}, []string{"Config.MinConcurrent is 6", "MaxConcurrent (5)"}},
		"min without a max":             {aiguard.Config{MinConcurrent: 1, MaxConcurrent: aiguard.Off}, []string{"Config.MinConcurrent is 1", "MaxConcurrent (-1)"}},
		"min beside a limiter":          {aiguard.Config{MinConcurrent: 1, Limiter: noLimit{}}, []string{"Config.MinConcurrent is 1", "Limiter"}},
		"min equal to max":              {aiguard.Config{MinConcurrent: 8, MaxConcurrent: 8}, nil},
		"min off":                       {aiguard.Config{MinConcurrent: aiguard.Off}, nil},
		"base above max":                {aiguard.Config{Retry: aiguard.Retry{BaseDelay: 3 * time.Second, MaxDelay: 2 * time.Second}}, []string{"Config.Retry.BaseDelay is 3s", "Retry.MaxDelay", "2s"}},
		"base equal to max":             {aiguard.Config{Retry: aiguard.Retry{BaseDelay: time.Second, MaxDelay: time.Second}}, nil},
		"base above the default max":    {aiguard.Config{Retry: aiguard.Retry{BaseDelay: time.Minute}}, nil},
		"max below the default base":    {aiguard.Config{Retry: aiguard.Retry{MaxDelay: time.Millisecond}}, nil},
		"base above a max that is off":  {aiguard.Config{Retry: aiguard.Retry{BaseDelay: time.Hour, MaxDelay: aiguard.Off}}, nil},
		"budget NaN":                    {aiguard.Config{Retry: aiguard.Retry{Budget: math.NaN()}}, []string{"Config.Retry.Budget is NaN"}},
		"budget +Inf":                   {aiguard.Config{Retry: aiguard.Retry{Budget: math.Inf(1)}}, []string{"Config.Retry.Budget is +Inf"}},
		"budget -Inf":                   {aiguard.Config{Retry: aiguard.Retry{Budget: math.Inf(-1)}}, []string{"Config.Retry.Budget is -Inf"}},
		"budget -0.5":                   {aiguard.Config{Retry: aiguard.Retry{Budget: -0.5}}, []string{"Config.Retry.Budget is -0.5"}},
		"budget 1":                      {aiguard.Config{Retry: aiguard.Retry{Budget: 1}}, nil},
		"nil middleware":                {aiguard.Config{Middleware: []aiguard.Middleware{pass, nil}}, []string{"Config.Middleware[1] is nil"}},
		"middleware":                    {aiguard.Config{Middleware: []aiguard.Middleware{pass}}, nil},
		"hedging beside a limiter":      {aiguard.Config{Hedge: aiguard.Hedge{Quantile: 0.95}, Limiter: noLimit{}}, []string{"Config.Hedge.Quantile is 0.95", "Limiter"}},
		"hedging of everything":         {aiguard.Config{Hedge: aiguard.Hedge{Quantile: 1}}, []string{"Config.Hedge.Quantile is 1", "below 1"}},
		"hedging below zero":            {aiguard.Config{Hedge: aiguard.Hedge{Quantile: -1}}, []string{"Config.Hedge.Quantile is -1", "below 1"}},
		"hedging NaN":                   {aiguard.Config{Hedge: aiguard.Hedge{Quantile: math.NaN()}}, []string{"Config.Hedge.Quantile is NaN"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := aiguard.New(c.cfg)
			if c.want == nil {
				require.NoError(t, err)
				return
			}
			require.Error(t, err)
			for _, part := range c.want {
				assert.Contains(t, err.Error(), part)
			}
			assert.Contains(t, err.Error(), "; want ")
		})
	}
}

// A config is read once: who reuses the variable for another guard must not reach into the first.
func TestLaterChangesToTheCallersConfigChangeNothing(t *testing.T) {
	calls := 0
	count := func(ctx context.Context, _ aiguard.Call, next func(context.Context) error) error {
		calls++
		return next(ctx)
	}
	cfg := aiguard.Config{Middleware: []aiguard.Middleware{count}}
	g := newGuard(t, cfg)
	cfg.Middleware[0] = func(context.Context, aiguard.Call, func(context.Context) error) error {
		return errors.New("not this one")
	}
	require.NoError(t, do(t.Context(), g, func(context.Context) error { return nil }))
	assert.Equal(t, 1, calls)
}

func TestMemoryLimitFollowsGOMEMLIMITUnlessGiven(t *testing.T) {
	before := debug.SetMemoryLimit(-1)
	defer debug.SetMemoryLimit(before)
	debug.SetMemoryLimit(math.MaxInt64) // as when it is not set
	assert.Zero(t, newGuard(t, aiguard.Config{}).Stats().MemoryLimit)
	debug.SetMemoryLimit(1 << 40)
	assert.InDelta(t, 0.9*(1<<40), newGuard(t, aiguard.Config{}).Stats().MemoryLimit, 1)
	assert.Zero(t, newGuard(t, aiguard.Config{MemoryLimit: aiguard.Off}).Stats().MemoryLimit)
	assert.EqualValues(t, 1<<30, newGuard(t, aiguard.Config{MemoryLimit: 1 << 30}).Stats().MemoryLimit)
}

// panicOf returns what f panics with.
func panicOf(f func()) (v any) {
	defer func() { v = recover() }()
	f()
	return nil
}

func TestWithPanicsOnWhatCanOnlyBeAMistake(t *testing.T) {
	g := newGuard(t, aiguard.Config{})
	c := g.Client(openai.DefaultConfig("k"))
	for field, bad := range map[string][]aiguard.Call{
		"Weight":   {{Weight: -1}, {Weight: math.MinInt64}},
		"Timeout":  {{Timeout: -2}, {Timeout: -time.Second}},
		"Attempts": {{Attempts: -2}, {Attempts: math.MinInt}},
	} {
		for _, call := range bad {
			for _, f := range []func(){func() { g.With(call) }, func() { c.With(call) }} {
				msg, _ := panicOf(f).(string)
				assert.Regexp(t, `^aiguard: With: Call\.`+field+` is -.*; want `, msg)
			}
		}
	}
	for _, call := range []aiguard.Call{{}, {Timeout: aiguard.Off}, {Attempts: aiguard.Off}, {Weight: 1000, Timeout: 1, Attempts: 1, Op: "o", Model: "m"}} {
		assert.NotPanics(t, func() { g.With(call) }, "%+v", call)
	}
}

func TestMisusePanicsWithWordsInsteadOfANilDereference(t *testing.T) {
	g := newGuard(t, aiguard.Config{})
	c := g.Client(openai.DefaultConfig("k"))
	ctx := t.Context()
	var none context.Context
	ok := func(context.Context) error { return nil }
	value := func(context.Context) (int, error) { return 0, nil }

	guards := map[string]*aiguard.Guard{"nil Guard": nil, "zero Guard": new(aiguard.Guard)}
	for name, g := range guards {
		for method, f := range map[string]func(){
			"Do":          func() { _, _ = aiguard.Do(ctx, g, value) },
			"RunTask":     func() { _ = g.RunTask(ctx, ok) },
			"Stats":       func() { g.Stats() },
			"Transport":   func() { g.Transport(nil) },
			"Client":      func() { g.Client(openai.DefaultConfig("k")) },
			"With":        func() { g.With(aiguard.Call{}) },
			"CheckPrompt": func() { _ = g.CheckPrompt("m", "text") },
			"Shutdown":    func() { _ = g.Shutdown(ctx) },
			"Close":       func() { _ = g.Close() },
		} {
			assert.Equal(t, "aiguard: "+method+": nil Guard; make it with aiguard.New", fmt.Sprint(panicOf(f)), "%s on a %s", method, name)
		}
	}
	for want, f := range map[string]func(){
		"aiguard: Do: nil context":       func() { _, _ = aiguard.Do(none, g, value) },
		"aiguard: Do: nil fn":            func() { _, _ = aiguard.Do[int](ctx, g, nil) },
		"aiguard: RunTask: nil context":  func() { _ = g.RunTask(none, ok) },
		"aiguard: RunTask: nil fn":       func() { _ = g.RunTask(ctx, nil) },
		"aiguard: Shutdown: nil context": func() { _ = g.Shutdown(none) },
		"aiguard: Client: nil context":   func() { _, _ = c.CreateChatCompletion(none, chatRequest) },
		"aiguard: Fallback: nil context": func() { _, _ = aiguard.Fallback(none, value) },
		"aiguard: Fallback: no alternat": func() { _, _ = aiguard.Fallback[int](ctx) },
		"aiguard: Fallback: alternative": func() { _, _ = aiguard.Fallback[int](ctx, nil) },
		"aiguard: CreateEmbeddings: nil": func() { _, _ = c.CreateEmbeddings(ctx, nil) },
	} {
		got := fmt.Sprint(panicOf(f))
		assert.True(t, strings.HasPrefix(got, want), "want %q, got %q", want, got)
	}
	for name, f := range map[string]func(){ // the other methods of Client
		"CreateChatCompletionStream": func() { _, _ = c.CreateChatCompletionStream(none, chatRequest) },
		"CreateCompletion":           func() { _, _ = c.CreateCompletion(none, openai.CompletionRequest{}) },
		"CreateCompletionStream":     func() { _, _ = c.CreateCompletionStream(none, openai.CompletionRequest{}) },
		"CreateResponse":             func() { _, _ = c.CreateResponse(none, openai.CreateResponseRequest{}) },
		"CreateResponseStream":       func() { _, _ = c.CreateResponseStream(none, openai.CreateResponseRequest{}) },
		"CreateEmbeddings":           func() { _, _ = c.CreateEmbeddings(none, openai.EmbeddingRequest{}) },
	} {
		assert.Equal(t, "aiguard: Client: nil context", fmt.Sprint(panicOf(f)), name)
	}
	st := g.Stats()
	assert.Zero(t, st.Calls, "a mistake is no call")
}

type noLimit struct{}

func (noLimit) Acquire(context.Context, aiguard.Call) (func(), error) { return func() {}, nil }
