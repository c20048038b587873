package aiguard

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// setter sets a field from a text. If the text is invalid, it returns a description of the allowed values.
type setter func(value string) (want string)

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

// secondsSetting accepts a plain number as seconds.
func secondsSetting(field *time.Duration) setter {
	return bareSetting("s", durationSetting(field), "a positive number of seconds, a duration such as 60s or 1m, or off")
}

// megabytesSetting accepts a plain number as MiB, as the name of its variable says.
func megabytesSetting(field *int64) setter {
	return bareSetting("MiB", sizeSetting(field), "a positive number of MiB, a size such as 512MiB or 2GiB, or off")
}

// bareSetting wraps set to accept a plain number in the given unit.
func bareSetting(unit string, set setter, want string) setter {
	return func(value string) string {
		if _, err := strconv.ParseUint(value, 10, 64); err == nil {
			value += unit
		}
		if set(value) != "" {
			return want
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

func quantileSetting(field *float64) setter {
	return func(value string) string {
		f, err := strconv.ParseFloat(value, 64)
		switch {
		case isOff(value):
			*field = 0
		case err != nil || !(f > 0 && f < 1):
			return "a fraction below 1 such as 0.95, or off"
		default:
			*field = f
		}
		return ""
	}
}

func headerSetting(field *string) setter {
	return func(value string) string {
		if !validHeader(value) {
			return "the name of an HTTP header"
		}
		*field = value
		return ""
	}
}

// modelsSetting reads "model:name=value,name=value;model:…".
func modelsSetting(field *map[string]Call) setter {
	return func(value string) string {
		all := make(map[string]Call)
		for entry := range strings.SplitSeq(value, ";") {
			if entry = strings.TrimSpace(entry); entry == "" {
				continue
			}
			colon := strings.LastIndexByte(entry, ':')
			if colon <= 0 {
				return fmt.Sprintf("model:setting=value,…;model:…, not %q", entry)
			}
			name := strings.TrimSpace(entry[:colon])
			if _, twice := all[name]; twice {
				return fmt.Sprintf("the model %q once", name)
			}
			var call Call
			var set []string
			for text := range strings.SplitSeq(entry[colon+1:], ",") {
				setting, want := call.set(text)
				if slices.Contains(set, setting) {
					want = fmt.Sprintf("%s once", setting)
				}
				if want != "" {
					return fmt.Sprintf("for %q %s", name, want)
				}
				set = append(set, setting)
			}
			all[name] = call
		}
		*field = all
		return ""
	}
}

// set sets a field of a model from a text such as "timeout=5m", and returns the name of the setting. If the text is
// invalid, it also returns a description of the allowed values.
func (c *Call) set(text string) (name, want string) {
	name, value, _ := strings.Cut(strings.TrimSpace(text), "=")
	name = strings.TrimSpace(name)
	settings := map[string]setter{
		"timeout":             durationSetting(&c.Timeout),
		"total_timeout":       durationSetting(&c.TotalTimeout),
		"stream_idle_timeout": durationSetting(&c.StreamIdleTimeout),
		"weight":              weightSetting(&c.Weight),
		"attempts":            numberSetting(&c.Attempts),
		"max_prompt_chars":    numberSetting(&c.MaxPromptChars),
		"max_output_tokens":   numberSetting(&c.MaxOutputTokens),
		"ends_without_finish": boolSetting(&c.EndsWithoutFinish),
		"priority":            prioritySetting(&c.Priority),
	}
	set, ok := settings[name]
	if !ok {
		return name, fmt.Sprintf("one of %s, not %q", strings.Join(slices.Sorted(maps.Keys(settings)), ", "), name)
	}
	if want := set(strings.TrimSpace(value)); want != "" {
		return name, fmt.Sprintf("%s to be %s, not %q", name, want, value)
	}
	return name, ""
}

func weightSetting(field *int64) setter {
	return func(value string) string {
		if isOff(value) || numberSetting(field)(value) != "" {
			return "a positive whole number"
		}
		return ""
	}
}

func prioritySetting(field *Priority) setter {
	return func(value string) string {
		for p := Background; p <= Critical; p++ {
			if strings.EqualFold(value, p.String()) {
				*field = p
				return ""
			}
		}
		return "background, normal or critical"
	}
}

func fractionSetting(field *float64) setter {
	return func(value string) string {
		f, err := strconv.ParseFloat(value, 64)
		switch {
		case isOff(value):
			*field = Off
		case err != nil || !(f > 0) || f > maxBudget:
			return fmt.Sprintf("a positive fraction such as 0.1, at most %d, or off", maxBudget)
		default:
			*field = f
		}
		return ""
	}
}
