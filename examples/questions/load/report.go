package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"
)

// report holds the results of the load test.
type report struct {
	latencies [kinds][]time.Duration // sorted
	improper  error                  // the first five
	done      int
}

func newReport(answers []answer, ended map[string]int) *report {
	r := &report{done: ended["succeeded"]}
	for _, a := range answers {
		r.latencies[a.kind] = append(r.latencies[a.kind], a.latency)
		if a.kind == improper && len(r.latencies[improper]) <= 5 {
			r.improper = errors.Join(r.improper, a.err)
		}
	}
	for _, l := range r.latencies {
		slices.Sort(l)
	}
	return r
}

// quantile returns the q-quantile of the latencies of a kind.
func (r *report) quantile(k kind, q float64) time.Duration {
	l := r.latencies[k]
	if len(l) == 0 {
		return 0
	}
	return l[min(int(q*float64(len(l))), len(l)-1)]
}

func (r *report) print(out io.Writer) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(w, "answer\tcount\tp50\tp99\tmost\t\n")
	for k := range kinds {
		fmt.Fprintf(w, "%v\t%d\t", k, len(r.latencies[k]))
		for _, q := range []float64{0.5, 0.99, 1} {
			fmt.Fprintf(w, "%v\t", r.quantile(k, q).Round(10*time.Microsecond))
		}
		fmt.Fprintln(w)
	}
	_ = w.Flush()
}
