package aiguard

// The values of Error.Phase. A phase of time sets Limit; the others set Max, and Size where it is known, in the unit stated.
const (
	PhasePrompt       = "prompt"        // characters of the prompt
	PhasePromptTokens = "prompt_tokens" // tokens of the prompt
	PhaseRequest      = "request"       // bytes of the request's body
	PhaseOutput       = "output_tokens" // tokens of output that MaxOutputTokens allows
	PhaseWeight       = "weight"        // Call.Weight, against MaxConcurrent
	PhaseBudget       = "budget"        // none: Config.Budget refused; or Limit is QueueTimeout, within which it had to decide
	PhaseQueue        = "queue"         // waiting calls where the queue was full; else Limit is QueueTimeout
	PhaseMemory       = "memory"        // bytes of live heap, or of buffered answers
	PhasePause        = "pause"         // none: the provider asked for a pause, see RetryAfter
	PhasePace         = "pace"          // none: the route's rate limit has no room yet, see RetryAfter
	PhaseOutage       = "outage"        // none: the provider is down, see RetryAfter
	PhaseConnect      = "connect"       // time to connect, where the attempt timed out
	PhaseHeaders      = "headers"       // none: the response's headers are too large or not acceptable
	PhaseCall         = "call"          // time: CallTimeout or Call.Timeout
	PhaseFirstEvent   = "first_event"   // time to the first event of a stream
	PhaseStreamIdle   = "stream_idle"   // time between two events of a stream
	PhaseStream       = "stream"        // time of a whole stream
	PhaseResponse     = "response"      // bytes of the answer
	PhaseEvent        = "event"         // bytes of one event of a stream
	PhaseJSONShape    = "json_shape"    // JSON objects and arrays in the answer
	PhaseErrorBody    = "error_body"    // bytes of a failure's body
	PhaseTotal        = "total"         // time: TotalTimeout
	PhaseShare        = "share"         // time: an alternative's part of the caller's time in Fallback
	PhaseTask         = "task"          // time: TaskTimeout
)
