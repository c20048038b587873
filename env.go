package aiguard

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
)

const (
	envPrefix   = "AIGUARD_"
	aliasesName = "ALIASES" // suffix of the variable that switches the alias names off
)

// testEnv reports whether only tests read the variable.
func testEnv(name string) bool {
	switch name {
	case "STRESS", "CHAOS", "CHAOS_SEED", "MEMORY_CHILD":
		return true
	}
	return false
}

// FromEnv returns the defaults, overridden by the AIGUARD_ variables of the environment. TotalTimeout, MinConcurrent
// and MaxBackground stay zero if they are not set, because their defaults depend on other fields.
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
//	AIGUARD_RETRY_TIMEOUTS, AIGUARD_RETRY_UNBILLED                     true or false
//	AIGUARD_RETRY_BUDGET                                               a fraction such as 0.1, or off
//	AIGUARD_FAILURES_AS_RESPONSES                                      true or false
//	AIGUARD_HEDGE_QUANTILE                                             a fraction such as 0.95, or off
//	AIGUARD_DEADLINE_HEADER                                            the name of a header
//	AIGUARD_MODELS                                                     settings per model, such as
//	                                                                   o3*:timeout=5m,weight=2;gpt-4o-mini:attempts=1
//
// In AIGUARD_MODELS, semicolons separate models and commas separate the settings of a model. A name may end in "*" to
// match a prefix. The last colon ends the name, so a name may contain colons. The settings are timeout,
// total_timeout, stream_idle_timeout, weight, attempts, max_prompt_chars, max_output_tokens, priority (background,
// normal or critical) and ends_without_finish (true or false), as in Call.
//
// FromEnv also reads these common names, if the AIGUARD_ variable is not set:
//
//	MAX_CONCURRENT_AI_REQUESTS    AIGUARD_MAX_CONCURRENT
//	AI_MODEL_MAX_TOKENS           AIGUARD_MAX_OUTPUT_TOKENS
//	WORKER_TIME_LIMIT             AIGUARD_TOTAL_TIMEOUT; also whole seconds such as 60
//	WORKER_MEMORY_LIMIT_MB        AIGUARD_MEMORY_LIMIT; a plain number is in MiB
//
// New logs which of these names were read. AIGUARD_ALIASES=false switches them off.
//
// An empty variable counts as not set. The error joins all mistakes, each with the variable, its value and the
// allowed values. An unknown variable with the prefix is also a mistake, and the error contains only its name.
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
			mistakes = append(mistakes, fmt.Errorf("aiguard: %s is not a variable of aiguard; %s", variable, suggestion(name, names)))
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
	if len(mistakes) == 0 { // check relations between fields
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

// logAliases logs once which variables without the prefix were read.
func (c *Config) logAliases() {
	if c.aliases != nil && c.Logger != nil {
		c.Logger.Info("aiguard: settings read from variables without the prefix "+envPrefix, slog.Any("variables", c.aliases))
	}
}

// validateWithCounter validates a Config whose CountTokens the program sets later.
func (c Config) validateWithCounter() error {
	c.CountTokens = func(_, text string) (int, error) { return len(text), nil }
	return c.validate()
}

// setIndependentDefaults sets the defaults that do not depend on other fields, because a program may still change
// those.
func (c *Config) setIndependentDefaults() {
	own := *c
	c.setDefaults()
	c.TotalTimeout, c.MinConcurrent, c.MaxBackground = own.TotalTimeout, own.MinConcurrent, own.MaxBackground
}

// inEnvironment replaces the names of fields in text by those of their variables.
func inEnvironment(text string, settings []setting) string {
	for _, s := range settings {
		text = strings.ReplaceAll(text, "Config."+s.field+" ", envPrefix+s.name+" ")
		text = strings.ReplaceAll(text, "at most "+s.field+" ", "at most "+envPrefix+s.name+" ")
		text = strings.ReplaceAll(text, "at least "+s.field+" ", "at least "+envPrefix+s.name+" ")
	}
	return strings.ReplaceAll(text, "Config.Models[", envPrefix+"MODELS[")
}

// setting maps an environment variable to a field: its name without the prefix and, if there is one, its alias.
type setting struct {
	field string
	name  string
	set   setter

	alias    string
	setAlias setter
}

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
		{field: "Retry.Unbilled", name: "RETRY_UNBILLED", set: boolSetting(&c.Retry.Unbilled)},
		{field: "Retry.Budget", name: "RETRY_BUDGET", set: fractionSetting(&c.Retry.Budget)},
		{field: "Retry.Patience", name: "RETRY_PATIENCE", set: durationSetting(&c.Retry.Patience)},
		{field: "Hedge.Quantile", name: "HEDGE_QUANTILE", set: quantileSetting(&c.Hedge.Quantile)},
		{field: "DeadlineHeader", name: "DEADLINE_HEADER", set: headerSetting(&c.DeadlineHeader)},
		{field: "Models", name: "MODELS", set: modelsSetting(&c.Models)},
	}
}

// suggestion returns the known variable closest to name, if one is close.
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

// distance returns the number of characters to insert, remove or replace to turn a into b.
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
