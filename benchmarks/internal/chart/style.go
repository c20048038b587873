package chart

import (
	"image/color"
	"math"

	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"

	"github.com/aiguard-go/aiguard/benchmarks/internal/contender"
)

// Style is how a contender is drawn, the same in every chart. The shape tells it from others without its colour.
type Style struct {
	Color color.NRGBA
	Shape draw.GlyphDrawer
	Width vg.Length
}

const (
	glyphRadius = vg.Length(3.8)

	thin, broad = vg.Length(1.3), vg.Length(4) // aiguard stands out
)

// The colours are near those of Okabe and Ito ("Color Universal Design", 2008), which colour-blind people tell apart, but dark
// enough for a contrast of 4.5 with Paper.
var (
	blue      = color.NRGBA{0x0b, 0x5f, 0xd0, 0xff}
	vermilion = color.NRGBA{0xc2, 0x41, 0x0c, 0xff}
	orange    = color.NRGBA{0x93, 0x63, 0x00, 0xff}
	ochre     = color.NRGBA{0x74, 0x66, 0x2c, 0xff}
	purple    = color.NRGBA{0xa3, 0x39, 0x7d, 0xff}
	violet    = color.NRGBA{0x6d, 0x4f, 0xc4, 0xff}
	sky       = color.NRGBA{0x1b, 0x72, 0x94, 0xff}
	grey      = color.NRGBA{0x66, 0x6e, 0x78, 0xff}
)

// StyleOf is the style of the contender of that name.
func StyleOf(name string) Style {
	switch name {
	case contender.Aiguard:
		return Style{blue, draw.CircleGlyph{}, broad}
	case contender.Bare, contender.Naive:
		return Style{grey, draw.CrossGlyph{}, thin}
	case contender.OpenAI:
		return Style{vermilion, draw.TriangleGlyph{}, thin}
	case contender.Failsafe:
		return Style{ochre, draw.BoxGlyph{}, thin}
	case contender.FailsafeBreaker:
		return Style{orange, draw.SquareGlyph{}, thin}
	case contender.Hand:
		return Style{violet, draw.PlusGlyph{}, thin}
	case contender.Resilience:
		return Style{purple, polygon(5), thin}
	case contender.Breaker:
		return Style{sky, draw.PyramidGlyph{}, thin}
	}
	panic("chart: no style of " + name)
}

// Line is the style of the contender's line.
func (s Style) Line() draw.LineStyle {
	return draw.LineStyle{Color: s.Color, Width: s.Width}
}

// Glyph is the style of its mark.
func (s Style) Glyph() draw.GlyphStyle {
	return draw.GlyphStyle{Color: s.Color, Shape: s.Shape, Radius: glyphRadius + s.Width/4}
}

// polygon is a filled one with so many corners, one of them on top.
type polygon int

// DrawGlyph implements draw.GlyphDrawer.
func (n polygon) DrawGlyph(c *draw.Canvas, s draw.GlyphStyle, at vg.Point) {
	c.SetColor(s.Color)
	var path vg.Path
	for i := range int(n) {
		sin, cos := math.Sincos(2 * math.Pi * float64(i) / float64(n))
		corner := at.Add(vg.Point{X: vg.Length(sin), Y: vg.Length(cos)}.Scale(1.2 * s.Radius))
		if i == 0 {
			path.Move(corner)
		} else {
			path.Line(corner)
		}
	}
	path.Close()
	c.Fill(path)
}
