package provider

import "time"

// outage is what is known of a provider that is not there. Five requests in a row that found none take its route down:
// then the guard answers in its stead, and sends one probe at a time. The probe is the next call that comes. The first
// answer, be it a refusal, ends the outage.
//
// A probe that is out for much longer than those before it took to fail has probably found the provider at work: then
// the next may follow, so that a provider with long answers is not kept waiting for the first of them.
type outage struct {
	failures int           // in a row
	took     time.Duration // average time that a request takes to fail
	since    Instant       // 0: there is none
	probes   int           // under way
	probeAt  Instant       // when the next may be sent
}

const (
	outageAfter = 5 // requests in a row

	// The time between two probes doubles for each minute of an outage: a short one is over soon after it ends, and a long
	// one is not hammered.
	probeEvery     = 500 * time.Millisecond
	probeEveryMost = 5 * time.Second

	promising = 4 // times as long as failures take
)

// lost notes a request that found no provider, and reports whether the outage begins with it.
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

// again sets the time of the next probe after one that failed.
func (o *outage) again(now Instant, jitter func(time.Duration) time.Duration) {
	minutes := time.Duration(now-o.since) / time.Minute
	every := min(probeEvery<<min(minutes, 8), probeEveryMost)
	o.probeAt = now + Instant(every+jitter(every/4))
}

func (o *outage) ready(now Instant) bool { return now >= o.probeAt }

// probe makes the request that is sent now a probe, if one is due.
func (o *outage) probe(now Instant) bool {
	if !o.ready(now) {
		return false
	}
	o.probes++
	o.probeAt = now + Instant(max(promising*o.took, probeEvery/8))
	return true
}

// unanswered notes the end of a probe that learned nothing: the next call may ask.
func (o *outage) unanswered(now Instant) {
	if o.probes--; o.probes == 0 {
		o.probeAt = now
	}
}

// over notes that the provider is there, and returns when the outage began; 0: there was none.
func (o *outage) over() (since Instant) {
	since = o.since
	*o = outage{}
	return since
}
