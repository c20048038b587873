package aiguard

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestFromEnvIsTheDefaultsWithoutVariables(t *testing.T) {
	cfg, err := fromEnv([]string{"PATH=/bin", "AIGUARD_STRESS=30s", "AIGUARD_CALL_TIMEOUT=", "AIGUARDIAN=x"})
	require.NoError(t, err)
	var defaults Config
	defaults.setDefaults()
	require.Equal(t, defaults, cfg)
	_, err = New(cfg)
	require.NoError(t, err)
}

func TestFromEnvReadsEveryVariable(t *testing.T) {
	for _, entry := range []string{
		"CALL_TIMEOUT=5s", "STREAM_IDLE_TIMEOUT=6s", "STREAM_TIMEOUT=1h", "QUEUE_TIMEOUT=off", "TOTAL_TIMEOUT=1m30s", "TASK_TIMEOUT=3m",
		"MAX_CONCURRENT=7", "MAX_QUEUE=OFF", "MAX_PROMPT_CHARS=100", "MAX_PROMPT_TOKENS=50", "MAX_OUTPUT_TOKENS=60",
		"MAX_REQUEST_BYTES=64KiB", "MAX_RESPONSE_BYTES=1 MiB", "MEMORY_LIMIT=2GiB",
		"RETRY_MAX_ATTEMPTS=1", "RETRY_BASE_DELAY=1ms", "RETRY_MAX_DELAY=2s", "RETRY_TIMEOUTS=true", "RETRY_BUDGET=0.5",
	} {
		t.Setenv("AIGUARD_"+strings.SplitN(entry, "=", 2)[0], strings.SplitN(entry, "=", 2)[1])
	}
	cfg, err := FromEnv()
	require.NoError(t, err)
	require.Equal(t, Config{
		CallTimeout: 5 * time.Second, StreamIdleTimeout: 6 * time.Second, StreamTimeout: time.Hour, QueueTimeout: Off,
		TotalTimeout: 90 * time.Second, TaskTimeout: 3 * time.Minute, MaxConcurrent: 7, MaxQueue: Off, MaxPromptChars: 100,
		MaxPromptTokens: 50, MaxOutputTokens: 60, MaxRequestBytes: 64 << 10, MaxResponseBytes: 1 << 20, MemoryLimit: 2 << 30,
		Retry: Retry{MaxAttempts: 1, BaseDelay: time.Millisecond, MaxDelay: 2 * time.Second, Timeouts: true, Budget: 0.5},
	}, cfg)
}

// A field that a text can express has a variable: a new one cannot be forgotten.
func TestEveryPlainFieldHasAVariable(t *testing.T) {
	var cfg Config
	fields := 0
	for _, v := range []reflect.Value{reflect.ValueOf(cfg), reflect.ValueOf(cfg.Retry)} {
		for i := range v.NumField() {
			switch v.Field(i).Kind() {
			case reflect.Int, reflect.Int64, reflect.Bool, reflect.Float64:
				fields++
			}
		}
	}
	require.Len(t, cfg.settings(), fields)
}

func TestFromEnvReportsAllMistakesTogether(t *testing.T) {
	_, err := fromEnv([]string{"AIGUARD_CALL_TIMEOUT=30", "AIGUARD_MAX_QUEUE=-1", "AIGUARD_MEMORY_LIMIT=1TB", "AIGUARD_RETRY_BUDGET=NaN",
		"AIGUARD_RETRY_TIMEOUTS=maybe", "AIGUARD_MAX_CONCURRENT=0", "AIGUARD_API_KEY=sk-secret", "AIGUARD_STREAM_TIMEOUT=1h"})
	require.Error(t, err)
	lines := strings.Split(err.Error(), "\n")
	require.Len(t, lines, 7)
	for i, want := range []string{
		"AIGUARD_API_KEY is no variable", `AIGUARD_CALL_TIMEOUT is "30"; want a positive duration`, `AIGUARD_MAX_CONCURRENT is "0"; want a positive whole number`,
		`AIGUARD_MAX_QUEUE is "-1"`, `AIGUARD_MEMORY_LIMIT is "1TB"; want a size`, `AIGUARD_RETRY_BUDGET is "NaN"`, `AIGUARD_RETRY_TIMEOUTS is "maybe"; want true or false`,
	} {
		require.Contains(t, lines[i], want)
	}
	require.NotContains(t, err.Error(), "sk-secret", "a misplaced key is not repeated")
}

// Whatever a variable says, the outcome is a mistake that names it or a Config that New takes.
func FuzzFromEnv(f *testing.F) {
	for name := range (&Config{}).settings() {
		for _, value := range []string{"", "off", "0", "1", "-1", "30s", "1e9", "9223372036854775807", "9223372036854775807GiB", "NaN", "0.1", "true", "1MiB"} {
			f.Add(name, value)
		}
	}
	f.Fuzz(func(t *testing.T, name, value string) {
		cfg, err := fromEnv([]string{"AIGUARD_" + name + "=" + value})
		if err != nil {
			require.Contains(t, err.Error(), "AIGUARD_")
			return
		}
		cfg.CountTokens = func(string, string) (int, error) { return 0, nil }
		if strings.Contains(name, "_DELAY") {
			cfg.Retry.BaseDelay, cfg.Retry.MaxDelay = 0, 0 // each is right by itself; New checks the two together
		}
		_, err = New(cfg)
		require.NoError(t, err)
	})
}
