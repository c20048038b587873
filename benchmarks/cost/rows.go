package cost

import (
	"fmt"

	"golang.org/x/perf/benchunit"

	"github.com/aiguard-go/aiguard/benchmarks/internal/contender"
)

// Row is one kind of work with its contenders, its benchmark and its targets.
type Row struct {
	Work       string
	Bench      string // the benchmark in this package, without "Benchmark"
	Contenders []string
	How        How
	Unit       string // unit of the reported figures
	Targets    []Target
}

// How is the way to measure a row. All rows except MemoryRows are measured once per round.
type How int

const (
	Repeated   How = iota // a benchmark that repeats its work for -benchtime
	OneShot               // a benchmark that does much work once
	Virtual               // a test in virtual time that prints the format of benchmarks
	MemoryRows            // the root module's memory test, run once
)

// Rows lists all measurements and targets.
var Rows = []Row{
	{"Do around a no-op, uncontended", "Do", contender.Wrapping, Repeated, SecPerOp, []Target{
		ratio(SecPerOp, 0.5, contender.Hand), ratio(SecPerOp, 0.2, contender.Failsafe), atMost(AllocsPerOp, 2)}},
	{"Do, 1,000 goroutines on 5 slots", "DoCrowd/1000", contender.Limiting, Repeated, SecPerOp, []Target{
		ratio(SecPerOp, 0.8, contender.Hand), ratio(SecPerOp, 0.4, contender.Failsafe)}},
	{"Do, 10,000 goroutines on 5 slots", "DoCrowd/10000", contender.Limiting, Repeated, SecPerOp, []Target{
		ratio(SecPerOp, 0.8, contender.Hand), ratio(SecPerOp, 0.4, contender.Failsafe)}},
	{"Do, 1,000 goroutines of 100 tenants and all priorities", "DoCrowdTenants/1000", contender.Sharing, Repeated, SecPerOp, []Target{
		ratio(SecPerOp, 1.2, contender.OneTenant)}},
	{"Do, 10,000 goroutines of 100 tenants and all priorities", "DoCrowdTenants/10000", contender.Sharing, Repeated, SecPerOp, []Target{
		ratio(SecPerOp, 1.2, contender.OneTenant)}},
	{"refusing a call, slots and queue full", "Refused", contender.Refusing, Repeated, SecPerOp, []Target{
		ratio(SecPerOp, 0.2, contender.Failsafe), atMost(AllocsPerOp, 2)}},
	{"refusing the calls of 10,000 tenants", "RefusedTenants", contender.Refusing, Repeated, SecPerOp, []Target{
		ratio(SecPerOp, 0.2, contender.Failsafe), atMost(AllocsPerOp, 2)}},

	{"CreateChatCompletion, provider in memory", "Chat", contender.Chatting, Repeated, SecPerOp, []Target{
		ratio(SecPerOp, 1, contender.Hand)}},
	{"CreateChatCompletion over loopback", "ChatLoopback", contender.Chatting, Repeated, SecPerOp, []Target{
		ratio(SecPerOp, 1, contender.Hand)}},
	{"200 chunked answers over loopback", "Connections/answers", contender.Chatting, OneShot, connsPerCall, []Target{
		atLeast(Reused, 99)}},
	{"200 streams over loopback", "Connections/streams", contender.Streaming, OneShot, connsPerCall, []Target{
		atLeast(Reused, 99)}},
	{"stream of 1,000 events, provider in memory", "Stream", contender.Streaming, Repeated, SecPerEvent, []Target{
		ratio(SecPerEvent, 1.10, contender.Bare), more(allocsPerEvent, 0.01, contender.Bare)}},
	{"stream of 1,000 events over loopback", "StreamLoopback", contender.Streaming, Repeated, SecPerEvent, []Target{
		ratio(SecPerEvent, 1.10, contender.Bare)}},

	{"openai-go over HTTPClient, a prompt of 20,000 characters", "SDKPrompt", prompting, Repeated, SecPerOp, []Target{
		ratio(SecPerOp, 1.10, contender.OpenAI)}},
	{"stream of 1,000 chunks, each of another shape", "StreamShapes/chunks", shaping, Repeated, SecPerEvent, []Target{
		ratio(SecPerEvent, 1.15, contender.Bare), more(allocsPerEvent, 0.01, contender.Bare)}},
	{"Responses stream of 1,000 events, openai-go", "StreamShapes/responses", responding, Repeated, SecPerEvent, []Target{
		ratio(SecPerEvent, 1.15, contender.OpenAI), more(allocsPerEvent, 0.01, contender.OpenAI)}},
	{"Messages stream of 1,000 events, net/http", "StreamShapes/anthropic", shaping, Repeated, SecPerEvent, []Target{
		ratio(SecPerEvent, 1.15, contender.Bare), more(allocsPerEvent, 0.01, contender.Bare)}},
	{"reading a request of 1 MiB", "ReadRequest/messages", reading, Repeated, BytesPerSec, []Target{
		atLeast(BytesPerSec, 500e6), atMost(BytesPerOp, 1000)}},
	{"reading a request of 1 MiB, nested 10,000 deep", "ReadRequest/nested", reading, Repeated, SecPerOp, []Target{
		atMost(SecPerOp, 10e-3)}},

	{"CheckPrompt, 20,000 ASCII characters", "Prompt/ascii", checking, Repeated, SecPerOp, []Target{
		atMost(SecPerOp, 10e-6), atMost(AllocsPerOp, 0)}},
	{"CheckPrompt, 20,000 Chinese characters", "Prompt/chinese", checking, Repeated, SecPerOp, []Target{
		atMost(SecPerOp, 10e-6), atMost(AllocsPerOp, 0)}},
	{"CheckPrompt, 20,000 characters of many scripts", "Prompt/mixed", checking, Repeated, SecPerOp, []Target{
		atMost(SecPerOp, 10e-6), atMost(AllocsPerOp, 0)}},
	{"CheckPrompt, fewer bytes than the limit", "Prompt/short", checking, Repeated, SecPerOp, []Target{
		atMost(SecPerOp, 100e-9), atMost(AllocsPerOp, 0)}},

	{"100,000 goroutines waiting in Do, memory of each", "Drain", contender.Waiters, OneShot, bytesPerWaiter, []Target{
		ratio(bytesPerWaiter, 1.08, contender.Channel)}},
	{"100,000 goroutines waiting in Do, then served", "Drain", contender.Waiters, OneShot, SecPerOp, []Target{
		ratio(SecPerOp, 0.85, contender.Hand)}},
	{"100,000 goroutines waiting in Do, then cancelled", "Cancel", contender.Leaving, OneShot, SecPerOp, []Target{
		ratio(SecPerOp, 0.5, contender.Hand)}},

	{"50 callers at once of the worst answers, peak RSS", "Memory", []string{contender.Aiguard, contender.Bare}, MemoryRows, PeakBytes, []Target{
		atMost(PeakBytes, 100e6)}},
	{"provider down for a minute, 100 callers", "Outage", contender.Chatting, Virtual, requestsPerCall, []Target{
		atMost(requestsPerCall, 1.2)}},
}

// Contenders of a row besides aiguard. In most rows that is the SDK under aiguard.
var (
	checking   = []string{contender.Aiguard, contender.Hand}
	prompting  = []string{contender.Aiguard, contender.OpenAI}
	shaping    = []string{contender.Aiguard, contender.Bare}
	responding = []string{contender.Aiguard, contender.OpenAI}
	reading    = []string{contender.Aiguard}
)

// Units as x/perf defines them: seconds and bytes.
const (
	SecPerOp        = "sec/op"
	AllocsPerOp     = "allocs/op"
	BytesPerOp      = "B/op"
	SecPerEvent     = "sec/event"
	allocsPerEvent  = "allocs/event"
	connsPerCall    = "conns/call"
	Reused          = "%reused"
	bytesPerWaiter  = "B/waiter"
	BytesPerSec     = "B/s"
	requestsPerCall = "requests/call"
	PeakBytes       = "B"
)

// Target is a bound for aiguard's figures in a unit, often relative to a peer's.
type Target struct {
	Unit string
	Peer string // "": no peer
	Text string
	// measure computes the figure of a round, if there is a peer. write formats it.
	measure func(aiguard, peer float64) float64
	reached func(figure float64) bool
	write   func(figure float64) string
}

func ratio(unit string, bound float64, peer string) Target {
	return Target{unit, peer, fmt.Sprintf("≤ %g × %s", bound, peer), quotient, func(x float64) bool { return x <= bound }, times}
}

func more(unit string, bound float64, peer string) Target {
	return Target{unit, peer, fmt.Sprintf("≤ %s + %g %s", peer, bound, unit),
		func(aiguard, peer float64) float64 { return aiguard - peer },
		func(x float64) bool { return x <= bound+1e-9 }, // tolerance for a difference of two floats
		func(x float64) string { return fmt.Sprintf("%+.3g", x) }}
}

func atMost(unit string, bound float64) Target {
	return absolute(unit, "≤ ", bound, func(x float64) bool { return x <= bound })
}

func atLeast(unit string, bound float64) Target {
	return absolute(unit, "≥ ", bound, func(x float64) bool { return x >= bound })
}

func absolute(unit, relation string, bound float64, reached func(float64) bool) Target {
	return Target{unit, "", relation + Quantity(bound, unit), nil, reached, func(x float64) string { return Quantity(x, unit) }}
}

func quotient(aiguard, peer float64) float64 { return aiguard / peer }
func times(x float64) string                 { return fmt.Sprintf("%.3g ×", x) }

// Quantity formats a figure with its unit.
func Quantity(v float64, unit string) string {
	switch unit {
	case SecPerOp, SecPerEvent:
		return scaled(v, "s")
	case bytesPerWaiter, BytesPerOp, PeakBytes:
		return scaled(v, "B")
	case BytesPerSec:
		return scaled(v, "B/s")
	case Reused:
		return fmt.Sprintf("%.4g %% reused", v)
	}
	return fmt.Sprintf("%.4g %s", v, unit)
}

func scaled(v float64, unit string) string {
	if v == 0 {
		return "0 " + unit
	}
	s := benchunit.CommonScale([]float64{v}, benchunit.Decimal)
	return fmt.Sprintf("%.3g %s%s", v/s.Factor, s.Prefix, unit)
}
