package main

import (
	"gonum.org/v1/plot"
	"gonum.org/v1/plot/vg"

	"github.com/aiguard-go/aiguard/benchmarks/cost"
	"github.com/aiguard-go/aiguard/benchmarks/internal/chart"
)

// drawCost draws what one call costs, in four panels.
func drawCost(file string, r cost.Results) error {
	panels := []string{"Do", "DoCrowd/10000", "Refused", "Chat"}
	var plots []*plot.Plot
	for _, row := range cost.Rows {
		for _, bench := range panels {
			if row.Bench != bench {
				continue
			}
			var bars []chart.Bar
			for _, name := range row.Contenders {
				v, _, _ := r.Median(bench, name, row.Unit)
				bars = append(bars, chart.Bar{Name: name, Value: v, Label: cost.Quantity(v, row.Unit)})
			}
			p, err := chart.Bars(row.Work, bars)
			if err != nil {
				return err
			}
			plots = append(plots, p)
		}
	}
	for _, p := range plots[2:] {
		p.X.Label.Text = "time per call; shorter is better"
	}
	return chart.Save(file, 9*vg.Inch, 4.6*vg.Inch, [][]*plot.Plot{plots[:2], plots[2:]})
}
