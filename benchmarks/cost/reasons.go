package cost

// Reasons says, by Row.Work, what the time or memory of a row goes to. The report prints it if a target is missed.
var Reasons = map[string]string{
	"Do, 1,000 goroutines on 5 slots":  crowded,
	"Do, 10,000 goroutines on 5 slots": crowded,

	"Do, 1,000 goroutines of 100 tenants and all priorities":  fairness,
	"Do, 10,000 goroutines of 100 tenants and all priorities": fairness,

	"refusing a call, slots and queue full": refusal,
	"refusing the calls of 10,000 tenants":  refusal,

	"CreateChatCompletion, provider in memory": "The peer only waits for a slot. The guard also checks and judges the answer's JSON " +
		"(about 0.6 µs), and gives the attempt a context that it can end, a timer, and a URL and headers of its own (about 1 µs).",
	"CreateChatCompletion over loopback": "As in memory. A microsecond of work costs about two here: meanwhile a thread goes to " +
		"sleep, which must be woken for the answer.",
	"openai-go over HTTPClient, a prompt of 20,000 characters": "As for CreateChatCompletion, and one scan of the request.",
	"stream of 1,000 events, provider in memory": "Each event is compared with the one before it and copied once more: about 0.2 µs. " +
		"By processor time that is 1.05 × bare. By the clock it is more where other programs use the processors.",
	"stream of 1,000 chunks, each of another shape": "Each event is checked as JSON (0.25 µs), read for its meaning (0.15 µs), and " +
		"compared with what go-openai can decode (0.2 µs). Events of the same shape skip all three.",

	"Messages stream of 1,000 events, net/http": "Each event is compared with the one before it and copied once more: about 0.2 µs. " +
		"By processor time that is 1.12 to 1.14 × bare.",

	"100,000 goroutines waiting in Do, memory of each": "A call waits for its slot and for its caller's context at once. For that the " +
		"runtime keeps two records of 112 bytes; the peer does not heed the context. The call's state, its place in line and its channel take 528 bytes.",
	"100,000 goroutines waiting in Do, then served": "With so many calls, the memory of each is out of the processor's cache when its " +
		"turn comes: stack, state, place in line, channel.",
	"100,000 goroutines waiting in Do, then cancelled": "A call reports the cause of its caller's cancellation. context.Cause takes a " +
		"lock that cancel holds until it has woken all 100,000 goroutines.",
}

const (
	crowded = "Almost all of the time is the runtime's: it parks and wakes a goroutine for each call. Where other programs use the " +
		"processors, the figures of all contenders double in some rounds."
	fairness = "An admission moves the tenant in a heap, by the service that it has received. The state of tenant and heap is often " +
		"in the cache of another processor, which has changed it last."
	refusal = "A third of the time makes the Error of 224 bytes that the caller gets, and a sixth is the reading of the clock."
)
