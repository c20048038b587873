package main

import (
	"fmt"

	"github.com/aiguard-go/aiguard/benchmarks/cost"
	"github.com/aiguard-go/aiguard/benchmarks/internal/chart"
	"github.com/aiguard-go/aiguard/benchmarks/internal/contender"
)

// drawn has the panels of the picture: kinds of work, with at most four contenders each.
var drawn = []struct {
	title, bench, unit string
	contenders         []string
}{
	{"A chat call over loopback", loopback, cost.SecPerOp, []string{contender.Aiguard, contender.Bare, contender.Failsafe, contender.OpenAI}},
	{"An event of a stream over loopback", events, cost.SecPerEvent, []string{contender.Aiguard, contender.Bare, contender.OpenAI}},
	{"Do around a no-op", "Do", cost.SecPerOp, wrapping},
	{"Do, 10,000 goroutines on 5 slots", "DoCrowd/10000", cost.SecPerOp, wrapping},
	{"100,000 goroutines served after a wait", "Drain", cost.SecPerOp, wrapping},
}

const loopback, events = "ChatLoopback", "StreamLoopback"

var wrapping = []string{contender.Aiguard, contender.Hand, contender.Failsafe, contender.Resilience}

// drawCost draws the time of each kind of work.
func drawCost(file string, r cost.Results) error {
	var panels []chart.Panel
	for _, d := range drawn {
		panel := chart.Panel{Title: d.title}
		for _, name := range d.contenders {
			v, _, ok := r.Median(d.bench, name, d.unit)
			if !ok {
				return fmt.Errorf("%s: no %s of %s", d.bench, d.unit, name)
			}
			panel.Bars = append(panel.Bars, chart.Bar{Contender: name, Value: v, Label: cost.Quantity(v, d.unit)})
		}
		panels = append(panels, panel)
	}
	return chart.SaveBars(file, finding(r), panels)
}

// finding returns the finding of the picture in one sentence.
func finding(r cost.Results) string {
	added := func(bench, unit string) string {
		ours, _, _ := r.Median(bench, contender.Aiguard, unit)
		bare, _, _ := r.Median(bench, contender.Bare, unit)
		return cost.Quantity(ours-bare, unit)
	}
	return fmt.Sprintf("aiguard adds %s to a chat call\nand %s to each event of a stream",
		added(loopback, cost.SecPerOp), added(events, cost.SecPerEvent))
}
