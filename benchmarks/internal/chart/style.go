package chart

import (
	"image/color"

	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"

	"github.com/aiguard-go/aiguard/benchmarks/internal/contender"
)

// Style is the style of a contender, the same in every chart. Shapes distinguish contenders without colour.
type Style struct {
	Color color.NRGBA
	Shape draw.GlyphDrawer
	Width vg.Length
}

const (
	glyphRadius = vg.Length(3.8)

	thin, broad = vg.Length(1.3), vg.Length(4) // aiguard has the broad line
)

// The colours are close to those of Okabe and Ito ("Color Universal Design", 2008), which colour-blind people can tell
// apart. They are darker, for a contrast of 4.5 with Paper.
var (
	blue      = color.NRGBA{0x0b, 0x5f, 0xd0, 0xff}
	vermilion = color.NRGBA{0xc2, 0x41, 0x0c, 0xff}
	orange    = color.NRGBA{0x93, 0x63, 0x00, 0xff}
	grey      = color.NRGBA{0x66, 0x6e, 0x78, 0xff}
)

// VectorsAlone names a cache that compares questions by vectors only, which is the contender in one chart.
const VectorsAlone = "vectors alone"

// StyleOf returns the style of the contender called name.
func StyleOf(name string) Style {
	switch name {
	case contender.Aiguard:
		return Style{blue, draw.CircleGlyph{}, broad}
	case contender.Naive:
		return Style{grey, draw.CrossGlyph{}, thin}
	case contender.OpenAI, VectorsAlone:
		return Style{vermilion, draw.TriangleGlyph{}, thin}
	case contender.FailsafeBreaker:
		return Style{orange, draw.SquareGlyph{}, thin}
	}
	panic("chart: no style for " + name)
}

// barColor returns the colour of the contender's bars. The name is next to the bars, so colours may repeat.
func barColor(name string) color.NRGBA {
	if name == contender.Aiguard {
		return blue
	}
	return grey
}

// Line returns the style of the contender's line.
func (s Style) Line() draw.LineStyle {
	return draw.LineStyle{Color: s.Color, Width: s.Width}
}

// Glyph returns the style of the contender's marks.
func (s Style) Glyph() draw.GlyphStyle {
	return draw.GlyphStyle{Color: s.Color, Shape: s.Shape, Radius: glyphRadius + s.Width/4}
}
