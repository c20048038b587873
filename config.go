package aiguard

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/aiguard-go/aiguard/internal/line"
)

// Off, in a field of Config or Retry, or in a timeout or Attempts of Call, means: no such bound.
const Off = -1

// The defaults of Config and Retry.
const (
	DefaultCallTimeout       = 30 * time.Second
	DefaultStreamIdleTimeout = 30 * time.Second
	DefaultStreamTimeout     = 10 * time.Minute
	DefaultQueueTimeout      = 30 * time.Second
	DefaultTotalTimeout      = 2 * time.Minute
	DefaultTaskTimeout       = 2 * time.Minute

	DefaultMaxConcurrent    = 5
	DefaultMinConcurrent    = 1
	DefaultMaxQueue         = 100
	DefaultMaxPromptChars   = 20_000
	DefaultMaxRequestBytes  = 32 << 20
	DefaultMaxResponseBytes = 32 << 20
	DefaultMaxEventBytes    = 16 << 20

	DefaultMaxAttempts = 3
	DefaultBaseDelay   = 500 * time.Millisecond
	DefaultMaxDelay    = 8 * time.Second
	DefaultBudget      = 0.1
	DefaultPatience    = 3 * time.Second
)

// totalMargin is what the default TotalTimeout leaves for queue, retries and backoff.
const totalMargin = DefaultTotalTimeout - DefaultCallTimeout

// Config configures a Guard. The zero value is valid. In each field zero means the default stated there, Off (-1) no
// such bound. Any other negative value makes New fail.
type Config struct {
	CallTimeout       time.Duration // one API call, request to last byte; of a stream, to its first event. 30s
	StreamIdleTimeout time.Duration // silence between two events of a stream, while the caller waits for one. 30s
	StreamTimeout     time.Duration // a whole stream. 10m
	QueueTimeout      time.Duration // waiting to be sent: for a slot, for a pause or for the provider's pace. 30s
	TaskTimeout       time.Duration // RunTask. 2m

	// TotalTimeout bounds queue, attempts and backoff together; of a stream, to its first event. The default is 2m, or the
	// longest CallTimeout or Timeout in Models plus 90s if that is more.
	TotalTimeout time.Duration

	// Models has settings for single models: timeouts, limits, weight, attempts. A key is a model's name, or a prefix that
	// ends in "*"; the longest one that matches applies. Op, Model and Tenant must be empty. None
	Models map[string]Call

	MaxConcurrent int64   // weight in flight. 5
	MinConcurrent int64   // the limit of each route adapts between this and MaxConcurrent; if equal, it does not. 1
	MaxBackground int64   // weight in flight of calls with priority Background. MaxConcurrent-1, at least 1
	MaxQueue      int     // calls that may wait for a slot, and for each route that has no room. 100
	Limiter       Limiter // replaces the in-process limit; MaxConcurrent is only what Stats reports then. None

	// RequestsPerMinute and TokensPerMinute pace the calls of each route; a tenth may be used at once. What a provider's
	// rate limit headers say is honored in any case. None
	RequestsPerMinute, TokensPerMinute int64

	MaxPromptChars   int                                   // characters (runes) in all texts of a request. 20,000
	MaxPromptTokens  int                                   // tokens in them; needs CountTokens. None
	CountTokens      func(model, text string) (int, error) // for concurrent use; asked where the size does not tell, and once by New; may add 8 to a text. None
	MaxOutputTokens  int                                   // a larger or absent limit in the request is set to it. None
	MaxRequestBytes  int64                                 // of a request's body. 32 MiB
	MaxResponseBytes int64                                 // of an answer, after decompression. 32 MiB
	MemoryLimit      int64                                 // live heap in bytes above which new calls are refused; answers held for their callers may take a quarter of it. 90% of GOMEMLIMIT if that is set, else none

	// MaxEventBytes bounds one event of a stream. Without a MemoryLimit, and if MaxEventBytes is over 1 MiB, the events of all
	// streams that are longer than 64 KiB share 2 MiB of memory, which one event at a time may exceed. The other streams wait for
	// their turn. One whose timeout ends first fails with ErrOverloaded. 16 MiB
	MaxEventBytes int64

	Retry Retry // when a failed attempt is repeated
	Hedge Hedge // a second attempt beside a slow first one. Off

	Budget Budget // what calls may spend; package budget has one. None

	// DeadlineHeader is the request header in which Transport sends the time that is left for the attempt, in seconds such
	// as "29.950". None
	DeadlineHeader string

	// Middleware wraps each call, outside limiter and retry; the first is outermost. None
	Middleware []Middleware

	// FailuresAsResponses makes Transport answer a failure of the guard's own (time, queue, sizes, a cut answer) with a response
	// in the endpoint's own error form instead of an error: for SDKs that hide the error of a RoundTripper. Its status is that
	// of HTTPStatus, its message that of UserMessage. A stream that fails after its first event still ends with an error. false
	FailuresAsResponses bool

	// OnEvent is called at the moments of a call's life, in the goroutine of the call and with no lock held:
	// it may call the Guard, and should not wait. None
	OnEvent func(context.Context, Event)

	// Logger gets timeouts, retries, refusals, pauses, outages and abandoned streams; never a prompt, an answer or a key. Silent
	Logger *slog.Logger

	aliases []string // from which FromEnv has read, for New to log
}

// Retry says when a failed attempt is repeated. Delays are exponential with jitter between half and all of the
// delay ("equal jitter" in Marc Brooker's "Exponential Backoff And Jitter", AWS Architecture Blog, 2015); a
// provider's Retry-After is waited for in full, with up to a quarter on top.
type Retry struct {
	MaxAttempts int           // the first included. 3; 1 or Off: never retry
	BaseDelay   time.Duration // before the second attempt; doubled for each further one. 500ms
	MaxDelay    time.Duration // 8s
	Timeouts    bool          // also retry a call that hit CallTimeout: a silent provider is rarely worth a second wait. false
	Unbilled    bool          // retry only what the provider cannot charge for: see Error.MayBeBilled. false
	Budget      float64       // retries as a fraction of calls, above a small floor, for each route and for the whole Guard. 0.1
	Patience    time.Duration // how long an alternative of Fallback, but the last, waits for its provider. 3s
}

// Priority orders calls that wait: a higher one goes first. One of every ten admissions goes to the call that has waited
// longest, whatever its priority.
type Priority int8

// The priorities. The zero value is Normal.
const (
	Background Priority = iota - 1 // work nobody waits for; it never takes the last free slot: see Config.MaxBackground
	Normal
	Critical
)

// line is the priority as an index.
func (p Priority) line() line.Priority { return line.Priority(p + 1) }

// Call is one call's own settings. The zero Call is valid: in each field zero means what Config says.
type Call struct {
	Op       string   // name in errors, logs and metrics. Client sets it: "chat.completions", …
	Model    string   // Client and Transport set it from the request
	Tenant   string   // on whose behalf the call is made, at most 256 bytes; capacity is shared fairly between tenants. "": all such calls are one tenant
	Priority Priority // Background, Normal or Critical. Normal
	Weight   int64    // share of MaxConcurrent. 1

	Timeout           time.Duration // one attempt: CallTimeout, and for RunTask TaskTimeout; Off: none
	TotalTimeout      time.Duration // queue, pauses, attempts and backoff together; Off: none. Config's, or Timeout plus 90s if that is more and Config's is the default
	StreamIdleTimeout time.Duration // silence between two events of a stream; Off: none
	Attempts          int           // Retry.MaxAttempts; 1: never retry
	MaxPromptChars    int           // Off: no bound
	MaxOutputTokens   int           // Off: no bound
	EndsWithoutFinish bool          // this model's streams may end cleanly without a finish reason. false
}

// over returns c with the non-zero fields of top.
func (c Call) over(top Call) Call {
	return Call{
		Op: cmp.Or(top.Op, c.Op), Model: cmp.Or(top.Model, c.Model), Tenant: cmp.Or(top.Tenant, c.Tenant),
		Priority: cmp.Or(top.Priority, c.Priority), Weight: cmp.Or(top.Weight, c.Weight),
		Timeout: cmp.Or(top.Timeout, c.Timeout), TotalTimeout: cmp.Or(top.TotalTimeout, c.TotalTimeout),
		StreamIdleTimeout: cmp.Or(top.StreamIdleTimeout, c.StreamIdleTimeout), Attempts: cmp.Or(top.Attempts, c.Attempts),
		MaxPromptChars: cmp.Or(top.MaxPromptChars, c.MaxPromptChars), MaxOutputTokens: cmp.Or(top.MaxOutputTokens, c.MaxOutputTokens),
		EndsWithoutFinish: top.EndsWithoutFinish || c.EndsWithoutFinish,
	}
}

// mistakes are the fields of c that are out of range.
func (c *Call) mistakes() error {
	var m mistakes
	m.check(c.Priority >= Background && c.Priority <= Critical, "Priority", c.Priority, "Background (-1), Normal (0) or Critical (1)")
	m.check(len(c.Tenant) <= maxTenantName, "Tenant", fmt.Sprintf("%d bytes long", len(c.Tenant)), fmt.Sprintf("at most %d bytes", maxTenantName))
	m.check(c.Weight >= 0, "Weight", c.Weight, "0 or more")
	m.duration("Timeout", c.Timeout)
	m.duration("TotalTimeout", c.TotalTimeout)
	m.duration("StreamIdleTimeout", c.StreamIdleTimeout)
	m.number("Attempts", int64(c.Attempts))
	m.number("MaxPromptChars", int64(c.MaxPromptChars))
	m.number("MaxOutputTokens", int64(c.MaxOutputTokens))
	m.check(c.TotalTimeout <= 0 || c.Timeout <= c.TotalTimeout, "TotalTimeout", c.TotalTimeout, fmt.Sprintf("at least Timeout (%v)", c.Timeout))
	return m.join("Call.")
}

// mustBeValid panics with the mistakes of a Call given to method.
func (c *Call) mustBeValid(method string) {
	if err := c.mistakes(); err != nil {
		panic(fmt.Sprintf("aiguard: %s: %v", method, err))
	}
}

// mistakes gathers what is wrong with the fields of a struct.
type mistakes []string

func (m *mistakes) check(ok bool, field string, value any, want string) {
	if !ok {
		*m = append(*m, fmt.Sprintf("%s is %v; want %s", field, value, want))
	}
}

func (m *mistakes) duration(field string, d time.Duration) {
	m.check(d >= Off, field, d, "a positive duration, 0 for the default, or Off")
}

func (m *mistakes) number(field string, n int64) {
	m.check(n >= Off, field, n, "a positive number, 0 for the default, or Off")
}

// join makes one error of the mistakes, each with the prefix.
func (m mistakes) join(prefix string) error {
	errs := make([]error, len(m))
	for i, text := range m {
		errs[i] = errors.New(prefix + text)
	}
	return errors.Join(errs...)
}

func (c *Config) validate() error {
	var m mistakes
	m.duration("CallTimeout", c.CallTimeout)
	m.duration("StreamIdleTimeout", c.StreamIdleTimeout)
	m.duration("StreamTimeout", c.StreamTimeout)
	m.duration("QueueTimeout", c.QueueTimeout)
	m.duration("TotalTimeout", c.TotalTimeout)
	m.duration("TaskTimeout", c.TaskTimeout)
	m.check(c.TotalTimeout <= 0 || c.CallTimeout <= c.TotalTimeout || c.CallTimeout == DefaultCallTimeout, "TotalTimeout", c.TotalTimeout,
		fmt.Sprintf("at least CallTimeout (%v)", c.CallTimeout))
	m.number("MaxConcurrent", c.MaxConcurrent)
	m.number("MinConcurrent", c.MinConcurrent)
	most := cmp.Or(c.MaxConcurrent, DefaultMaxConcurrent)
	if c.MinConcurrent > 0 {
		m.check(c.MinConcurrent <= most, "MinConcurrent", c.MinConcurrent, fmt.Sprintf("at most MaxConcurrent (%d)", most))
		m.check(c.Limiter == nil, "MinConcurrent", c.MinConcurrent, "no Limiter beside it")
	}
	m.number("MaxBackground", c.MaxBackground)
	if c.MaxBackground > 0 && most != Off {
		m.check(c.MaxBackground <= most, "MaxBackground", c.MaxBackground, fmt.Sprintf("at most MaxConcurrent (%d)", most))
	}
	m.number("MaxQueue", int64(c.MaxQueue))
	m.number("RequestsPerMinute", c.RequestsPerMinute)
	m.number("TokensPerMinute", c.TokensPerMinute)
	m.number("MaxPromptChars", int64(c.MaxPromptChars))
	m.number("MaxPromptTokens", int64(c.MaxPromptTokens))
	m.check(c.MaxPromptTokens <= 0 || c.CountTokens != nil, "MaxPromptTokens", c.MaxPromptTokens, "CountTokens to be set with it")
	if n, of, ok := c.countReaches(); !ok {
		m.check(false, "CountTokens", fmt.Sprintf("a counter that finds %d tokens in a text of more than %d", n, of),
			fmt.Sprintf("one that reaches MaxPromptTokens (%d)", c.MaxPromptTokens))
	}
	m.number("MaxOutputTokens", int64(c.MaxOutputTokens))
	m.number("MaxRequestBytes", c.MaxRequestBytes)
	m.number("MaxResponseBytes", c.MaxResponseBytes)
	m.number("MaxEventBytes", c.MaxEventBytes)
	m.number("MemoryLimit", c.MemoryLimit)
	m.number("Retry.MaxAttempts", int64(c.Retry.MaxAttempts))
	m.duration("Retry.BaseDelay", c.Retry.BaseDelay)
	m.duration("Retry.MaxDelay", c.Retry.MaxDelay)
	m.duration("Retry.Patience", c.Retry.Patience)
	base, longest := c.Retry.BaseDelay, c.Retry.MaxDelay
	m.check(base <= 0 || longest <= 0 || base <= longest, "Retry.BaseDelay", base, fmt.Sprintf("at most Retry.MaxDelay (%v)", longest))
	m.check((c.Retry.Budget >= 0 || c.Retry.Budget == Off) && c.Retry.Budget <= maxBudget, "Retry.Budget", c.Retry.Budget,
		"a fraction of calls such as 0.1, 0 for the default, or Off")
	m.check(c.Hedge.Quantile >= 0 && c.Hedge.Quantile < 1, "Hedge.Quantile", c.Hedge.Quantile, "a fraction below 1 such as 0.95, or 0 for no hedging")
	m.check(c.Hedge.Quantile == 0 || c.Limiter == nil, "Hedge.Quantile", c.Hedge.Quantile, "0 with a Limiter, which cannot tell whether a slot is free")
	m.check(validHeader(c.DeadlineHeader), "DeadlineHeader", fmt.Sprintf("%q", c.DeadlineHeader), "the name of an HTTP header")
	for i, mw := range c.Middleware {
		m.check(mw != nil, fmt.Sprintf("Middleware[%d]", i), "nil", "a function")
	}
	return errors.Join(m.join("aiguard: Config."), c.validateModels())
}

func (c *Config) validateModels() error {
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(c.Models)) {
		call := c.Models[name]
		m := mistakes{}
		m.check(name != "" && !strings.Contains(strings.TrimSuffix(name, "*"), "*"), "name", fmt.Sprintf("%q", name),
			`a model's name, or a prefix that ends in "*"`)
		m.check(call.Op == "" && call.Model == "" && call.Tenant == "", "Op, Model or Tenant", "set", "none of them")
		if most := cmp.Or(c.MaxConcurrent, DefaultMaxConcurrent); most != Off && c.Limiter == nil {
			m.check(call.Weight <= most, "Weight", call.Weight, fmt.Sprintf("at most MaxConcurrent (%d)", most))
		}
		if call.TotalTimeout == 0 {
			m.check(c.TotalTimeout <= 0 || call.Timeout <= c.TotalTimeout, "Timeout", call.Timeout,
				fmt.Sprintf("at most Config.TotalTimeout (%v)", c.TotalTimeout))
		}
		prefix := fmt.Sprintf("aiguard: Config.Models[%q].", name)
		if err := m.join(prefix); err != nil {
			errs = append(errs, err)
		}
		if err := call.mistakes(); err != nil {
			errs = append(errs, fmt.Errorf("aiguard: Config.Models[%q]: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// validHeader reports whether name can be the name of a header, or is empty.
func validHeader(name string) bool {
	for _, r := range name {
		if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_' {
			return false
		}
	}
	return true
}

func (c *Config) setDefaults() {
	orDefault(&c.CallTimeout, DefaultCallTimeout)
	orDefault(&c.StreamIdleTimeout, DefaultStreamIdleTimeout)
	orDefault(&c.StreamTimeout, DefaultStreamTimeout)
	orDefault(&c.QueueTimeout, DefaultQueueTimeout)
	longest := c.CallTimeout
	for _, call := range c.Models {
		longest = max(longest, call.Timeout)
	}
	orDefault(&c.TotalTimeout, max(DefaultTotalTimeout, longest+totalMargin))
	orDefault(&c.TaskTimeout, DefaultTaskTimeout)
	orDefault(&c.MaxConcurrent, DefaultMaxConcurrent)
	if c.Limiter != nil || c.MaxConcurrent == Off {
		orDefault(&c.MinConcurrent, Off) // there is nothing to adapt
	}
	orDefault(&c.MinConcurrent, DefaultMinConcurrent)
	if c.MaxConcurrent == Off {
		orDefault(&c.MaxBackground, Off)
	}
	orDefault(&c.MaxBackground, max(c.MaxConcurrent-1, 1))
	orDefault(&c.MaxQueue, DefaultMaxQueue)
	orDefault(&c.RequestsPerMinute, Off)
	orDefault(&c.TokensPerMinute, Off)
	orDefault(&c.MaxPromptChars, DefaultMaxPromptChars)
	orDefault(&c.MaxRequestBytes, DefaultMaxRequestBytes)
	orDefault(&c.MaxResponseBytes, DefaultMaxResponseBytes)
	orDefault(&c.MaxEventBytes, DefaultMaxEventBytes)
	orDefault(&c.Retry.MaxAttempts, DefaultMaxAttempts)
	if c.Retry.BaseDelay == 0 && c.Retry.MaxDelay > 0 {
		c.Retry.BaseDelay = min(DefaultBaseDelay, c.Retry.MaxDelay)
	}
	orDefault(&c.Retry.BaseDelay, DefaultBaseDelay)
	orDefault(&c.Retry.MaxDelay, max(DefaultMaxDelay, c.Retry.BaseDelay))
	orDefault(&c.Retry.Budget, DefaultBudget)
	orDefault(&c.Retry.Patience, DefaultPatience)
}

func orDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}
