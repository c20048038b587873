package chart

import (
	"image/color"
	"math"

	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"

	"github.com/aiguard-go/aiguard/benchmarks/internal/contender"
)

// Style is how a contender is drawn, the same in every chart. Shape and dashes tell it from others without its colour.
type Style struct {
	Color  color.Color
	Shape  draw.GlyphDrawer
	Width  vg.Length
	Dashes []vg.Length
}

const (
	glyphRadius = vg.Length(3.8)

	thin, thick, broad = vg.Length(1.3), vg.Length(2.2), vg.Length(4.4) // aiguard stands out
)

// The colours are near those of Okabe and Ito ("Color Universal Design", 2008), which colour-blind people tell apart, made
// darker or lighter until they are seen on white and on black.
var (
	blue      = color.NRGBA{0x1f, 0x7a, 0xec, 0xff}
	green     = color.NRGBA{0x0a, 0x9a, 0x73, 0xff}
	vermilion = color.NRGBA{0xe0, 0x5a, 0x1c, 0xff}
	orange    = color.NRGBA{0xcf, 0x8a, 0x00, 0xff}
	ochre     = color.NRGBA{0xa8, 0x89, 0x3a, 0xff}
	purple    = color.NRGBA{0xc9, 0x6f, 0xa5, 0xff}
	violet    = color.NRGBA{0x90, 0x72, 0xd8, 0xff}
	sky       = color.NRGBA{0x3a, 0x9b, 0xc4, 0xff}
	grey      = color.NRGBA{0x87, 0x90, 0x9a, 0xff}
)

// StyleOf is the style of the contender of that name.
func StyleOf(name string) Style {
	switch name {
	case contender.Aiguard:
		return Style{blue, draw.CircleGlyph{}, thick, nil}
	case contender.Adaptive:
		return Style{green, draw.RingGlyph{}, broad, nil}
	case contender.ShortQueue:
		return Style{green, polygon(4), thick, []vg.Length{6, 3}}
	case contender.Bare, contender.Naive:
		return Style{grey, draw.CrossGlyph{}, thin, nil}
	case contender.OpenAI:
		return Style{vermilion, draw.TriangleGlyph{}, thin, nil}
	case contender.Failsafe:
		return Style{ochre, draw.BoxGlyph{}, thin, nil}
	case contender.FailsafeBreaker:
		return Style{orange, draw.SquareGlyph{}, thin, nil}
	case contender.Hand:
		return Style{violet, draw.PlusGlyph{}, thin, nil}
	case contender.Resilience:
		return Style{purple, polygon(5), thin, nil}
	case contender.Breaker:
		return Style{sky, draw.PyramidGlyph{}, thin, nil}
	}
	panic("chart: no style of " + name)
}

// Line is the style of the contender's line.
func (s Style) Line() draw.LineStyle {
	return draw.LineStyle{Color: s.Color, Width: s.Width, Dashes: s.Dashes}
}

// Glyph is the style of its mark.
func (s Style) Glyph() draw.GlyphStyle {
	return draw.GlyphStyle{Color: s.Color, Shape: s.Shape, Radius: glyphRadius}
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
