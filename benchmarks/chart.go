package main

import (
	"fmt"
	"slices"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"

	"github.com/aiguard-go/aiguard/benchmarks/cost"
	"github.com/aiguard-go/aiguard/benchmarks/internal/chart"
	"github.com/aiguard-go/aiguard/benchmarks/internal/contender"
)

// drawn are the contenders of the picture, and drawnRows its rows, the first on top. Each row has a hand-written peer.
var (
	drawn     = []string{contender.Aiguard, contender.Bare, contender.Failsafe, contender.OpenAI, contender.Resilience, contender.Breaker}
	drawnRows = []string{"Do", "DoCrowd/1000", "DoCrowd/10000", "Chat", "ChatLoopback", "Drain", "Cancel"}
)

// drawCost draws the time of a call as a multiple of the hand-written one's, a row for each kind of work.
func drawCost(file string, r cost.Results) error {
	const rowHeight, axisHeight = vg.Length(36), vg.Length(46)
	p := chart.New("")
	p.HideY()
	p.Y.Min, p.Y.Max = -0.4, float64(len(drawnRows))-0.2
	p.X.Label.Text = "time per call, × that of limits written by hand"
	p.X.Scale = plot.LogScale{}
	p.X.Tick.Marker = plot.TickerFunc(func(low, high float64) (marks []plot.Tick) {
		for _, v := range []float64{0.1, 0.2, 0.5, 1, 2, 5, 10, 20} {
			if v >= low && v <= high {
				marks = append(marks, plot.Tick{Value: v, Label: strconv.FormatFloat(v, 'g', -1, 64)})
			}
		}
		return marks
	})

	marks := make(map[string]plotter.XYs)
	var ours []float64
	words := plotter.XYLabels{}
	least, most := 0.5, 2.
	for i, bench := range drawnRows {
		y := float64(len(drawnRows) - 1 - i)
		hand, _, ok := r.Median(bench, contender.Hand, cost.SecPerOp)
		if !ok {
			return fmt.Errorf("%s: no %s of %s", bench, cost.SecPerOp, contender.Hand)
		}
		for _, name := range drawn {
			if v, _, ok := r.Median(bench, name, cost.SecPerOp); ok {
				marks[name] = append(marks[name], plotter.XY{X: v / hand, Y: y})
				least, most = min(least, v/hand), max(most, v/hand)
			}
		}
		v, _, _ := r.Median(bench, contender.Aiguard, cost.SecPerOp)
		ours = append(ours, v/hand)
		words.Labels = append(words.Labels, fmt.Sprintf("%s: %.2f ×", work(bench), v/hand))
		words.XYs = append(words.XYs, plotter.XY{Y: y})
	}
	p.X.Min, p.X.Max = least/1.1, most*1.1
	for i := range words.XYs {
		words.XYs[i].X = p.X.Min
	}
	if err := addRows(p, words); err != nil {
		return err
	}
	for _, name := range drawn { // ours lies below the others
		points, err := plotter.NewScatter(marks[name])
		if err != nil {
			return err
		}
		points.GlyphStyle = chart.StyleOf(name).Glyph()
		p.Add(points)
	}
	heading := fmt.Sprintf("A call through aiguard takes %.2f to %.2f times as long\nas one through limits written by hand",
		slices.Min(ours), slices.Max(ours))
	return chart.Save(file, heading, drawn, vg.Length(len(drawnRows))*rowHeight+axisHeight, []*plot.Plot{p})
}

// addRows adds a line for each row, the hand-written peer's place on it, and the words over it.
func addRows(p *plot.Plot, words plotter.XYLabels) error {
	faint := chart.Ink()
	faint.A = 0x60
	for _, at := range words.XYs {
		line, err := plotter.NewLine(plotter.XYs{{X: p.X.Min, Y: at.Y}, {X: p.X.Max, Y: at.Y}})
		if err != nil {
			return err
		}
		hand, err := plotter.NewLine(plotter.XYs{{X: 1, Y: at.Y - 0.15}, {X: 1, Y: at.Y + 0.15}})
		if err != nil {
			return err
		}
		line.Color, hand.Color, hand.Width = faint, chart.Ink(), 2
		p.Add(line, hand)
	}
	labels, err := plotter.NewLabels(words)
	if err != nil {
		return err
	}
	for i := range labels.TextStyle {
		labels.TextStyle[i] = p.X.Tick.Label
		labels.TextStyle[i].XAlign, labels.TextStyle[i].YAlign = 0, 0
	}
	labels.Offset = vg.Point{Y: 8}
	p.Add(labels)
	return nil
}

// work is what the benchmark of that name measures in time.
func work(bench string) string {
	i := slices.IndexFunc(cost.Rows, func(row cost.Row) bool { return row.Bench == bench && row.Unit == cost.SecPerOp })
	return cost.Rows[i].Work
}
