package aiguard

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/aiguard-go/aiguard/internal/bymodel"
	"github.com/aiguard-go/aiguard/internal/errtree"
	"github.com/aiguard-go/aiguard/internal/line"
)

// Off disables a limit. It is allowed in the fields of Config and Retry, and in the timeouts, the limits and the
// Attempts of Call.
const Off = -1

// Defaults of Config and Retry.
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

// totalMargin is the time that the default TotalTimeout allows for queueing, retries and backoff.
const totalMargin = DefaultTotalTimeout - DefaultCallTimeout

// totalOf returns the default TotalTimeout that holds a call of this Timeout.
func totalOf(timeout time.Duration) time.Duration {
	return max(DefaultTotalTimeout, min(timeout, math.MaxInt64-totalMargin)+totalMargin)
}

// Config configures a Guard. The zero value is valid. In each field, zero selects the default, and Off (-1)
// disables the limit. New rejects any other negative value. Guard.Update changes the Config of a Guard.
type Config struct {
	// CallTimeout limits one API call, from the request to the last byte of the answer. For a stream it limits the
	// time to the first event. Default 30s
	CallTimeout time.Duration

	// StreamIdleTimeout limits the silence between two events of a stream while the caller waits. Default 30s
	StreamIdleTimeout time.Duration

	StreamTimeout time.Duration // limit for a whole stream. Default 10m
	QueueTimeout  time.Duration // wait for a slot, for a paused route or for the provider's rate limit. Default 30s
	TaskTimeout   time.Duration // limit for RunTask. Default 2m

	// TotalTimeout limits queueing, attempts and backoff together. For a stream it ends at the first event. The
	// default is 2m, or the longest CallTimeout or Models timeout plus 90s if that is more.
	TotalTimeout time.Duration

	// Models sets timeouts, limits, weight and attempts per model. A key is a model's name, or a prefix that ends in
	// "*". The longest matching key applies. Op, Model and Tenant must be empty. Default none
	Models map[string]Call

	MaxConcurrent int64   // weight in flight. Default 5
	MinConcurrent int64   // each route's limit adapts between this and MaxConcurrent; if equal, it is fixed. Default 1
	MaxBackground int64   // weight in flight of calls with priority Background. Default MaxConcurrent-1, at least 1
	MaxQueue      int     // calls that may wait for a slot, and for each route at its limit. Default 100
	Limiter       Limiter // replaces the in-process limit; Stats still reports MaxConcurrent. Default none

	// RequestsPerMinute and TokensPerMinute limit the rate of each route. The burst is a tenth of a minute's amount.
	// Rate limits in a provider's headers are always honored. Default none
	RequestsPerMinute, TokensPerMinute int64

	// MaxPromptChars limits the characters (runes) in all texts of a request. Each input of an embeddings request is a
	// prompt of its own. Default 20,000
	MaxPromptChars int

	MaxPromptTokens int // tokens of a prompt; needs CountTokens. Default none

	// CountTokens counts the tokens of a text and must be safe for concurrent use. It is called once by New, and for
	// a prompt whose size in bytes does not already show that it is within the limit. It may add up to 8 tokens per
	// text. Default none
	CountTokens func(model, text string) (int, error)

	MaxOutputTokens  int   // maximum output tokens; a larger or missing limit in the request is set to it. Default none
	MaxRequestBytes  int64 // request body. Default 32 MiB
	MaxResponseBytes int64 // answer after decompression. Default 32 MiB

	// MemoryLimit is the live heap in bytes above which new calls are rejected. Answers that wait for their callers
	// may use a quarter of it. The default is 90% of GOMEMLIMIT if that is set, else none.
	MemoryLimit int64

	// MaxEventBytes limits one event of a stream. If there is no MemoryLimit and MaxEventBytes is over 1 MiB, all
	// events longer than 64 KiB share 2 MiB of memory. One event at a time may exceed it, and other streams wait. A
	// stream whose timeout ends first fails with ErrOverloaded. Default 16 MiB
	MaxEventBytes int64

	Retry Retry // when to repeat a failed attempt
	Hedge Hedge // when to start a second attempt beside a slow one. Default off

	Budget Budget // limits what calls may spend; package budget has one. Default none

	// DeadlineHeader names a request header in which Transport sends the time left for the attempt, in seconds such
	// as "29.950". Default none
	DeadlineHeader string

	// Middleware wraps each call, outside of the queue and the retries. The first Middleware is the outermost.
	// Default none
	Middleware []Middleware

	// FailuresAsResponses makes Transport return the Guard's own failures (timeout, queue, size, truncated answer) as
	// responses instead of errors. It helps with SDKs that hide the error of a RoundTripper. The response has the
	// endpoint's own error format, the status of HTTPStatus and the message of UserMessage. A stream that fails after
	// its first event still ends with an error. Default false
	FailuresAsResponses bool

	// OnEvent is called for each Event of a call, with no lock held. It runs in the goroutine of the call. The end of a
	// stream is reported in the goroutine that reads or closes it, or in another one if its context ends first. OnEvent
	// may use the Guard and should not block. Default none
	OnEvent func(context.Context, Event)

	// Logger receives timeouts, retries, rejections, pauses, outages and abandoned streams. The log never
	// contains prompts, answers or keys. Default none.
	Logger *slog.Logger

	aliases []string // alias names that FromEnv has read, for New and Update to log
	from    *live    // the configuration that Guard.Config has reported here
}

// Retry configures when a failed attempt is repeated. The delay grows exponentially, with jitter between half and all
// of it ("equal jitter" in Marc Brooker's "Exponential Backoff And Jitter", AWS Architecture Blog, 2015). A
// provider's Retry-After is waited for in full, plus up to a quarter.
type Retry struct {
	MaxAttempts int           // attempts, including the first; 1 or Off: never retry. Default 3
	BaseDelay   time.Duration // delay before the second attempt; doubles for each further attempt. Default 500ms
	MaxDelay    time.Duration // maximum delay. Default 8s

	// Timeouts also retries a call that reached CallTimeout. A silent provider is rarely worth a second
	// wait. Default false
	Timeouts bool

	Unbilled bool    // retry only if the provider cannot charge for the attempt: see Error.MayBeBilled. Default false
	Budget   float64 // retries as a fraction of calls, above a small floor, per route and for the whole Guard. Default 0.1

	// Patience limits how long each alternative of Fallback, except the last, waits for its provider. Default 3s
	Patience time.Duration
}

// Priority orders waiting calls: the highest priority is served first. To prevent starvation, one in ten admissions
// goes to the call that has waited longest, whatever its priority.
type Priority int8

// Priorities. The zero value is Normal.
const (
	Background Priority = iota - 1 // work without a waiting user; it never takes the last free slot: see Config.MaxBackground
	Normal
	Critical
)

// String returns "background", "normal" or "critical".
func (p Priority) String() string {
	switch p {
	case Background:
		return "background"
	case Normal:
		return "normal"
	case Critical:
		return "critical"
	}
	return "Priority(" + strconv.Itoa(int(p)) + ")"
}

// line returns the priority as an index.
func (p Priority) line() line.Priority { return line.Priority(p + 1) }

// Call holds the settings of a single call. The zero Call is valid. In each field, zero selects the setting of
// Config. Off disables a timeout or a limit. As Attempts, Off means never retry.
type Call struct {
	Op    string // name in errors, logs and metrics. Client sets it: "chat.completions", …
	Model string // set by Client and Transport from the request

	// Tenant names the customer or user that the call is made for, in at most 256 bytes. Tenants share capacity
	// fairly. All calls with an empty Tenant count as one tenant.
	Tenant string

	Priority Priority // Background, Normal or Critical. Default Normal
	Weight   int64    // share of MaxConcurrent that the call uses. Default 1

	Timeout time.Duration // limit of one attempt. Default CallTimeout, for RunTask TaskTimeout

	// TotalTimeout limits queueing, pauses, attempts and backoff together. The default is Config's, or Timeout plus
	// 90s if that is more and Config.TotalTimeout is the default.
	TotalTimeout time.Duration

	StreamIdleTimeout time.Duration // silence between two events of a stream. Default Config.StreamIdleTimeout
	Attempts          int           // attempts, including the first; 1: never retry. Default Retry.MaxAttempts
	MaxPromptChars    int           // characters of a prompt. Default Config.MaxPromptChars
	MaxOutputTokens   int           // tokens of an answer. Default Config.MaxOutputTokens
	EndsWithoutFinish bool          // this model's streams may end without a finish reason. Default false
}

// over returns c with the non-zero fields of top applied.
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

// mistakes returns an error for each field of c that is out of range.
func (c *Call) mistakes() (m mistakes) {
	m.check(c.Priority >= Background && c.Priority <= Critical, "Priority", int(c.Priority), "Background (-1), Normal (0) or Critical (1)")
	m.check(len(c.Tenant) <= maxTenantName, "Tenant", fmt.Sprintf("%d bytes long", len(c.Tenant)), fmt.Sprintf("at most %d bytes", maxTenantName))
	m.check(c.Weight >= 0, "Weight", c.Weight, "0 or more")
	m.duration("Timeout", c.Timeout)
	m.duration("TotalTimeout", c.TotalTimeout)
	m.duration("StreamIdleTimeout", c.StreamIdleTimeout)
	m.number("Attempts", int64(c.Attempts))
	m.number("MaxPromptChars", int64(c.MaxPromptChars))
	m.number("MaxOutputTokens", int64(c.MaxOutputTokens))
	m.check(c.TotalTimeout <= 0 || c.Timeout <= c.TotalTimeout, "TotalTimeout", c.TotalTimeout, fmt.Sprintf("at least Timeout (%v)", c.Timeout))
	return m
}

// mustBeValid panics if a field of c is out of range. The message names method.
func (c *Call) mustBeValid(method string) {
	if err := c.mistakes().join("Call."); err != nil {
		panic(fmt.Sprintf("aiguard: %s: %v", method, err))
	}
}

// mistakes collects the errors in the fields of a struct.
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

// present rejects an interface that holds a nil pointer.
func (m *mistakes) present(field string, v any) {
	m.check(v == nil || !errtree.IsNil(v), field, fmt.Sprintf("a nil %T", v), "a "+field+", or nil for none")
}

// join returns all mistakes as one error, each with the prefix.
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
		m.check(c.Limiter == nil, "MinConcurrent", c.MinConcurrent, "0 or Off with a Limiter")
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
	m.check(c.MaxPromptTokens <= 0 || c.CountTokens != nil, "MaxPromptTokens", c.MaxPromptTokens, "0 or Off without CountTokens")
	if n, of, ok := c.countReaches(); !ok {
		m.check(false, "CountTokens", fmt.Sprintf("a function that counts %d tokens in a text of more than %d", n, of),
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
		fmt.Sprintf("a fraction of calls such as 0.1, at most %d, 0 for the default, or Off", maxBudget))
	m.check(c.Hedge.Quantile >= 0 && c.Hedge.Quantile < 1, "Hedge.Quantile", c.Hedge.Quantile, "a fraction below 1 such as 0.95, or 0 for no hedging")
	m.check(c.Hedge.Quantile == 0 || c.Limiter == nil, "Hedge.Quantile", c.Hedge.Quantile, "0 with a Limiter, which cannot report a free slot")
	m.check(validHeader(c.DeadlineHeader), "DeadlineHeader", fmt.Sprintf("%q", c.DeadlineHeader), "the name of an HTTP header")
	m.present("Limiter", c.Limiter)
	m.present("Budget", c.Budget)
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
		m.check(bymodel.IsKey(name), "name", fmt.Sprintf("%q", name), bymodel.WantKey)
		m.check(call.Op == "" && call.Model == "" && call.Tenant == "", "Op, Model or Tenant", "set", "none of them")
		if most := cmp.Or(c.MaxConcurrent, DefaultMaxConcurrent); most != Off && c.Limiter == nil {
			m.check(call.Weight <= most, "Weight", call.Weight, fmt.Sprintf("at most MaxConcurrent (%d)", most))
		}
		if call.TotalTimeout == 0 {
			m.check(c.TotalTimeout <= 0 || call.Timeout <= c.TotalTimeout, "Timeout", call.Timeout,
				fmt.Sprintf("at most Config.TotalTimeout (%v)", c.TotalTimeout))
		}
		m = append(m, call.mistakes()...)
		errs = append(errs, m.join(fmt.Sprintf("aiguard: Config.Models[%q].", name)))
	}
	return errors.Join(errs...)
}

// validHeader reports whether name is empty or a valid header name.
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
	orDefault(&c.TotalTimeout, totalOf(longest))
	orDefault(&c.TaskTimeout, DefaultTaskTimeout)
	orDefault(&c.MaxConcurrent, DefaultMaxConcurrent)
	if c.Limiter != nil || c.MaxConcurrent == Off {
		orDefault(&c.MinConcurrent, Off) // an infinite limit does not adapt
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
	orDefault(&c.MemoryLimit, defaultMemoryLimit())
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
