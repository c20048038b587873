package aiguard

import (
	"fmt"
	"log/slog"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// What a program sets after FromEnv must not contradict a default that was derived from something else.
func TestFromEnvLeavesRoomForWhatTheProgramSets(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"one slot":   func(c *Config) { c.MaxConcurrent = 1 },
		"no limit":   func(c *Config) { c.MaxConcurrent = Off },
		"long calls": func(c *Config) { c.CallTimeout = 10 * time.Minute },
	} {
		cfg, err := fromEnv(nil)
		require.NoError(t, err)
		change(&cfg)
		_, err = New(cfg)
		require.NoError(t, err, name)
	}
}

func TestFromEnvIsTheDefaultsWithoutVariables(t *testing.T) {
	cfg, err := fromEnv([]string{"PATH=/bin", "AIGUARD_STRESS=30s", "AIGUARD_CALL_TIMEOUT=", "AIGUARDIAN=x"})
	require.NoError(t, err)
	var defaults Config
	defaults.setIndependentDefaults()
	require.Equal(t, defaults, cfg)
	_, err = New(cfg)
	require.NoError(t, err)
}

func TestFromEnvReadsEveryVariable(t *testing.T) {
	for _, entry := range []string{
		"CALL_TIMEOUT=5s", "STREAM_IDLE_TIMEOUT=6s", "STREAM_TIMEOUT=1h", "QUEUE_TIMEOUT=off", "TOTAL_TIMEOUT=1m30s", "TASK_TIMEOUT=3m",
		"MAX_CONCURRENT=7", "MIN_CONCURRENT=3", "MAX_QUEUE=OFF", "MAX_PROMPT_CHARS=100", "MAX_PROMPT_TOKENS=50", "MAX_OUTPUT_TOKENS=60",
		"MAX_REQUEST_BYTES=64KiB", "MAX_RESPONSE_BYTES=1 MiB", "MAX_EVENT_BYTES=2MiB", "MEMORY_LIMIT=2GiB",
		"RETRY_MAX_ATTEMPTS=1", "RETRY_BASE_DELAY=1ms", "RETRY_MAX_DELAY=2s", "RETRY_TIMEOUTS=true", "RETRY_UNBILLED=true", "FAILURES_AS_RESPONSES=true", "RETRY_BUDGET=0.5", "RETRY_PATIENCE=off",
		"MAX_BACKGROUND=2", "REQUESTS_PER_MINUTE=60", "TOKENS_PER_MINUTE=9000", "HEDGE_QUANTILE=0.95", "DEADLINE_HEADER=X-Deadline",
		"MODELS=o3*:timeout=1m,weight=2; llama3:8b:attempts=1,priority=background,ends_without_finish=true;",
	} {
		t.Setenv("AIGUARD_"+strings.SplitN(entry, "=", 2)[0], strings.SplitN(entry, "=", 2)[1])
	}
	cfg, err := FromEnv()
	require.NoError(t, err)
	require.Equal(t, Config{
		CallTimeout: 5 * time.Second, StreamIdleTimeout: 6 * time.Second, StreamTimeout: time.Hour, QueueTimeout: Off,
		TotalTimeout: 90 * time.Second, TaskTimeout: 3 * time.Minute, MaxConcurrent: 7, MinConcurrent: 3, MaxQueue: Off, MaxPromptChars: 100,
		MaxPromptTokens: 50, MaxOutputTokens: 60, MaxRequestBytes: 64 << 10, MaxResponseBytes: 1 << 20, MaxEventBytes: 2 << 20, MemoryLimit: 2 << 30, FailuresAsResponses: true,
		Retry:         Retry{MaxAttempts: 1, BaseDelay: time.Millisecond, MaxDelay: 2 * time.Second, Timeouts: true, Unbilled: true, Budget: 0.5, Patience: Off},
		MaxBackground: 2, RequestsPerMinute: 60, TokensPerMinute: 9000, Hedge: Hedge{Quantile: 0.95}, DeadlineHeader: "X-Deadline",
		Models: map[string]Call{
			"o3*":       {Timeout: time.Minute, Weight: 2},
			"llama3:8b": {Attempts: 1, Priority: Background, EndsWithoutFinish: true},
		},
	}, cfg)
}

// A field that a text can express has a variable: a new one cannot be forgotten.
func TestEveryPlainFieldHasAVariable(t *testing.T) {
	var cfg Config
	var fields, known []string
	for prefix, v := range map[string]reflect.Value{"": reflect.ValueOf(cfg), "Retry.": reflect.ValueOf(cfg.Retry), "Hedge.": reflect.ValueOf(cfg.Hedge)} {
		for i := range v.NumField() {
			switch v.Field(i).Kind() {
			case reflect.Map, reflect.Int, reflect.Int64, reflect.Bool, reflect.Float64, reflect.String:
				fields = append(fields, prefix+v.Type().Field(i).Name)
			}
		}
	}
	for _, s := range cfg.settings() {
		known = append(known, s.field)
		words := regexp.MustCompile("[A-Z][a-z]+").FindAllString(s.field, -1)
		require.Equal(t, strings.ToUpper(strings.Join(words, "_")), s.name, "the variable is named after its field")
	}
	require.ElementsMatch(t, fields, known)
}

func TestFromEnvKnowsTheNamesThatServicesHave(t *testing.T) {
	var defaults Config
	defaults.setIndependentDefaults()
	for entry, change := range map[string]func(*Config){
		"MAX_CONCURRENT_AI_REQUESTS=12": func(c *Config) { c.MaxConcurrent = 12 },
		"AI_MODEL_MAX_TOKENS=800":       func(c *Config) { c.MaxOutputTokens = 800 },
		"WORKER_TIME_LIMIT=60":          func(c *Config) { c.TotalTimeout = time.Minute },
		"WORKER_TIME_LIMIT=1m30s":       func(c *Config) { c.TotalTimeout = 90 * time.Second },
		"WORKER_TIME_LIMIT=off":         func(c *Config) { c.TotalTimeout = Off },
		"WORKER_MEMORY_LIMIT_MB=512":    func(c *Config) { c.MemoryLimit = 512 << 20 },
		"WORKER_MEMORY_LIMIT_MB=2GiB":   func(c *Config) { c.MemoryLimit = 2 << 30 },
		"WORKER_MEMORY_LIMIT_MB=":       func(*Config) {},
	} {
		want := defaults
		change(&want)
		cfg, err := fromEnv([]string{entry})
		require.NoError(t, err, entry)
		cfg.aliases = nil
		require.Equal(t, want, cfg, entry)
	}
}

func TestNamesOfOthersAreLoggedOnce(t *testing.T) {
	var out strings.Builder
	logger := slog.New(slog.NewTextHandler(&out, nil))
	environ := []string{"WORKER_TIME_LIMIT=60", "MAX_CONCURRENT_AI_REQUESTS=4", "AI_MODEL_MAX_TOKENS=10", "AIGUARD_MAX_OUTPUT_TOKENS=20"}
	cfg, err := fromEnv(environ)
	require.NoError(t, err)
	cfg.Logger = logger
	g, err := New(cfg)
	require.NoError(t, err)
	require.Contains(t, out.String(), `level=INFO msg="aiguard: settings read from variables without the prefix AIGUARD_" variables="[WORKER_TIME_LIMIT MAX_CONCURRENT_AI_REQUESTS]"`)
	_, err = New(g.Config())
	require.NoError(t, err)
	require.Equal(t, 1, strings.Count(out.String(), "\n"), "once")

	cfg, err = fromEnv(append(environ, "AIGUARD_ALIASES=false"))
	require.NoError(t, err)
	cfg.Logger = logger
	g, err = New(cfg)
	require.NoError(t, err)
	require.Equal(t, DefaultTotalTimeout, g.Config().TotalTimeout)
	require.EqualValues(t, DefaultMaxConcurrent, g.Config().MaxConcurrent)
	require.Equal(t, 20, g.Config().MaxOutputTokens)
	require.Equal(t, 1, strings.Count(out.String(), "\n"), "nothing was read")

	_, err = fromEnv([]string{"AIGUARD_ALIASES=none"})
	require.EqualError(t, err, `aiguard: AIGUARD_ALIASES is "none"; want true or false`)
}

func TestUnknownVariableNamesTheOneThatIsNear(t *testing.T) {
	for variable, hint := range map[string]string{
		"AIGUARD_CALL_TIMOUT":                   "did you mean AIGUARD_CALL_TIMEOUT?",
		"AIGUARD_CALLTIMEOUT":                   "did you mean AIGUARD_CALL_TIMEOUT?",
		"AIGUARD_MAX_CONCURENT":                 "did you mean AIGUARD_MAX_CONCURRENT?",
		"AIGUARD_MAX_QUEUES":                    "did you mean AIGUARD_MAX_QUEUE?",
		"AIGUARD_RETRY_BASE_DALEY":              "did you mean AIGUARD_RETRY_BASE_DELAY?",
		"AIGUARD_ALIAS":                         "did you mean AIGUARD_ALIASES?",
		"AIGUARD_NOPE":                          "see FromEnv",
		"AIGUARD_API_KEY":                       "see FromEnv",
		"AIGUARD_":                              "see FromEnv",
		"AIGUARD_" + strings.Repeat("X", 1<<20): "see FromEnv",
	} {
		_, err := fromEnv([]string{variable + "=sk-secret"})
		require.EqualError(t, err, "aiguard: "+variable+" is not a variable of aiguard; "+hint)
	}
}

func TestFromEnvPrefersItsOwnNames(t *testing.T) {
	cfg, err := fromEnv([]string{"WORKER_TIME_LIMIT=60", "AIGUARD_TOTAL_TIMEOUT=5s", "MAX_CONCURRENT_AI_REQUESTS=many", "AIGUARD_MAX_CONCURRENT=3",
		"AI_MODEL_MAX_TOKENS=800", "AIGUARD_MAX_OUTPUT_TOKENS= "})
	require.NoError(t, err, "what is not used may be anything")
	require.Equal(t, 5*time.Second, cfg.TotalTimeout)
	require.EqualValues(t, 3, cfg.MaxConcurrent)
	require.Equal(t, 800, cfg.MaxOutputTokens, "an empty variable is not set")
}

func TestFromEnvReportsWhatDoesNotGoTogether(t *testing.T) {
	_, err := fromEnv([]string{"AIGUARD_RETRY_BASE_DELAY=10s", "AIGUARD_RETRY_MAX_DELAY=1s"})
	require.EqualError(t, err, `aiguard: AIGUARD_RETRY_BASE_DELAY is 10s; want at most AIGUARD_RETRY_MAX_DELAY (1s)`)
	for _, environ := range [][]string{
		{"AIGUARD_RETRY_BASE_DELAY=10s"}, {"AIGUARD_RETRY_MAX_DELAY=1ms"}, {"AIGUARD_RETRY_BASE_DELAY=10s", "AIGUARD_RETRY_MAX_DELAY=off"},
	} {
		cfg, err := fromEnv(environ)
		require.NoError(t, err)
		_, err = New(cfg)
		require.NoError(t, err, "%v", environ)
	}
	cfg, err := fromEnv([]string{"AIGUARD_MAX_PROMPT_TOKENS=1000"})
	require.NoError(t, err, "the counter comes from the program")
	_, err = New(cfg)
	require.ErrorContains(t, err, "CountTokens")
}

func TestFromEnvTellsAllMistakesOfTheModelsTogether(t *testing.T) {
	_, err := fromEnv([]string{"AIGUARD_MODELS=o3:timeout=5,weight=0;gpt-4o;o3:tenant=x", "AIGUARD_MAX_QUEUE=none"})
	for _, want := range []string{
		`for "o3" timeout to be a positive duration`, `for "o3" weight to be a positive whole number`, `not "gpt-4o"`,
		`the model "o3" once`, `for "o3" one of attempts`, "AIGUARD_MAX_QUEUE",
	} {
		require.ErrorContains(t, err, want)
	}
}

func TestFromEnvSaysWhatIsWrongWithAModel(t *testing.T) {
	for value, want := range map[string]string{
		"o3":                             "model:setting=value",
		":timeout=5m":                    "model:setting=value",
		"o3:timeout":                     `for "o3" timeout to be a positive duration`,
		"o3:timeout=5":                   `for "o3" timeout to be a positive duration`,
		"o3:timeout=5m;o3:weight=2":      `the model "o3" once`,
		"o3:timeout=5m, timeout =6m":     `for "o3" timeout once`,
		"o3:weight=off":                  `for "o3" weight to be a positive whole number`,
		"o3:tenant=x":                    `for "o3" one of attempts, ends_without_finish`,
		"o3:priority=high":               "background, normal or critical",
		"o3:weight=6":                    `AIGUARD_MODELS["o3"].Weight is 6; want at most AIGUARD_MAX_CONCURRENT (5)`,
		"o*3:weight=1":                   `AIGUARD_MODELS["o*3"].name is "o*3"; want a model's name`,
		"o3:timeout=5m,total_timeout=1m": `AIGUARD_MODELS["o3"].TotalTimeout is 1m0s; want at least Timeout (5m0s)`,
	} {
		_, err := fromEnv([]string{"AIGUARD_MODELS=" + value})
		require.ErrorContains(t, err, want, value)
		require.ErrorContains(t, err, "aiguard: AIGUARD_MODELS", value)
	}
}

func TestFromEnvReportsAllMistakesTogether(t *testing.T) {
	_, err := fromEnv([]string{"AIGUARD_CALL_TIMEOUT=30", "AIGUARD_MAX_QUEUE=-1", "AIGUARD_MEMORY_LIMIT=1TB", "AIGUARD_RETRY_BUDGET=NaN",
		"AIGUARD_RETRY_TIMEOUTS=maybe", "AIGUARD_MAX_CONCURRENT=0", "AIGUARD_API_KEY=sk-secret", "AIGUARD_STREAM_TIMEOUT=1h",
		"WORKER_TIME_LIMIT=soon", "AI_MODEL_MAX_TOKENS=-5"})
	require.Error(t, err)
	lines := strings.Split(err.Error(), "\n")
	require.Len(t, lines, 9)
	for _, want := range []string{
		"AIGUARD_API_KEY is not a variable", `AIGUARD_CALL_TIMEOUT is "30"; want a positive duration`, `AIGUARD_MAX_CONCURRENT is "0"; want a positive whole number`,
		`AIGUARD_MAX_QUEUE is "-1"`, `AIGUARD_MEMORY_LIMIT is "1TB"; want a size`, `AIGUARD_RETRY_BUDGET is "NaN"`, `AIGUARD_RETRY_TIMEOUTS is "maybe"; want true or false`,
		`WORKER_TIME_LIMIT is "soon"; want a positive number of seconds`, `AI_MODEL_MAX_TOKENS is "-5"; want a positive whole number`,
	} {
		require.Contains(t, err.Error(), "aiguard: "+want)
	}
	require.NotContains(t, err.Error(), "sk-secret", "a misplaced key is not repeated")
	_, err = fromEnv([]string{"WORKER_MEMORY_LIMIT_MB=0", "=C:=no variable"})
	require.EqualError(t, err, `aiguard: WORKER_MEMORY_LIMIT_MB is "0"; want a positive number of MiB, a size such as 512MiB or 2GiB, or off`)
}

// The table in README.md lists the field, default, variable and alias of every setting, in order.
func TestReadmeTableOfSettingsIsRight(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	require.Less(t, strings.Count(string(readme), "\n"), 200, "README.md is too long")
	_, table, found := strings.Cut(string(readme), "\n| Config | limits | default | variable |\n|---|---|---|---|\n")
	require.True(t, found)
	table, _, _ = strings.Cut(table, "\n\n")

	quoted := regexp.MustCompile("`([^`]+)`")
	variable := regexp.MustCompile("`([^`]+)`(?: \\(`([^`]+)`\\))?")
	said := map[string]string{}
	for row := range strings.Lines(table) {
		cells := strings.Split(row, "|")
		require.Len(t, cells, 6, row)
		fields, defaults := quoted.FindAllStringSubmatch(cells[1], -1), strings.Split(strings.TrimSpace(cells[3]), "; ")
		variables := variable.FindAllStringSubmatch(cells[4], -1)
		if variables == nil {
			continue // not for an environment
		}
		require.Len(t, defaults, len(fields), row)
		require.Len(t, variables, len(fields), row)
		for i, field := range fields {
			name := field[1]
			if strings.HasPrefix(name, ".") {
				name = "Retry" + name
			}
			said[name] = fmt.Sprint(defaults[i], ", ", variables[i][1], ", ", variables[i][2])
		}
	}

	var cfg Config
	cfg.setDefaults()
	want := map[string]string{}
	for _, s := range cfg.settings() {
		v := reflect.ValueOf(cfg)
		for name := range strings.SplitSeq(s.field, ".") {
			v = v.FieldByName(name)
		}
		want[s.field] = fmt.Sprint(inWords(s.field, v.Interface()), ", ", s.name, ", ", s.alias)
	}
	require.Equal(t, want, said)
}

// inWords is how README.md writes a default.
func inWords(field string, value any) string {
	switch v := value.(type) {
	case time.Duration:
		return regexp.MustCompile(`([a-z])0[ms].*`).ReplaceAllString(v.String(), "$1")
	case int, int64:
		n := reflect.ValueOf(v).Int()
		switch {
		case field == "MemoryLimit":
			return fmt.Sprintf("%.0f%% of `GOMEMLIMIT` if set, else none", 100*memoryShare)
		case n == 0, n == Off:
			return "none"
		case strings.HasSuffix(field, "Bytes"):
			return fmt.Sprint(n>>20, " MiB")
		case n >= 1000:
			return fmt.Sprintf("%d,%03d", n/1000, n%1000)
		}
	}
	if _, choice := value.(bool); !choice && reflect.ValueOf(value).IsZero() {
		return "none"
	}
	return fmt.Sprint(value)
}

// Every name is in FromEnv's documentation, where go doc shows it.
func TestFromEnvDocumentsEveryName(t *testing.T) {
	source, err := os.ReadFile("env.go")
	require.NoError(t, err)
	doc, _, _ := strings.Cut(string(source), "func FromEnv()")
	for _, s := range (&Config{}).settings() {
		require.Regexp(t, `\b`+envPrefix+s.name+`\b`, doc)
		require.Regexp(t, `\b`+s.alias+`\b`, doc)
	}
}

// Whatever a variable says, the outcome is a mistake that names it or a Config that New takes.
func FuzzFromEnv(f *testing.F) {
	for _, s := range (&Config{}).settings() {
		for _, value := range []string{"", "off", "0", "1", "-1", "30s", "1e9", "9223372036854775807", "9223372036854775807GiB", "NaN", "0.1", "true", "1MiB"} {
			f.Add(envPrefix+s.name, value)
			f.Add(s.alias, value)
		}
	}
	f.Fuzz(func(t *testing.T, name, value string) {
		cfg, err := fromEnv([]string{name + "=" + value})
		if err != nil {
			variable, _, _ := strings.Cut(name, "=")
			require.Contains(t, err.Error(), variable)
			return
		}
		cfg.CountTokens = func(_, text string) (int, error) { return len(text), nil }
		_, err = New(cfg)
		require.NoError(t, err)
	})
}
