package riverguard

import (
	"math/rand/v2"
	"time"

	"github.com/aiguard-go/aiguard"
)

// verdict is what River does with a job whose run failed.
type verdict int

const (
	retried   verdict = iota // River's own retry, which spends an attempt
	snoozed                  // again after a delay, without spending an attempt
	abandoned                // never again
)

const minSnooze = time.Second

// judge returns the verdict on a run that failed with err, and the delay of a snooze. The job may be snoozed for at
// most left.
func judge(err error, left time.Duration) (verdict, time.Duration) {
	e := aiguard.Explain(err)
	if e == nil {
		return retried, 0
	}
	switch e.Kind {
	case aiguard.ErrPromptTooLarge, aiguard.ErrRejected, aiguard.ErrQuota, aiguard.ErrUnauthorized, aiguard.ErrMisconfigured:
		return abandoned, 0
	case aiguard.ErrBudget:
		if e.RetryAfter <= 0 { // no window ends
			return abandoned, 0
		}
	case aiguard.ErrRateLimited, aiguard.ErrOverloaded:
	default:
		return retried, 0
	}
	delay := max(e.RetryAfter, minSnooze)
	if delay > left {
		return retried, 0
	}
	return snoozed, delay + rand.N(delay/4) // jitter, so that snoozed jobs do not come back all at once
}
