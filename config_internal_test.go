package aiguard

import (
	"reflect"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The numbers are written out: a changed constant must not change its own test.
func TestZeroConfigHasTheDocumentedDefaults(t *testing.T) {
	g, err := New(Config{})
	require.NoError(t, err)
	assert.Equal(t, Config{
		CallTimeout:       30 * time.Second,
		StreamIdleTimeout: 30 * time.Second,
		StreamTimeout:     10 * time.Minute,
		QueueTimeout:      30 * time.Second,
		TotalTimeout:      2 * time.Minute,
		TaskTimeout:       2 * time.Minute,
		MaxConcurrent:     5,
		MinConcurrent:     1,
		MaxBackground:     4,
		MaxQueue:          100,
		RequestsPerMinute: Off,
		TokensPerMinute:   Off,
		MaxPromptChars:    20_000,
		MaxRequestBytes:   33_554_432,
		MaxResponseBytes:  33_554_432,
		MemoryLimit:       Off,
		MaxEventBytes:     16_777_216,
		Retry:             Retry{MaxAttempts: 3, BaseDelay: 500 * time.Millisecond, MaxDelay: 8 * time.Second, Budget: 0.1, Patience: 3 * time.Second},
	}, g.current.Load().cfg)
}

func TestOffAndOwnValuesAreNotReplacedByDefaults(t *testing.T) {
	for _, value := range []int64{Off, 1} {
		cfg := Config{CountTokens: func(_, text string) (int, error) { return len(text), nil }}
		set := func(v reflect.Value) {
			switch {
			case v.CanInt():
				v.SetInt(value)
			case v.CanFloat():
				v.SetFloat(float64(value))
			}
		}
		for _, s := range []reflect.Value{reflect.ValueOf(&cfg).Elem(), reflect.ValueOf(&cfg.Retry).Elem()} {
			for i := range s.NumField() {
				set(s.Field(i))
			}
		}
		g, err := New(cfg)
		require.NoError(t, err)
		got, want := g.current.Load().cfg, cfg
		got.CountTokens, want.CountTokens = nil, nil // functions don't compare
		assert.Equal(t, want, got)
	}
}

// Half a setting must not make New fail on the default of the other half.
func TestRetryDelaysFitTogetherWhenOnlyOneIsGiven(t *testing.T) {
	for _, c := range []struct{ given, want Retry }{
		{Retry{BaseDelay: time.Minute}, Retry{BaseDelay: time.Minute, MaxDelay: time.Minute}},
		{Retry{BaseDelay: time.Second}, Retry{BaseDelay: time.Second, MaxDelay: 8 * time.Second}},
		{Retry{MaxDelay: time.Millisecond}, Retry{BaseDelay: time.Millisecond, MaxDelay: time.Millisecond}},
		{Retry{MaxDelay: time.Hour}, Retry{BaseDelay: 500 * time.Millisecond, MaxDelay: time.Hour}},
		{Retry{MaxDelay: Off}, Retry{BaseDelay: 500 * time.Millisecond, MaxDelay: Off}},
		{Retry{BaseDelay: Off}, Retry{BaseDelay: Off, MaxDelay: 8 * time.Second}},
	} {
		g, err := New(Config{Retry: c.given})
		require.NoError(t, err)
		assert.Equal(t, c.want.BaseDelay, g.current.Load().cfg.Retry.BaseDelay, "%+v", c.given)
		assert.Equal(t, c.want.MaxDelay, g.current.Load().cfg.Retry.MaxDelay, "%+v", c.given)
	}
}
