package budget

import (
	"cmp"
	"fmt"
	"strings"
	"unicode"
)

// Exceeded is the cause of an aiguard.ErrBudget. Find it with errors.As. Its text has amounts and the names of the limit and
// of models, and never a key, a prompt or an answer.
type Exceeded struct {
	Limit string // Limit.Name or Run.Name
	Run   bool   // a Run rejected the call
	Key   string // of the limit, such as the tenant or the model

	What  string // the limited amount: "calls", "tokens", "cost" or "time"
	Spent int64  // includes the reservations of calls in flight; cost is in billionths, time in nanoseconds
	Asked int64  // what the rejected call needs
	Max   int64

	Models []ModelSpending // what a Run was spent on
}

// Error returns LogText after the name of the package.
func (e *Exceeded) Error() string { return "budget: " + e.LogText() }

// LogText returns what was spent on which models, in less than 500 bytes.
func (e *Exceeded) LogText() string {
	var b strings.Builder
	if b.WriteString("limit"); e.Run {
		b.Reset()
		b.WriteString("run")
	}
	if e.Limit != "" {
		fmt.Fprintf(&b, " %q", clip(printable(e.Limit), 64))
	}
	u := unitOf(e.What)
	fmt.Fprintf(&b, ": %s %s of %s spent", e.What, u.print(e.Spent), u.print(e.Max))
	if e.Asked > 0 {
		fmt.Fprintf(&b, ", %s more asked for", u.print(e.Asked))
	}
	const most = 3
	for i, m := range e.Models {
		if i == most {
			fmt.Fprintf(&b, "; and %d more models", len(e.Models)-most)
			break
		}
		fmt.Fprintf(&b, "; %s: %d calls, %d tokens", cmp.Or(clip(printable(m.Model), 64), "no model"), m.Calls, m.Tokens)
		if m.Cost > 0 {
			fmt.Fprintf(&b, ", cost %v", m.Cost)
		}
	}
	return b.String()
}

// unpriced is the refusal of a call whose model has no price.
type unpriced struct{ model string }

func (e unpriced) Error() string { return "budget: " + e.LogText() }

func (e unpriced) LogText() string {
	return fmt.Sprintf("no price for model %q; add one to Config.Prices, or set Config.FreeUnpriced", clip(printable(e.model), 128))
}

func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}
