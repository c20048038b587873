package aiguard

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	envPrefix   = "AIGUARD_"
	aliasesName = "ALIASES" // of the variable that says whether names without the prefix are read
)

// testEnv are the variables that only tests read.
func testEnv(name string) bool {
	switch name {
	case "STRESS", "CHAOS", "CHAOS_SEED", "MEMORY_CHILD":
		return true
	}
	return false
}

// FromEnv returns the defaults with the AIGUARD_ variables of the environment over them. TotalTimeout, MinConcurrent and
// MaxBackground, whose defaults depend on other fields, stay zero where nothing is set:
//
//	AIGUARD_CALL_TIMEOUT, AIGUARD_STREAM_IDLE_TIMEOUT, AIGUARD_STREAM_TIMEOUT, AIGUARD_QUEUE_TIMEOUT,
//	AIGUARD_TOTAL_TIMEOUT, AIGUARD_TASK_TIMEOUT                        a duration such as 30s, or off
//	AIGUARD_MAX_CONCURRENT, AIGUARD_MIN_CONCURRENT, AIGUARD_MAX_BACKGROUND, AIGUARD_MAX_QUEUE,
//	AIGUARD_REQUESTS_PER_MINUTE, AIGUARD_TOKENS_PER_MINUTE, AIGUARD_MAX_PROMPT_CHARS,
//	AIGUARD_MAX_PROMPT_TOKENS, AIGUARD_MAX_OUTPUT_TOKENS               a number, or off
//	AIGUARD_MAX_REQUEST_BYTES, AIGUARD_MAX_RESPONSE_BYTES, AIGUARD_MAX_EVENT_BYTES,
//	AIGUARD_MEMORY_LIMIT                                               a size such as 32MiB (KiB, MiB, GiB or bytes), or off
//	AIGUARD_RETRY_MAX_ATTEMPTS                                         a number, or off
//	AIGUARD_RETRY_BASE_DELAY, AIGUARD_RETRY_MAX_DELAY,
//	AIGUARD_RETRY_PATIENCE                                             a duration, or off
//	AIGUARD_RETRY_TIMEOUTS                                             true or false
//	AIGUARD_RETRY_BUDGET                                               a fraction such as 0.1, or off
//	AIGUARD_FAILURES_AS_RESPONSES                                      true or false
//	AIGUARD_HEDGE_QUANTILE                                             a fraction such as 0.95, or off
//	AIGUARD_DEADLINE_HEADER                                            the name of a header
//	AIGUARD_MODELS                                                     settings per model, such as
//	                                                                   o3*:timeout=5m,weight=2;gpt-4o-mini:attempts=1
//
// AIGUARD_MODELS separates models by semicolons and a model's settings by commas. A model's name, or a prefix that ends in
// "*", ends at the last colon, so that it may have colons itself. The settings are timeout, total_timeout,
// stream_idle_timeout, weight, attempts, max_prompt_chars, max_output_tokens, priority (background, normal or critical) and
// ends_without_finish (true or false), as in Call.
//
// Names that services have for the same are read where the AIGUARD_ variable is not set:
//
//	MAX_CONCURRENT_AI_REQUESTS    AIGUARD_MAX_CONCURRENT
//	AI_MODEL_MAX_TOKENS           AIGUARD_MAX_OUTPUT_TOKENS
//	WORKER_TIME_LIMIT             AIGUARD_TOTAL_TIMEOUT; whole seconds such as 60, too
//	WORKER_MEMORY_LIMIT_MB        AIGUARD_MEMORY_LIMIT; a number is one of MiB
//
// New logs which of these names were read. AIGUARD_ALIASES=false keeps FromEnv from reading them.
//
// An empty variable counts as not set. The error joins all mistakes, each with the variable, its value and what is
// allowed; a variable with the prefix that is none of these is a mistake too, of which only the name is told.
// AIGUARD_MAX_PROMPT_TOKENS needs Config.CountTokens, which the caller sets.
func FromEnv() (Config, error) { return fromEnv(os.Environ()) }

func fromEnv(environ []string) (Config, error) {
	var cfg Config
	settings := cfg.settings()
	names := []string{aliasesName}
	for _, s := range settings {
		names = append(names, s.name)
	}
	values := make(map[string]string)
	var mistakes []error
	for _, entry := range slices.Sorted(slices.Values(environ)) {
		variable, value, _ := strings.Cut(entry, "=")
		name, ours := strings.CutPrefix(variable, envPrefix)
		if ours && !testEnv(name) && !slices.Contains(names, name) {
			mistakes = append(mistakes, fmt.Errorf("aiguard: %s is no variable of aiguard; %s", variable, suggestion(name, names)))
		}
		values[variable] = strings.TrimSpace(value)
	}
	read := func(variable string, set setter) bool {
		value := values[variable]
		if value == "" {
			return false
		}
		if want := set(value); want != "" {
			mistakes = append(mistakes, fmt.Errorf("aiguard: %s is %q; want %s", variable, value, want))
		}
		return true
	}
	aliases := true
	read(envPrefix+aliasesName, boolSetting(&aliases))
	for _, s := range settings {
		if !read(envPrefix+s.name, s.set) && aliases && s.alias != "" && read(s.alias, s.setAlias) {
			cfg.aliases = append(cfg.aliases, s.alias)
		}
	}
	if len(mistakes) == 0 { // what does not go together
		if err := cfg.validateWithCounter(); err != nil {
			return Config{}, errors.New(inEnvironment(err.Error(), settings))
		}
	}
	if len(mistakes) > 0 {
		return Config{}, errors.Join(mistakes...)
	}
	cfg.setIndependentDefaults()
	return cfg, nil
}

// tellAliases logs, once, which names that are not the guard's own its settings have come from.
func (c *Config) tellAliases() {
	if c.aliases != nil && c.Logger != nil {
		c.Logger.Info("aiguard: settings read from variables without the prefix "+envPrefix, slog.Any("variables", c.aliases))
	}
	c.aliases = nil
}

// validateWithCounter is validate for a Config whose CountTokens comes from the program.
func (c Config) validateWithCounter() error {
	c.CountTokens = func(_, text string) (int, error) { return len(text), nil }
	return c.validate()
}

// setIndependentDefaults is setDefaults without the defaults that depend on other fields: a program may still set those.
func (c *Config) setIndependentDefaults() {
	own := *c
	c.setDefaults()
	c.TotalTimeout, c.MinConcurrent, c.MaxBackground = own.TotalTimeout, own.MinConcurrent, own.MaxBackground
}

// inEnvironment puts variables in the place of fields.
func inEnvironment(text string, settings []setting) string {
	for _, s := range settings {
		text = strings.ReplaceAll(text, "Config."+s.field+" ", envPrefix+s.name+" ")
		text = strings.ReplaceAll(text, "at most "+s.field+" ", "at most "+envPrefix+s.name+" ")
		text = strings.ReplaceAll(text, "at least "+s.field+" ", "at least "+envPrefix+s.name+" ")
	}
	return strings.ReplaceAll(text, "Config.Models[", envPrefix+"MODELS[")
}

// setting is a field that can come from the environment: its variable without the prefix and, if services have one, their
// own name for it.
type setting struct {
	field string
	name  string
	set   setter

	alias    string
	setAlias setter
}

// setter sets a field from a text, or says what it wants instead.
type setter func(value string) (want string)

func (c *Config) settings() []setting {
	return []setting{
		{field: "CallTimeout", name: "CALL_TIMEOUT", set: durationSetting(&c.CallTimeout)},
		{field: "StreamIdleTimeout", name: "STREAM_IDLE_TIMEOUT", set: durationSetting(&c.StreamIdleTimeout)},
		{field: "StreamTimeout", name: "STREAM_TIMEOUT", set: durationSetting(&c.StreamTimeout)},
		{field: "QueueTimeout", name: "QUEUE_TIMEOUT", set: durationSetting(&c.QueueTimeout)},
		{field: "TotalTimeout", name: "TOTAL_TIMEOUT", set: durationSetting(&c.TotalTimeout),
			alias: "WORKER_TIME_LIMIT", setAlias: secondsSetting(&c.TotalTimeout)},
		{field: "TaskTimeout", name: "TASK_TIMEOUT", set: durationSetting(&c.TaskTimeout)},
		{field: "MaxConcurrent", name: "MAX_CONCURRENT", set: numberSetting(&c.MaxConcurrent),
			alias: "MAX_CONCURRENT_AI_REQUESTS", setAlias: numberSetting(&c.MaxConcurrent)},
		{field: "MinConcurrent", name: "MIN_CONCURRENT", set: numberSetting(&c.MinConcurrent)},
		{field: "MaxBackground", name: "MAX_BACKGROUND", set: numberSetting(&c.MaxBackground)},
		{field: "MaxQueue", name: "MAX_QUEUE", set: numberSetting(&c.MaxQueue)},
		{field: "RequestsPerMinute", name: "REQUESTS_PER_MINUTE", set: numberSetting(&c.RequestsPerMinute)},
		{field: "TokensPerMinute", name: "TOKENS_PER_MINUTE", set: numberSetting(&c.TokensPerMinute)},
		{field: "MaxPromptChars", name: "MAX_PROMPT_CHARS", set: numberSetting(&c.MaxPromptChars)},
		{field: "MaxPromptTokens", name: "MAX_PROMPT_TOKENS", set: numberSetting(&c.MaxPromptTokens)},
		{field: "MaxOutputTokens", name: "MAX_OUTPUT_TOKENS", set: numberSetting(&c.MaxOutputTokens),
			alias: "AI_MODEL_MAX_TOKENS", setAlias: numberSetting(&c.MaxOutputTokens)},
		{field: "MaxRequestBytes", name: "MAX_REQUEST_BYTES", set: sizeSetting(&c.MaxRequestBytes)},
		{field: "MaxResponseBytes", name: "MAX_RESPONSE_BYTES", set: sizeSetting(&c.MaxResponseBytes)},
		{field: "MaxEventBytes", name: "MAX_EVENT_BYTES", set: sizeSetting(&c.MaxEventBytes)},
		{field: "MemoryLimit", name: "MEMORY_LIMIT", set: sizeSetting(&c.MemoryLimit),
			alias: "WORKER_MEMORY_LIMIT_MB", setAlias: megabytesSetting(&c.MemoryLimit)},
		{field: "Retry.MaxAttempts", name: "RETRY_MAX_ATTEMPTS", set: numberSetting(&c.Retry.MaxAttempts)},
		{field: "Retry.BaseDelay", name: "RETRY_BASE_DELAY", set: durationSetting(&c.Retry.BaseDelay)},
		{field: "Retry.MaxDelay", name: "RETRY_MAX_DELAY", set: durationSetting(&c.Retry.MaxDelay)},
		{field: "FailuresAsResponses", name: "FAILURES_AS_RESPONSES", set: boolSetting(&c.FailuresAsResponses)},
		{field: "Retry.Timeouts", name: "RETRY_TIMEOUTS", set: boolSetting(&c.Retry.Timeouts)},
		{field: "Retry.Budget", name: "RETRY_BUDGET", set: fractionSetting(&c.Retry.Budget)},
		{field: "Retry.Patience", name: "RETRY_PATIENCE", set: durationSetting(&c.Retry.Patience)},
		{field: "Hedge.Quantile", name: "HEDGE_QUANTILE", set: quantileSetting(&c.Hedge.Quantile)},
		{field: "DeadlineHeader", name: "DEADLINE_HEADER", set: headerSetting(&c.DeadlineHeader)},
		{field: "Models", name: "MODELS", set: modelsSetting(&c.Models)},
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

// secondsSetting takes a bare number for seconds, as workers do.
func secondsSetting(field *time.Duration) setter {
	return bareSetting("s", durationSetting(field), "a positive number of seconds, a duration such as 60s or 1m, or off")
}

// megabytesSetting takes a bare number for MiB, as the name of its variable says.
func megabytesSetting(field *int64) setter {
	return bareSetting("MiB", sizeSetting(field), "a positive number of MiB, a size such as 512MiB or 2GiB, or off")
}

// bareSetting is set for a variable in which a bare number is of this unit.
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
				return fmt.Sprintf("model:setting=value,…;model:…, and not %q", entry)
			}
			name := strings.TrimSpace(entry[:colon])
			if _, twice := all[name]; twice {
				return fmt.Sprintf("the model %q once", name)
			}
			var call Call
			for text := range strings.SplitSeq(entry[colon+1:], ",") {
				if want := call.set(text); want != "" {
					return fmt.Sprintf("for %q %s", name, want)
				}
			}
			all[name] = call
		}
		*field = all
		return ""
	}
}

// set sets a field of a model from a text such as "timeout=5m", or says what it wants instead.
func (c *Call) set(text string) (want string) {
	name, value, _ := strings.Cut(strings.TrimSpace(text), "=")
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
	set, ok := settings[strings.TrimSpace(name)]
	if !ok {
		return fmt.Sprintf("one of %s, and not %q", strings.Join(slices.Sorted(maps.Keys(settings)), ", "), name)
	}
	if want := set(strings.TrimSpace(value)); want != "" {
		return fmt.Sprintf("%s to be %s, and not %q", strings.TrimSpace(name), want, value)
	}
	return ""
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
		switch strings.ToLower(value) {
		case "background":
			*field = Background
		case "normal":
			*field = Normal
		case "critical":
			*field = Critical
		default:
			return "background, normal or critical"
		}
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

// suggestion names the variable that somebody may have meant, if one is near.
func suggestion(name string, names []string) string {
	const longest, mistyped = 64, 3 // characters
	if len(name) > longest {
		return "see FromEnv"
	}
	near := slices.MinFunc(names, func(a, b string) int { return distance(name, a) - distance(name, b) })
	if d := distance(name, near); d > mistyped || d > len(near)/3 {
		return "see FromEnv"
	}
	return "did you mean " + envPrefix + near + "?"
}

// distance is the number of characters to insert, remove or replace that makes a of b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0]++
		for j := range len(b) {
			replaced := diagonal
			if a[i] != b[j] {
				replaced++
			}
			diagonal = row[j+1]
			row[j+1] = min(replaced, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
