package aiguard

// Values of Error.Phase. A phase of time sets Limit. The others set Max, and Size if it is known, in the unit stated
// here.
const (
	PhasePrompt       = "prompt"        // characters of the prompt
	PhasePromptTokens = "prompt_tokens" // tokens of the prompt
	PhaseRequest      = "request"       // bytes of the request body
	PhaseOutput       = "output_tokens" // output tokens that MaxOutputTokens allows
	PhaseWeight       = "weight"        // Call.Weight, against MaxConcurrent
	PhaseBudget       = "budget"        // no unit: Config.Budget refused the call, or did not decide within QueueTimeout (Limit)
	PhaseQueue        = "queue"         // waiting calls if the queue was full; otherwise Limit is QueueTimeout
	PhaseMemory       = "memory"        // bytes of live heap, or of buffered answers
	PhasePause        = "pause"         // no unit: the provider asked for a pause, see RetryAfter
	PhasePace         = "pace"          // no unit: the route's rate limit is used up, see RetryAfter
	PhaseOutage       = "outage"        // no unit: the provider is down, see RetryAfter
	PhaseConnect      = "connect"       // time to connect, if the attempt timed out
	PhaseHeaders      = "headers"       // no unit: the response headers are too large or not acceptable
	PhaseCall         = "call"          // time: CallTimeout or Call.Timeout
	PhaseFirstEvent   = "first_event"   // time to the first event of a stream
	PhaseStreamIdle   = "stream_idle"   // time between two events of a stream
	PhaseStream       = "stream"        // time of a whole stream
	PhaseResponse     = "response"      // bytes of the answer
	PhaseEvent        = "event"         // bytes of one event of a stream
	PhaseJSONShape    = "json_shape"    // JSON objects and arrays in the answer
	PhaseErrorBody    = "error_body"    // bytes of the body of a failure
	PhaseTotal        = "total"         // time: TotalTimeout
	PhaseShare        = "share"         // time: an alternative's share of the caller's time in Fallback
	PhaseTask         = "task"          // time: TaskTimeout; in package task also bytes of JSON
)
