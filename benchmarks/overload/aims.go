package main

// aim is a target for aiguard's defaults at the highest load of a scenario, for the median of all seeds.
type aim struct {
	scenario string
	column
	what    string
	atLeast bool // target is a lower bound instead of an upper one
	target  float64
}

var aims = []aim{
	{fits.name, goodput, "goodput, of the provider's capacity", true, 0.98},
	{fits.name, inOutage, "requests per answer, with an outage of a minute", false, 1.15},
	{fits.name, p50, "median time of answered calls (a second of work)", false, 3},
	{fits.name, recovery, "recovery after the outage", false, 1},
	{tooHigh.name, goodput, "limit too high: goodput", true, 0.92},
	{rateLimit.name, requests, "rate limit: requests per answer", false, 1.03},
	{described.name, requests, "rate limit in headers: requests per answer", false, 1.03},
	{described.name, limits, "rate limit in headers: 429s after the first answer", false, 0},
	{deadlines.name, soon, "10 s deadlines: refusals that come within 100 ms", true, 0.99},
	{deadlines.name, timedOut, "10 s deadlines: calls that time out in the queue", false, 0.01},
	{deadlines.name, couldHave, "10 s deadlines: refused calls for which there was room", false, 0.03},
	{tenants.name, lightest, "heavy tenant: answered calls of the light tenant with the fewest", true, 0.95},
	{tenants.name, goodput, "heavy tenant: goodput of all", true, 0.98},
	{down.name, slowdown, "first choice down: p99, × the second choice alone", false, 1.2},
	{paused.name, slowdown, "first choice paused: p99, × the second choice alone", false, 1.2},
	{limitedAway.name, slowdown, "first choice rate limited: p99, × the second choice alone", false, 1.2},
}

// reached reports whether v meets the aim.
func (a aim) reached(v float64) bool {
	if a.atLeast {
		return v >= a.target
	}
	return v <= a.target
}

func (a aim) String() string {
	if a.atLeast {
		return "≥ " + a.show(a.target)
	}
	return "≤ " + a.show(a.target)
}
