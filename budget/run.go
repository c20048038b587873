package budget

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/aiguard-go/aiguard"
)

// Run limits what the calls of one task may spend together, such as the calls of an agent's loop. In each field zero means
// no limit.
type Run struct {
	Name   string        // in errors
	Calls  int64         // attempts that were sent, except those that the provider refused
	Tokens int64         // input and output
	Cost   Money         // needs the prices of the models that are called
	Time   time.Duration // since WithRun. It does not end a call in flight; use a context with a deadline for that
}

type runKey struct{}

// run is a Run in progress.
type run struct {
	Run
	parent *run
	start  time.Time

	mu       *sync.Mutex // of the outermost run: a call spends from all runs around it in one step
	spent    amounts
	reserved amounts
	unsure   int64 // calls whose usage is estimated
	unpriced int64
	models   map[string]*amounts
}

// WithRun returns a context whose calls spend from r: all calls that are made with it or with a context derived from it, in
// any goroutine and through any SDK. Their Guard needs a *Budget as its Config.Budget. A call that might exceed a limit is
// rejected with aiguard.ErrBudget before it is sent. The error tells what was spent on which models. Reservations of calls
// in flight count as spent. A run inside another run spends from both. WithRun panics if ctx is nil or a field of r is
// negative.
func WithRun(ctx context.Context, r Run) context.Context {
	if ctx == nil {
		panic("budget: WithRun: nil context")
	}
	for field, n := range map[string]int64{"Calls": r.Calls, "Tokens": r.Tokens, "Cost": int64(r.Cost), "Time": int64(r.Time)} {
		if n < 0 {
			panic(fmt.Sprintf("budget: WithRun: Run.%s is %d; want a positive limit, or 0 for none", field, n))
		}
	}
	in := &run{Run: r, parent: runOf(ctx), start: time.Now(), models: make(map[string]*amounts)}
	if in.parent != nil {
		in.mu = in.parent.mu
	} else {
		in.mu = new(sync.Mutex)
	}
	return context.WithValue(ctx, runKey{}, in)
}

func runOf(ctx context.Context) *run {
	r, _ := ctx.Value(runKey{}).(*run)
	return r
}

// Spending is what a run has spent.
type Spending struct {
	Calls, Tokens int64
	Cost          Money
	Estimated     int64 // the part of Calls whose usage is an estimate; Tokens and Cost include it
	Unpriced      int64 // the part of Calls whose model has no price; Cost does not include it

	// The reservations of calls in flight.
	ReservedCalls, ReservedTokens int64
	ReservedCost                  Money

	Elapsed time.Duration
	Models  []ModelSpending // the most expensive first; after 20 models, all others are one entry with Model ""
}

// ModelSpending is what a run has spent on one model.
type ModelSpending struct {
	Model         string // at most 128 bytes of its name, without unprintable characters
	Calls, Tokens int64
	Cost          Money
}

// Spent returns what the innermost run of ctx has spent so far, including the runs inside it. It is zero without a run.
func Spent(ctx context.Context) Spending {
	r := runOf(ctx)
	if r == nil {
		return Spending{}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return Spending{
		Calls: r.spent.calls, Tokens: r.spent.tokens, Cost: Money(r.spent.cost), Estimated: r.unsure, Unpriced: r.unpriced,
		ReservedCalls: r.reserved.calls, ReservedTokens: r.reserved.tokens, ReservedCost: Money(r.reserved.cost),
		Elapsed: time.Since(r.start), Models: r.byModel(),
	}
}

func (r *run) byModel() []ModelSpending {
	all := make([]ModelSpending, 0, len(r.models))
	for model, a := range r.models {
		all = append(all, ModelSpending{model, a.calls, a.tokens, Money(a.cost)})
	}
	slices.SortFunc(all, func(a, b ModelSpending) int {
		return cmp.Or(cmp.Compare(b.Cost, a.Cost), cmp.Compare(b.Tokens, a.Tokens), cmp.Compare(b.Calls, a.Calls), cmp.Compare(a.Model, b.Model))
	})
	return all
}

// limitsCost reports whether the run or one around it limits the cost.
func (r *run) limitsCost() bool {
	for ; r != nil; r = r.parent {
		if r.Cost > 0 {
			return true
		}
	}
	return false
}

// reserve takes a from the run and those around it, or from none of them if one of them has less left.
func (r *run) reserve(a amounts) error {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for of := r; of != nil; of = of.parent {
		if e := of.exceeded(a); e != nil {
			return &aiguard.Error{Kind: aiguard.ErrBudget, Phase: aiguard.PhaseBudget, Err: e}
		}
	}
	for of := r; of != nil; of = of.parent {
		of.reserved.add(a)
	}
	return nil
}

// exceeded returns the error for a reservation of a, or nil if there is room.
func (r *run) exceeded(a amounts) *Exceeded {
	e := &Exceeded{Run: true, Limit: r.Name}
	taken := r.spent
	taken.add(r.reserved)
	if elapsed := time.Since(r.start); r.Time > 0 && elapsed >= r.Time {
		e.What, e.Spent, e.Max = elapsedTime.String(), int64(elapsed), int64(r.Time)
	} else {
		for u, most := range [...]int64{calls: r.Calls, tokens: r.Tokens, cost: int64(r.Cost)} {
			if u := unit(u); most > 0 && taken.of(u) > most-a.of(u) {
				e.What, e.Spent, e.Asked, e.Max = u.String(), taken.of(u), a.of(u), most
				break
			}
		}
	}
	if e.What == "" {
		return nil
	}
	e.Models = r.byModel()
	return e
}

// settle gives back what was reserved, and notes what was used in its place.
func (r *run) settle(reserved, used amounts, model string, unsure, priced bool) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for ; r != nil; r = r.parent {
		r.reserved.sub(reserved)
		if used.calls == 0 {
			continue
		}
		r.spent.add(used)
		r.ofModel(model).add(used)
		if unsure {
			r.unsure++
		}
		if !priced {
			r.unpriced++
		}
	}
}

// maxModels is the number of models that a run counts separately.
const maxModels = 20

func (r *run) ofModel(model string) *amounts {
	model = printable(clip(model, 125))
	a := r.models[model]
	if a == nil {
		if len(r.models) >= maxModels {
			model = ""
		}
		if a = r.models[model]; a == nil {
			a = new(amounts)
			r.models[model] = a
		}
	}
	return a
}

// amounts are what a call takes, in each unit.
type amounts struct{ calls, tokens, cost int64 }

func (a *amounts) add(b amounts) {
	a.calls, a.tokens, a.cost = addUp(a.calls, b.calls), addUp(a.tokens, b.tokens), addUp(a.cost, b.cost)
}

func (a *amounts) sub(b amounts) {
	a.calls, a.tokens, a.cost = a.calls-b.calls, a.tokens-b.tokens, a.cost-b.cost
}

func (a *amounts) of(u unit) int64 {
	switch u {
	case calls:
		return a.calls
	case tokens:
		return a.tokens
	}
	return a.cost
}

// unit is what is counted.
type unit int8

const (
	calls unit = iota
	tokens
	cost
	elapsedTime
)

func (u unit) String() string { return [...]string{"calls", "tokens", "cost", "time"}[u] }

// unitOf returns the unit with this name.
func unitOf(name string) unit {
	u := unit(0)
	for u < elapsedTime && u.String() != name {
		u++
	}
	return u
}

// print formats an amount.
func (u unit) print(n int64) string {
	switch u {
	case cost:
		return Money(n).String()
	case elapsedTime:
		return time.Duration(n).Round(time.Millisecond).String()
	}
	if n == math.MaxInt64 {
		return "too many"
	}
	return fmt.Sprint(n)
}
