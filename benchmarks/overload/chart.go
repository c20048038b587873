package main

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"

	"github.com/aiguard-go/aiguard/benchmarks/internal/chart"
)

// drawChart draws goodput, requests with an outage, and how long an answer takes, over the load.
func drawChart(path string, results [][]result) error {
	useful := newPlot("Goodput", "% of what the provider can do")
	useful.Y.Min, useful.Y.Max = 0, 110
	useful.Y.Tick.Marker = ticks{0, 25, 50, 75, 100}.marker()

	sent := newPlot("Requests per answer, with an outage", "requests")
	sent.Y.Min, sent.Y.Max = 1, 200
	sent.Y.Scale = plot.LogScale{}
	sent.Y.Tick.Marker = ticks{1, 2, 5, 10, 20, 50, 100}.marker()

	took := newPlot("Time of answered calls, median", "seconds")
	took.Y.Min, took.Y.Max = 0, 45
	took.Y.Tick.Marker = ticks{0, 10, 20, 30, 40}.marker()

	names := chart.New("")
	names.HideAxes()
	names.Legend.Top, names.Legend.Left = true, true
	names.Legend.ThumbnailWidth, names.Legend.Padding = 36, 6
	names.Legend.XOffs, names.Legend.YOffs = 16, -24

	order := make([]int, len(contenders)) // broad lines below narrow ones, so that both are seen where they are the same
	for j, c := range contenders {
		order[j] = j
		style := chart.StyleOf(c.name)
		names.Legend.Add(c.name, &plotter.Line{LineStyle: style.Line()}, &plotter.Scatter{GlyphStyle: style.Glyph()})
	}
	slices.SortStableFunc(order, func(a, b int) int {
		return cmp.Compare(chart.StyleOf(contenders[b].name).Width, chart.StyleOf(contenders[a].name).Width)
	})
	for _, j := range order {
		style := chart.StyleOf(contenders[j].name)
		for _, in := range []struct {
			*plot.Plot
			column
			unit float64
		}{{useful, goodput, 100}, {sent, inOutage, 1}, {took, p50, 1}} {
			var at plotter.XYs
			for k, load := range loads {
				if v := in.of(results[j][k]); !math.IsInf(v, 0) && !math.IsNaN(v) { // there is none: off the chart
					at = append(at, plotter.XY{X: load, Y: min(in.unit*v, in.Y.Max)})
				}
			}
			if len(at) == 0 {
				continue
			}
			line, marks, err := plotter.NewLinePoints(at)
			if err != nil {
				return err
			}
			line.LineStyle, marks.GlyphStyle = style.Line(), style.Glyph()
			in.Add(line, marks)
		}
	}
	return chart.Save(path, 9*vg.Inch, 6.6*vg.Inch, [][]*plot.Plot{{useful, sent}, {took, names}})
}

func newPlot(title, y string) *plot.Plot {
	p := chart.New(title)
	p.X.Label.Text, p.Y.Label.Text = "load, × what the provider can do", y
	p.X.Min, p.X.Max = loads[0], loads[len(loads)-1]
	p.X.Scale = plot.LogScale{}
	p.X.Tick.Marker = ticks(loads).marker()
	grid := chart.Ink()
	grid.A = 0x40
	lines := plotter.NewGrid()
	lines.Horizontal.Color, lines.Vertical.Color = grid, grid
	p.Add(lines)
	return p
}

// ticks are marks at these values.
type ticks []float64

func (t ticks) marker() plot.ConstantTicks {
	var marks plot.ConstantTicks
	for _, v := range t {
		marks = append(marks, plot.Tick{Value: v, Label: fmt.Sprint(v)})
	}
	return marks
}
