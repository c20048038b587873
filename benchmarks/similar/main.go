// Command similar measures how well cacheguard decides which questions mean the same, over a set of labelled pairs of
// questions. From the folder benchmarks:
//
//	go run ./similar
//
// It writes the report similar/SIMILAR.md and the picture ../docs/similar.svg. It needs no model and no provider, and the
// result is always the same.
package main

import (
	"bytes"
	"fmt"
	"math"
	"os"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"

	"github.com/aiguard-go/aiguard/benchmarks/internal/chart"
	"github.com/aiguard-go/aiguard/benchmarks/internal/contender"
	"github.com/aiguard-go/aiguard/internal/pairs"
)

const (
	reportFile  = "similar/SIMILAR.md"
	pictureFile = "../docs/similar.svg"

	named = 0.5 // the threshold in the heading of the picture
)

func main() {
	err := os.WriteFile(reportFile, report(), 0o644)
	if err == nil {
		err = drawPicture(pictureFile)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "similar:", err)
		os.Exit(1)
	}
	fmt.Println("wrote", reportFile, "and", pictureFile)
}

// thresholds returns the measured thresholds.
func thresholds() (all []float64) {
	for percent := 20; percent <= 95; percent += 5 {
		all = append(all, float64(percent)/100)
	}
	return all
}

func percent(v float64) string { return fmt.Sprintf("%.0f%%", 100*v) }

func report() []byte {
	var b bytes.Buffer
	count, same := map[string]int{}, 0
	all := pairs.All()
	var kinds []string
	for _, p := range all {
		if count[p.Kind]++; count[p.Kind] == 1 {
			kinds = append(kinds, p.Kind)
		}
		if p.Same() {
			same++
		}
	}
	fmt.Fprintf(&b, `# Which questions mean the same

`+"`go run ./similar`"+` in the folder benchmarks writes this report and [the picture](../../docs/similar.svg).

cacheguard decides about %d pairs of questions from [pairs.txt](../../internal/pairs/pairs.txt). %d pairs are
paraphrases, which have the same answer. %d pairs look alike and have different answers. The pairs were written for this
project by the author of the guards, and are in English but for a few.

The vectors come from an embedder that counts words and groups of three characters, with %d dimensions. It knows
nothing about meaning. An embedding model finds more paraphrases at a given precision, and its thresholds are others.

- Precision is the share of the similar answers that fit the question.
- Recall is the share of the paraphrases that get a similar answer.
- "Vectors alone" compares the vectors only. "aiguard" also wants equal words, as the guards of cacheguard do.

| threshold | precision, vectors alone | recall, vectors alone | precision, aiguard | recall, aiguard |
|---|---|---|---|---|
`, len(all), same, len(all)-same, pairs.Dimension)
	for _, t := range thresholds() {
		alone, guarded := pairs.Measure(t, false), pairs.Measure(t, true)
		fmt.Fprintf(&b, "| %.2f | %s | %s | %s | %s |\n", t, percent(alone.Precision), percent(alone.Recall), percent(guarded.Precision), percent(guarded.Recall))
	}
	fmt.Fprintf(&b, `
At the threshold %.1f, by kind of pair:

| kind | pairs | similar, vectors alone | similar, aiguard |
|---|---|---|---|
`, named)
	for _, kind := range kinds {
		alone, guarded := 0, 0
		for _, p := range all {
			if p.Kind != kind || p.Similarity() < named {
				continue
			}
			alone++
			if p.Guarded() {
				guarded++
			}
		}
		fmt.Fprintf(&b, "| %s | %d | %d | %d |\n", kind, count[kind], alone, guarded)
	}
	return b.Bytes()
}

func drawPicture(path string) error {
	precision := newPlot("Precision: similar answers that fit, %")
	recall := newPlot("Recall: paraphrases with a similar answer, %")
	recall.X.Label.Text = "threshold"
	for _, name := range []string{contender.Aiguard, chart.VectorsAlone} {
		var fit, found plotter.XYs
		for _, t := range thresholds() {
			s := pairs.Measure(t, name == contender.Aiguard)
			fit = append(fit, plotter.XY{X: t, Y: 100 * s.Precision})
			found = append(found, plotter.XY{X: t, Y: 100 * s.Recall})
		}
		if err := addLine(precision, name, fit); err != nil {
			return err
		}
		if err := addLine(recall, name, found); err != nil {
			return err
		}
	}
	alone, guarded := pairs.Measure(named, false), pairs.Measure(named, true)
	heading := fmt.Sprintf("At %.1f, guards lift the precision from %s to %s\nand lower the recall from %s to %s",
		named, percent(alone.Precision), percent(guarded.Precision), percent(alone.Recall), percent(guarded.Recall))
	return chart.Save(path, heading, []string{contender.Aiguard, chart.VectorsAlone}, 185, []*plot.Plot{precision, recall})
}

func addLine(p *plot.Plot, name string, at plotter.XYs) error {
	line, marks, err := plotter.NewLinePoints(at)
	if err != nil {
		return err
	}
	style := chart.StyleOf(name)
	line.LineStyle, marks.GlyphStyle = style.Line(), style.Glyph()
	p.Add(line, marks)
	return nil
}

// newPlot returns an empty plot of percentages over the threshold.
func newPlot(title string) *plot.Plot {
	p := chart.New(title)
	all := thresholds()
	p.X.Min, p.X.Max = all[0], all[len(all)-1]
	p.Y.Min, p.Y.Max = 0, 105
	var x, y plot.ConstantTicks
	for _, t := range all {
		if math.Mod(math.Round(100*t), 10) == 0 {
			x = append(x, plot.Tick{Value: t, Label: fmt.Sprintf("%.1f", t)})
		}
	}
	for v := 0.; v <= 100; v += 25 {
		y = append(y, plot.Tick{Value: v, Label: fmt.Sprint(v)})
	}
	p.X.Tick.Marker, p.Y.Tick.Marker = x, y
	grid := chart.Ink()
	grid.A = 0x30
	lines := plotter.NewGrid()
	lines.Horizontal.Color, lines.Vertical.Color = grid, grid
	p.Add(lines)
	return p
}
