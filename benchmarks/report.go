package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/aiguard-go/aiguard/benchmarks/cost"
	"github.com/aiguard-go/aiguard/benchmarks/internal/contender"
)

// enoughRounds is the number of rounds for a published median.
const enoughRounds = 6

// report writes the results of rows as Markdown that is also readable in a terminal.
func report(w io.Writer, r cost.Results, rows []cost.Row, rounds int, now time.Time) error {
	var verdicts []cost.Verdict
	for _, row := range rows {
		vs, err := r.Judge(row)
		if err != nil {
			return err
		}
		verdicts = append(verdicts, vs...)
	}
	var missed []string
	targets := table{{"work", "target", "aiguard", "peer", "figure", ""}}
	for _, v := range verdicts {
		word, peer := "reached", ""
		if !v.Reached {
			word = "MISSED"
			missed = append(missed, strings.TrimSpace(fmt.Sprintf("- %s: %s, is %s. %s", v.Row.Work, v.Target.Text, v.String(), cost.Reasons[v.Row.Work])))
		}
		if v.Target.Peer != "" {
			peer = cost.Quantity(v.Peer, v.Target.Unit)
		}
		targets = append(targets, []string{v.Row.Work, v.Target.Text, cost.Quantity(v.Ours, v.Target.Unit), peer, v.String(), word})
	}

	var b bytes.Buffer
	fmt.Fprintf(&b, "# What a guard costs\n\nWritten by `make bench` on %s: %s on %s.\n", now.Format(time.DateOnly), runtime.Version(), machine())
	fmt.Fprintf(&b, "Figures are medians of %d rounds. In each round every contender ran once, in a separate process.\n"+
		"The figure of a target with a peer is the median of the rounds' own ratios or differences.\n", rounds)
	if rounds < enoughRounds {
		fmt.Fprintf(&b, "This was a quick run. Fewer than %d rounds prove little.\n", enoughRounds)
	}
	fmt.Fprintf(&b, "\n**%d of %d targets are reached.**", len(verdicts)-len(missed), len(verdicts))
	if len(missed) > 0 {
		fmt.Fprintf(&b, " Missed:\n\n%s", strings.Join(missed, "\n"))
	}
	b.WriteString("\n\n## Targets\n\n")
	targets.write(&b)
	b.WriteString("\n## All contenders\n\n± is the 95% confidence interval of the median. The ratio is relative to aiguard.\n\n")
	everybody(r, rows).write(&b)
	b.WriteString("\n" + legend)
	_, err := w.Write(b.Bytes())
	return err
}

// everybody returns the medians of all contenders.
func everybody(r cost.Results, rows []cost.Row) table {
	t := table{{"work", "contender", "median", "±", "ratio", "allocs/op", "B/op"}}
	for _, row := range rows {
		ours, _, _ := r.Median(row.Bench, contender.Aiguard, row.Unit)
		for i, name := range row.Contenders {
			v, spread, _ := r.Median(row.Bench, name, row.Unit)
			cells := []string{"", name, cost.Quantity(v, row.Unit), spread, fmt.Sprintf("%.3g", v/ours), "", ""}
			if i == 0 {
				cells[0] = row.Work
			}
			if row.How == cost.Repeated { // in other rows the surrounding work allocates too
				allocs, _, _ := r.Median(row.Bench, name, cost.AllocsPerOp)
				bytes, _, _ := r.Median(row.Bench, name, cost.BytesPerOp)
				cells[5], cells[6] = fmt.Sprintf("%.0f", allocs), fmt.Sprintf("%.0f", bytes)
			}
			t = append(t, cells)
		}
	}
	return t
}

const legend = `## The contenders

Each contender has the limits that it supports, with the same values: 5 slots, a queue of 100, 30 s for a call, 3 attempts.

- bare: plain go-openai.
- hand: careful code by hand with context.WithTimeout, a semaphore of x/sync and utf8.RuneCountInString. No retries.
- failsafe-go: retry(bulkhead(timeout)), as in its documentation. +breaker has a circuit breaker within the retries. Its bulkhead
  limits the wait, but not the number of waiting calls. In the rows about a full bulkhead it rejects at once.
- goresilience: bulkhead(retry(timeout)), as in its documentation. Its bulkhead ignores a cancelled context.
- gobreaker+backoff: retries around a circuit breaker around context.WithTimeout. It does not limit concurrency.
- channel: a buffered channel as a semaphore, without a timeout. It is the cheapest way for a goroutine to wait.
- aiguard-one-tenant: aiguard without tenants and priorities, in rows where aiguard has them.
- openai-go: the official SDK with its own retries and timeout. It does not limit concurrency.

The events of a stream differ in their text and in a padding, as OpenAI's do. The guard takes longer for events that differ in
other ways. Calls that wait to be cancelled share one context, and all read its cause at the same moment.

Requests per call do not show how many calls were answered: an open circuit breaker sends no requests. In the memory row, bare
has a single caller in most cases, and a watchdog stops it at 600 MB.
`

// machine describes the machine.
func machine() string {
	model := "an unknown processor"
	info, err := os.ReadFile("/proc/cpuinfo")
	if err == nil {
		for line := range strings.Lines(string(info)) {
			if name, value, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "model name" {
				model = strings.TrimSpace(value)
				break
			}
		}
	}
	return fmt.Sprintf("%s/%s, %s, %d cores", runtime.GOOS, runtime.GOARCH, model, runtime.NumCPU())
}

// table is a Markdown table with columns of even width. The first line is the header.
type table [][]string

func (t table) write(w *bytes.Buffer) {
	widths := make([]int, len(t[0]))
	for _, cells := range t {
		for i, cell := range cells {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	for i, cells := range t {
		w.WriteString("|")
		for j, cell := range cells {
			fmt.Fprintf(w, " %s%s |", cell, strings.Repeat(" ", widths[j]-utf8.RuneCountInString(cell)))
		}
		w.WriteString("\n")
		if i == 0 {
			w.WriteString("|")
			for _, width := range widths {
				w.WriteString(strings.Repeat("-", width+2) + "|")
			}
			w.WriteString("\n")
		}
	}
}
