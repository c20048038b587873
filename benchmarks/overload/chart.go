package main

import (
	"fmt"
	"image/color"
	"math"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"

	"github.com/aiguard-go/aiguard/benchmarks/internal/chart"
	peers "github.com/aiguard-go/aiguard/benchmarks/internal/contender"
)

// styles are those of the contenders, in their order; the shapes tell lines apart without colour.
var styles = []struct {
	color color.Color
	shape draw.GlyphDrawer
	width vg.Length
}{
	{chart.Colour(peers.Bare), draw.CrossGlyph{}, 1.2},
	{chart.Colour(peers.OpenAI), draw.TriangleGlyph{}, 1.2},
	{chart.Colour(peers.FailsafeBreaker), draw.SquareGlyph{}, 1.2},
	{chart.Colour(peers.Aiguard), draw.CircleGlyph{}, 2.2},
	{color.NRGBA{0x1a, 0x9e, 0x6b, 0xff}, draw.RingGlyph{}, 2.2},
}

// drawChart draws goodput, and requests for each answer with an outage, over the load.
func drawChart(path string, results [][]result) error {
	goodput := newPlot("Goodput", "of what the provider can do")
	goodput.Y.Min, goodput.Y.Max = 0, 110
	goodput.Y.Tick.Marker = ticks{0, 25, 50, 75, 100}.marker("%g%%")

	requests := newPlot("Requests sent for each answer, with an outage", "")
	requests.Y.Min, requests.Y.Max = 1, 200
	requests.Y.Scale = plot.LogScale{}
	requests.Y.Tick.Marker = ticks{1, 2, 5, 10, 20, 50, 100}.marker("%g")

	for j, c := range contenders {
		var good, sent plotter.XYs
		for k, load := range loads {
			f := results[j][k]
			good = append(good, plotter.XY{X: load, Y: 100 * f.calm.goodput})
			if n := f.outage.requestsPerAnswer; !math.IsInf(n, 0) { // no answers: off the chart
				sent = append(sent, plotter.XY{X: load, Y: min(n, requests.Y.Max)})
			}
		}
		line, points, err := lineOf(good, j)
		if err != nil {
			return err
		}
		goodput.Add(line, points)
		requests.Legend.Add(c.name, line, points)
		if len(sent) == 0 {
			continue
		}
		if line, points, err = lineOf(sent, j); err != nil {
			return err
		}
		requests.Add(line, points)
	}
	return chart.Save(path, 800, 330, [][]*plot.Plot{{goodput, requests}})
}

// lineOf is a line in the style of contender j.
func lineOf(xys plotter.XYs, j int) (*plotter.Line, *plotter.Scatter, error) {
	line, points, err := plotter.NewLinePoints(xys)
	if err != nil {
		return nil, nil, err
	}
	s := styles[j]
	line.Color, line.Width = s.color, s.width
	points.Color, points.Shape, points.Radius = s.color, s.shape, 3
	return line, points, nil
}

func newPlot(title, y string) *plot.Plot {
	p := chart.New(title)
	p.X.Label.Text, p.Y.Label.Text = "offered load, as a multiple of what the provider can do", y
	p.X.Min, p.X.Max = loads[0], loads[len(loads)-1]
	p.X.Scale = plot.LogScale{}
	p.X.Tick.Marker = ticks(loads).marker("%g×")
	grid := color.NRGBAModel.Convert(chart.Ink()).(color.NRGBA)
	grid.A = 0x40
	lines := plotter.NewGrid()
	lines.Horizontal.Color, lines.Vertical.Color = grid, grid
	p.Add(lines)
	p.Legend.Top, p.Legend.Left = true, true
	p.Legend.Padding, p.Legend.XOffs, p.Legend.YOffs = 2, 8, -4
	return p
}

// ticks are marks at these values.
type ticks []float64

func (t ticks) marker(format string) plot.ConstantTicks {
	var marks plot.ConstantTicks
	for _, v := range t {
		marks = append(marks, plot.Tick{Value: v, Label: fmt.Sprintf(format, v)})
	}
	return marks
}
