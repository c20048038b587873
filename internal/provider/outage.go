package provider

import "time"

// outage tracks an unreachable provider. After five lost requests in a row the route is down. The guard then rejects
// calls and sends one probe at a time. The next call that comes is the probe. The first answer ends the outage, even
// if it is an error status.
//
// A probe that takes much longer than lost requests usually do has probably reached a working provider. Then the next
// probe may follow, so that a provider with long answers gets more calls before the first answer.
type outage struct {
	failures int           // lost requests in a row
	took     time.Duration // average time until a request fails
	since    Instant       // 0: no outage
	probes   int           // in flight
	probeAt  Instant       // when the next probe may be sent
}

const (
	outageAfter = 5 // lost requests in a row

	// The time between two probes doubles for each minute of an outage. So the guard notices the end of a short
	// outage quickly, and does not flood the provider during a long one.
	probeEvery     = 500 * time.Millisecond
	probeEveryMost = 5 * time.Second

	promising = 4 // times as long as failures take
)

// lost counts a lost request and reports whether the outage begins with it.
func (o *outage) lost(now Instant, took time.Duration, jitter func(time.Duration) time.Duration) bool {
	o.failures++
	o.took = time.Duration(Average(float64(o.took), float64(took)))
	if o.since != 0 || o.failures < outageAfter {
		return false
	}
	o.since = now
	o.again(now, jitter)
	return true
}

// again schedules the next probe after a failed one.
func (o *outage) again(now Instant, jitter func(time.Duration) time.Duration) {
	minutes := time.Duration(now-o.since) / time.Minute
	every := min(probeEvery<<min(minutes, 8), probeEveryMost)
	o.probeAt = now + Instant(every+jitter(every/4))
}

func (o *outage) ready(now Instant) bool { return now >= o.probeAt }

// probe reports whether a probe is due, and counts the request that is sent now as that probe.
func (o *outage) probe(now Instant) bool {
	if !o.ready(now) {
		return false
	}
	o.probes++
	o.probeAt = now + Instant(max(promising*o.took, probeEvery/8))
	return true
}

// failed takes a probe out of those in flight. A probe of the pause before the outage is not one of them.
func (o *outage) failed() { o.probes = max(o.probes-1, 0) }

// unanswered records a probe without a result, so that the next call becomes a probe.
func (o *outage) unanswered(now Instant) {
	if o.failed(); o.probes == 0 {
		o.probeAt = now
	}
}

// over records that the provider is reachable, and returns when the outage began; 0: there was none.
func (o *outage) over() (since Instant) {
	since = o.since
	*o = outage{}
	return since
}
