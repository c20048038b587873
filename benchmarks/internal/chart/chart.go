// Package chart draws the results of the benchmarks as SVG, in one style. The picture includes its background, so dark
// mode does not change the contrast.
//
//	p := chart.New("Goodput")
//	p.Add(line) // in chart.StyleOf("aiguard")
//	err := chart.Save("goodput.svg", "aiguard is good", []string{"aiguard"}, 200, []*plot.Plot{p})
package chart

import (
	"bytes"
	"image/color"
	"os"
	"path/filepath"
	"strings"

	xfont "golang.org/x/image/font"
	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// Text sizes.
const (
	TitleSize = 13
	TextSize  = 12
)

// Ink returns the colour of axes and text.
func Ink() color.NRGBA { return color.NRGBA{0x42, 0x4a, 0x53, 0xff} }

// Paper returns the colour of the background.
func Paper() color.NRGBA { return color.NRGBA{0xff, 0xff, 0xff, 0xff} }

// New returns an empty plot in the style.
func New(title string) *plot.Plot {
	p := plot.New()
	p.BackgroundColor = nil
	p.Title.Text = title
	p.Title.Padding = vg.Points(6)
	style(&p.Title.TextStyle, TitleSize)
	for _, axis := range []*plot.Axis{&p.X, &p.Y} {
		axis.Color, axis.Tick.Color = Ink(), Ink()
		style(&axis.Label.TextStyle, TextSize)
		style(&axis.Tick.Label, TextSize)
	}
	style(&p.Legend.TextStyle, TextSize)
	return p
}

func style(s *text.Style, size font.Length) {
	s.Color = Ink()
	s.Font.Variant, s.Font.Size = "Sans", size
}

// The dimensions of a picture. A phone shows the width as 350 pixels or more, so that text is at least 11 pixels high.
const (
	columnWidth  = vg.Length(370)
	margin       = vg.Length(10)
	lineHeight   = vg.Length(20)
	legendWidth  = columnWidth / legendColumns
	legendSample = vg.Length(24)

	legendColumns = 2
)

// Save draws the plots below each other into an SVG file, under a heading and a legend of the contenders. Each plot has
// the height plotHeight. Save creates the file's folder if it does not exist.
func Save(file, heading string, contenders []string, plotHeight vg.Length, plots []*plot.Plot) error {
	lines := strings.Count(heading, "\n") + 1
	rows := (len(contenders) + legendColumns - 1) / legendColumns
	head := (vg.Length(lines+rows) + 1.4) * lineHeight
	height := head + vg.Length(len(plots))*plotHeight
	return save(file, columnWidth, height, func(c draw.Canvas) {
		words := text.Style{YAlign: draw.YCenter, Handler: plot.DefaultTextHandler, Font: plot.DefaultFont}
		style(&words, TextSize)
		at := vg.Point{X: margin, Y: drawHeading(c, height, heading)}
		at.Y -= 0.3 * lineHeight
		for i, name := range contenders {
			at := vg.Point{X: margin + vg.Length(i%legendColumns)*legendWidth, Y: at.Y - vg.Length(i/legendColumns)*lineHeight}
			end := at.Add(vg.Point{X: legendSample})
			s := StyleOf(name)
			c.StrokeLines(s.Line(), []vg.Point{at, end})
			c.DrawGlyph(s.Glyph(), at.Add(vg.Point{X: legendSample / 2}))
			c.FillText(words, end.Add(vg.Point{X: 6, Y: 1.5}), name)
		}
		column := make([][]*plot.Plot, len(plots))
		for i, p := range plots {
			column[i] = []*plot.Plot{p}
		}
		tiles := draw.Tiles{Rows: len(plots), Cols: 1, PadY: vg.Points(14),
			PadTop: head + vg.Points(4), PadBottom: vg.Points(4), PadLeft: vg.Points(4), PadRight: vg.Points(8)}
		for i, row := range plot.Align(column, tiles, c) {
			plots[i].Draw(row[0])
		}
	})
}

// drawHeading writes the heading below top and returns the position of the next line.
func drawHeading(c draw.Canvas, top vg.Length, heading string) vg.Length {
	words := text.Style{YAlign: draw.YCenter, Handler: plot.DefaultTextHandler, Font: plot.DefaultFont}
	style(&words, TitleSize)
	words.Font.Weight = xfont.WeightBold
	y := top - 0.9*lineHeight
	for line := range strings.Lines(heading) {
		c.FillText(words, vg.Point{X: margin, Y: y}, strings.TrimSpace(line))
		y -= lineHeight
	}
	return y
}

// save writes an SVG file with what paint draws on the background.
func save(file string, width, height vg.Length, paint func(draw.Canvas)) error {
	canvas := vgsvg.New(width, height)
	sheet := draw.New(canvas)
	sheet.SetColor(Paper())
	sheet.Fill(sheet.Rectangle.Path())
	paint(sheet)
	var svg bytes.Buffer
	if _, err := canvas.WriteTo(&svg); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	// Replace the font with a list of fonts of the same widths, for machines without the font.
	text := bytes.ReplaceAll(svg.Bytes(), []byte("font-family:Liberation Sans;"), []byte("font-family:Liberation Sans,Arial,Helvetica,sans-serif;"))
	return os.WriteFile(file, text, 0o644)
}
