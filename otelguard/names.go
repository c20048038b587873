package otelguard

// This file has every name that this package gives to OpenTelemetry. Names that begin with gen_ai follow the semantic
// conventions for generative AI, release v0.1.0. Names of errors and servers follow the general conventions. All other
// names begin with aiguard.

// scope is the name of the tracer and the meter.
const scope = "github.com/aiguard-go/aiguard/otelguard"

// Attributes.
const (
	attrOperation  = "gen_ai.operation.name"
	attrProvider   = "gen_ai.provider.name"
	attrModel      = "gen_ai.request.model"
	attrStream     = "gen_ai.request.stream"
	attrFirstChunk = "gen_ai.response.time_to_first_chunk"
	attrInput      = "gen_ai.usage.input_tokens"
	attrOutput     = "gen_ai.usage.output_tokens"
	attrCacheRead  = "gen_ai.usage.cache_read.input_tokens"
	attrCacheWrite = "gen_ai.usage.cache_write.input_tokens"
	attrReasoning  = "gen_ai.usage.reasoning.output_tokens"
	attrModality   = "gen_ai.token.modality"
	attrErrorType  = "error.type"
	attrAddress    = "server.address"
	attrPort       = "server.port"
	attrStatus     = "http.response.status_code"

	attrGuard       = "aiguard.guard"           // Config.Name
	attrCall        = "aiguard.call.id"         // of a call that failed, as in events and logs
	attrOp          = "aiguard.op"              // Call.Op
	attrTenant      = "aiguard.tenant"          // Call.Tenant
	attrPriority    = "aiguard.priority"        // Call.Priority: background, normal or critical
	attrAttempt     = "aiguard.attempt"         // the number of an attempt after the first
	attrAttempts    = "aiguard.attempts"        // how many a call has made
	attrAlternative = "aiguard.alternative"     // of Fallback, if it is not the first
	attrRoute       = "aiguard.route"           // its name within the host
	attrPhase       = "aiguard.phase"           // the limit or step that failed: Error.Phase
	attrBilled      = "aiguard.may_be_billed"   // the provider may charge for a call that failed
	attrEstimated   = "aiguard.usage.estimated" // the tokens are an estimate: no answer reported them
	attrBudget      = "aiguard.budget.limit"    // the Name of a Limit of package budget
	attrBudgetUnit  = "aiguard.budget.unit"     // what it limits: calls, tokens or cost
	attrSource      = "aiguard.cache.source"    // hit, similar, shared or miss
	attrWait        = "aiguard.wait"            // seconds, of an event of a span
)

// Names of spans and their events.
const (
	spanAttempt = "aiguard.attempt"
	spanCache   = "aiguard.cache"

	eventQueued    = "aiguard.queued"
	eventBackoff   = "aiguard.backoff"
	eventPaused    = "aiguard.route_paused"
	eventDown      = "aiguard.route_down"
	eventUp        = "aiguard.route_up"
	eventFirst     = "aiguard.first_event"
	eventHedge     = "aiguard.hedge"
	eventAbandoned = "aiguard.abandoned"
)

// other stands for the values of a label beyond the first maxValues.
const (
	other     = "other"
	maxValues = 100
)

// Values of error.type besides the Kinds of package aiguard.
const (
	errorCanceled = "canceled"          // the caller left
	errorDeadline = "deadline_exceeded" // the caller's own deadline
	errorPanic    = "panic"             // a panic or runtime.Goexit
	errorOther    = "_OTHER"
)

// modalityUnknown is the modality of all tokens, because providers rarely report it.
const modalityUnknown = "unknown"

// instrument describes a metric.
type instrument struct {
	name, unit, description string
	buckets                 []float64 // of a histogram
}

var (
	seconds = []float64{0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92}
	tokens  = []float64{1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864}
)

// Histograms.
var (
	inferenceDuration  = instrument{"gen_ai.client.inference.duration", "s", "Duration of an inference call with all its attempts and waits, to the end of its stream.", seconds}
	timeToFirstChunk   = instrument{"gen_ai.client.inference.time_to_first_chunk", "s", "Time from the beginning of an attempt to the first event of its stream.", seconds}
	timePerOutputChunk = instrument{"gen_ai.client.inference.time_per_output_chunk", "s", "Time between two events of a stream.", seconds}
	embeddingsDuration = instrument{"gen_ai.client.embeddings.duration", "s", "Duration of an embeddings call with all its attempts and waits.", seconds}
	embeddingsTokens   = instrument{"gen_ai.client.embeddings.operation.input_tokens", "{token}", "Input tokens of an embeddings call.", tokens}
	operationDuration  = instrument{"gen_ai.client.operation.duration", "s", "Duration of any other call to a provider.", seconds}
	doDuration         = instrument{"aiguard.do.duration", "s", "Duration of a Do with all its attempts and waits.", seconds}
	queueWait          = instrument{"aiguard.queue.wait", "s", "How long calls that had to wait for a slot or their route have waited.", seconds}
)

// Counters.
var (
	inputTokens      = instrument{"gen_ai.client.inference.usage.input_tokens", "{token}", "Input tokens, cached ones included.", nil}
	outputTokens     = instrument{"gen_ai.client.inference.usage.output_tokens", "{token}", "Output tokens, reasoning included.", nil}
	cacheReadTokens  = instrument{"gen_ai.client.inference.usage.cache_read.input_tokens", "{token}", "Input tokens read from the provider's cache.", nil}
	cacheWriteTokens = instrument{"gen_ai.client.inference.usage.cache_write.input_tokens", "{token}", "Input tokens written to the provider's cache.", nil}
	reasoningTokens  = instrument{"gen_ai.client.inference.usage.reasoning.output_tokens", "{token}", "Output tokens used for reasoning.", nil}

	refused   = instrument{"aiguard.refused", "{call}", "Calls that were refused before their first attempt.", nil}
	retries   = instrument{"aiguard.retries", "{attempt}", "Attempts that were repeated.", nil}
	timeouts  = instrument{"aiguard.timeouts", "{timeout}", "Deadlines of the guard that ran out.", nil}
	hedges    = instrument{"aiguard.hedges", "{attempt}", "Second attempts beside a slow first one.", nil}
	fallbacks = instrument{"aiguard.fallbacks", "{call}", "Calls made by a later alternative of a Fallback.", nil}
	cached    = instrument{"aiguard.cache.answers", "{answer}", "Answers by where they came from: hit, similar, shared or miss.", nil}
	outages   = instrument{"aiguard.outages", "{outage}", "Times that a route has gone down.", nil}
)

// Gauges, which are read from the guard when metrics are collected.
var (
	inFlight       = instrument{"aiguard.in_flight", "{weight}", "Weight of the calls in flight.", nil}
	waiting        = instrument{"aiguard.waiting", "{call}", "Calls that wait.", nil}
	limit          = instrument{"aiguard.limit", "{weight}", "Weight that may be in flight at present.", nil}
	buffered       = instrument{"aiguard.buffered", "By", "Answers held until their callers have read or closed them.", nil}
	routeInFlight  = instrument{"aiguard.route.in_flight", "{weight}", "Weight of a route's calls in flight.", nil}
	routePaused    = instrument{"aiguard.route.paused", "{route}", "1 while the provider has asked for a pause of the route.", nil}
	routeDown      = instrument{"aiguard.route.down", "{route}", "1 while the route is down.", nil}
	budgetReached  = instrument{"aiguard.budget.reached", "{key}", "Keys that have nearly spent a limit of package budget, until its window ends.", nil}
	tenantInFlight = instrument{"aiguard.tenant.in_flight", "{weight}", "Weight of a tenant's calls in flight.", nil}
	tenantWaiting  = instrument{"aiguard.tenant.waiting", "{call}", "Calls of a tenant that wait.", nil}
)

// operations maps API endpoints to the operation names of the conventions. Any other endpoint has its own name.
var operations = map[string]string{
	"chat.completions": opChat, "responses": opChat, "messages": opChat, "converse": opChat, "chat": opChat, "threads": opChat,
	"completions": "text_completion", "generate": "text_completion",
	"generateContent": "generate_content", "invoke": "generate_content",
	"embeddings": opEmbeddings, "embed": opEmbeddings, "embedContent": opEmbeddings,
	"images": "images", "audio": "audio", "moderations": "moderations",
}

const (
	opChat       = "chat"
	opEmbeddings = "embeddings"
)
