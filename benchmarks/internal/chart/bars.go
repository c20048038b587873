package chart

import (
	"strings"

	xfont "golang.org/x/image/font"
	"gonum.org/v1/plot"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"

	"github.com/aiguard-go/aiguard/benchmarks/internal/contender"
)

// Panel is a group of bars with a common scale that starts at zero.
type Panel struct {
	Title string
	Bars  []Bar
}

// Bar is the figure of a contender. Label is the formatted figure.
type Bar struct {
	Contender string
	Value     float64
	Label     string
}

// barsFrom and barsTo are the left end of all bars and the right end of the longest. Names are to the left of the bars,
// labels to the right.
const (
	barsFrom  = vg.Length(110)
	barsTo    = vg.Length(290)
	barHeight = vg.Length(11)
	barPitch  = vg.Length(19)
)

// SaveBars draws the panels below each other into an SVG file, under a heading. It highlights the bars of aiguard.
func SaveBars(file, heading string, panels []Panel) error {
	height := (vg.Length(strings.Count(heading, "\n")+1) + 0.6) * lineHeight
	for _, p := range panels {
		height += 1.5*lineHeight + vg.Length(len(p.Bars))*barPitch
	}
	return save(file, columnWidth, height+0.8*lineHeight, func(c draw.Canvas) {
		y := drawHeading(c, c.Max.Y, heading)
		words := text.Style{YAlign: draw.YCenter, Handler: plot.DefaultTextHandler, Font: plot.DefaultFont}
		style(&words, TextSize)
		title := words
		title.Font.Weight = xfont.WeightBold
		for _, p := range panels {
			y -= lineHeight
			c.FillText(title, vg.Point{X: margin, Y: y}, p.Title)
			y -= lineHeight
			most := 0.
			for _, bar := range p.Bars {
				most = max(most, bar.Value)
			}
			for _, bar := range p.Bars {
				end := barsFrom + (barsTo-barsFrom)*vg.Length(bar.Value/most)
				c.FillText(words, vg.Point{X: margin, Y: y}, inWords(bar.Contender))
				c.FillPolygon(barColor(bar.Contender), []vg.Point{{X: barsFrom, Y: y - barHeight/2}, {X: end, Y: y - barHeight/2},
					{X: end, Y: y + barHeight/2}, {X: barsFrom, Y: y + barHeight/2}})
				c.FillText(words, vg.Point{X: end + 6, Y: y}, bar.Label)
				y -= barPitch
			}
			y += barPitch - lineHeight/2
		}
	})
}

// inWords returns a contender's name for readers who do not know the other contenders.
func inWords(name string) string {
	switch name {
	case contender.Bare:
		return "go-openai alone"
	case contender.Hand:
		return "written by hand"
	}
	return name
}
