package aiguard

import (
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

const envPrefix = "AIGUARD_"

// testEnv are the variables that only tests read.
func testEnv(name string) bool {
	switch name {
	case "STRESS", "CHAOS", "CHAOS_SEED", "MEMORY_CHILD":
		return true
	}
	return false
}

// FromEnv returns the defaults with the AIGUARD_ variables of the environment over them:
//
//	AIGUARD_CALL_TIMEOUT, AIGUARD_STREAM_IDLE_TIMEOUT, AIGUARD_STREAM_TIMEOUT, AIGUARD_QUEUE_TIMEOUT,
//	AIGUARD_TOTAL_TIMEOUT, AIGUARD_TASK_TIMEOUT                        a duration such as 30s, or off
//	AIGUARD_MAX_CONCURRENT, AIGUARD_MAX_QUEUE, AIGUARD_MAX_PROMPT_CHARS,
//	AIGUARD_MAX_PROMPT_TOKENS, AIGUARD_MAX_OUTPUT_TOKENS               a number, or off
//	AIGUARD_MAX_REQUEST_BYTES, AIGUARD_MAX_RESPONSE_BYTES,
//	AIGUARD_MEMORY_LIMIT                                               a size such as 32MiB (KiB, MiB, GiB or bytes), or off
//	AIGUARD_RETRY_MAX_ATTEMPTS                                         a number, or off
//	AIGUARD_RETRY_BASE_DELAY, AIGUARD_RETRY_MAX_DELAY                  a duration, or off
//	AIGUARD_RETRY_TIMEOUTS                                             true or false
//	AIGUARD_RETRY_BUDGET                                               a fraction such as 0.1, or off
//
// An empty variable counts as not set. The error joins all mistakes, each with the variable, its value and what is
// allowed; a variable with the prefix that is none of these is a mistake too, of which only the name is told.
func FromEnv() (Config, error) { return fromEnv(os.Environ()) }

func fromEnv(environ []string) (Config, error) {
	var cfg Config
	settings := cfg.settings()
	var mistakes []error
	environ = slices.Sorted(slices.Values(environ))
	for _, entry := range environ {
		variable, value, _ := strings.Cut(entry, "=")
		name, ours := strings.CutPrefix(variable, envPrefix)
		if !ours || testEnv(name) {
			continue
		}
		set, known := settings[name]
		switch {
		case !known:
			mistakes = append(mistakes, fmt.Errorf("aiguard: %s is no variable of aiguard; see FromEnv", variable))
		case strings.TrimSpace(value) == "":
		default:
			if want := set(strings.TrimSpace(value)); want != "" {
				mistakes = append(mistakes, fmt.Errorf("aiguard: %s is %q; want %s", variable, value, want))
			}
		}
	}
	if len(mistakes) > 0 {
		return Config{}, errors.Join(mistakes...)
	}
	cfg.setDefaults()
	return cfg, nil
}

// setter sets a field from a text, or says what it wants instead.
type setter func(value string) (want string)

// settings are the fields that can come from the environment, by the name of their variable without the prefix.
func (c *Config) settings() map[string]setter {
	return map[string]setter{
		"CALL_TIMEOUT":        durationSetting(&c.CallTimeout),
		"STREAM_IDLE_TIMEOUT": durationSetting(&c.StreamIdleTimeout),
		"STREAM_TIMEOUT":      durationSetting(&c.StreamTimeout),
		"QUEUE_TIMEOUT":       durationSetting(&c.QueueTimeout),
		"TOTAL_TIMEOUT":       durationSetting(&c.TotalTimeout),
		"TASK_TIMEOUT":        durationSetting(&c.TaskTimeout),
		"MAX_CONCURRENT":      numberSetting(&c.MaxConcurrent),
		"MAX_QUEUE":           numberSetting(&c.MaxQueue),
		"MAX_PROMPT_CHARS":    numberSetting(&c.MaxPromptChars),
		"MAX_PROMPT_TOKENS":   numberSetting(&c.MaxPromptTokens),
		"MAX_OUTPUT_TOKENS":   numberSetting(&c.MaxOutputTokens),
		"MAX_REQUEST_BYTES":   sizeSetting(&c.MaxRequestBytes),
		"MAX_RESPONSE_BYTES":  sizeSetting(&c.MaxResponseBytes),
		"MEMORY_LIMIT":        sizeSetting(&c.MemoryLimit),
		"RETRY_MAX_ATTEMPTS":  numberSetting(&c.Retry.MaxAttempts),
		"RETRY_BASE_DELAY":    durationSetting(&c.Retry.BaseDelay),
		"RETRY_MAX_DELAY":     durationSetting(&c.Retry.MaxDelay),
		"RETRY_TIMEOUTS":      boolSetting(&c.Retry.Timeouts),
		"RETRY_BUDGET":        fractionSetting(&c.Retry.Budget),
	}
}

func isOff(value string) bool { return strings.EqualFold(value, "off") }

func durationSetting(field *time.Duration) setter {
	return func(value string) string {
		d, err := time.ParseDuration(value)
		switch {
		case isOff(value):
			*field = Off
		case err != nil || d <= 0:
			return "a positive duration such as 30s or 2m, or off"
		default:
			*field = d
		}
		return ""
	}
}

func numberSetting[T int | int64](field *T) setter {
	return func(value string) string {
		n, err := strconv.ParseInt(value, 10, 64)
		switch {
		case isOff(value):
			*field = Off
		case err != nil || n <= 0 || int64(T(n)) != n:
			return "a positive whole number, or off"
		default:
			*field = T(n)
		}
		return ""
	}
}

func sizeSetting(field *int64) setter {
	return func(value string) string {
		if isOff(value) {
			*field = Off
			return ""
		}
		digits, unit := value, int64(1)
		for suffix, size := range map[string]int64{"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30} {
			if rest, ok := strings.CutSuffix(value, suffix); ok {
				digits, unit = strings.TrimSpace(rest), size
			}
		}
		n, err := strconv.ParseInt(digits, 10, 64)
		if err != nil || n <= 0 || n > math.MaxInt64/unit {
			return "a size such as 32MiB (KiB, MiB, GiB, or a number of bytes), or off"
		}
		*field = n * unit
		return ""
	}
}

func boolSetting(field *bool) setter {
	return func(value string) string {
		b, err := strconv.ParseBool(value)
		if err != nil {
			return "true or false"
		}
		*field = b
		return ""
	}
}

func fractionSetting(field *float64) setter {
	return func(value string) string {
		f, err := strconv.ParseFloat(value, 64)
		switch {
		case isOff(value):
			*field = Off
		case err != nil || !(f > 0) || f > maxBudget:
			return "a positive fraction such as 0.1, or off"
		default:
			*field = f
		}
		return ""
	}
}
