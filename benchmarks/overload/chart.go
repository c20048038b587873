package main

import (
	"fmt"
	"math"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"

	"github.com/aiguard-go/aiguard/benchmarks/internal/chart"
	peers "github.com/aiguard-go/aiguard/benchmarks/internal/contender"
)

// panel is a chart of a figure over the load.
type panel struct {
	*plot.Plot
	column
	unit float64 // unit of the axis, in units of the figure
}

// drawChart draws three figures over the load: goodput, requests per answer with an outage, and the time of an answer.
func drawChart(path string, r *report) error {
	useful := newPlot("Goodput, % of the provider's capacity", 0, 110, 0, 25, 50, 75, 100)
	sent := newPlot("Requests per answer, with an outage of a minute", 1, 200, 1, 2, 5, 10, 20, 50, 100)
	sent.Y.Scale = plot.LogScale{}
	took := newPlot("Median time of answered calls, in seconds", 0, 45, 0, 10, 20, 30, 40)
	took.X.Label.Text = "load, × the provider's capacity"

	var names []string
	var plots []*plot.Plot
	for _, in := range []panel{{useful, goodput, 100}, {sent, inOutage, 1}, {took, p50, 1}} {
		for _, c := range fits.clients { // aiguard's line is the broadest and is drawn first, below the others
			if err := in.draw(r, c.name); err != nil {
				return err
			}
		}
		plots = append(plots, in.Plot)
	}
	for _, c := range fits.clients {
		names = append(names, c.name)
	}
	return chart.Save(path, finding(r), names, 185, plots)
}

// draw adds the line of a contender.
func (p panel) draw(r *report, contender string) error {
	var at plotter.XYs
	for _, load := range fits.loads {
		v := p.median(r.results[key{fits.name, contender, load}])
		if !math.IsInf(v, 0) && !math.IsNaN(v) { // no value: not drawn
			at = append(at, plotter.XY{X: load, Y: min(p.unit*v, p.Y.Max)})
		}
	}
	if len(at) == 0 {
		return nil
	}
	line, marks, err := plotter.NewLinePoints(at)
	if err != nil {
		return err
	}
	style := chart.StyleOf(contender)
	line.LineStyle, marks.GlyphStyle = style.Line(), style.Glyph()
	p.Add(line, marks)
	return nil
}

// finding returns the finding of the picture in one sentence.
func finding(r *report) string {
	ours := r.highest(fits, peers.Aiguard)
	return fmt.Sprintf("At %d times its capacity, a provider behind aiguard\ngives %s of its answers, half of them within %.1f s",
		highest, percent(min(goodput.median(ours), 1)), p50.median(ours))
}

// newPlot returns an empty plot with a vertical axis from low to high with these marks.
func newPlot(title string, low, high float64, marks ...float64) *plot.Plot {
	p := chart.New(title)
	p.X.Min, p.X.Max = loads[0], loads[len(loads)-1]
	p.X.Scale = plot.LogScale{}
	p.X.Tick.Marker = ticks(loads)
	p.Y.Min, p.Y.Max = low, high
	p.Y.Tick.Marker = ticks(marks)
	grid := chart.Ink()
	grid.A = 0x30
	lines := plotter.NewGrid()
	lines.Horizontal.Color, lines.Vertical.Color = grid, grid
	p.Add(lines)
	return p
}

// ticks returns marks at these values.
func ticks(values []float64) plot.ConstantTicks {
	var marks plot.ConstantTicks
	for _, v := range values {
		marks = append(marks, plot.Tick{Value: v, Label: fmt.Sprint(v)})
	}
	return marks
}
