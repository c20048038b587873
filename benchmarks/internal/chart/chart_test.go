package chart

import (
	"image/color"
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard/benchmarks/internal/contender"
)

// luminance and contrast follow WCAG 2.2.
func luminance(c color.NRGBA) float64 {
	linear := func(b uint8) float64 {
		v := float64(b) / 255
		if v <= 0.04045 {
			return v / 12.92
		}
		return math.Pow((v+0.055)/1.055, 2.4)
	}
	return 0.2126*linear(c.R) + 0.7152*linear(c.G) + 0.0722*linear(c.B)
}

func TestColoursHaveContrast(t *testing.T) {
	ratio := func(c color.NRGBA) float64 { return (luminance(Paper()) + 0.05) / (luminance(c) + 0.05) }
	require.GreaterOrEqual(t, ratio(Ink()), 7.)
	for _, name := range []string{contender.Aiguard, contender.Naive, contender.OpenAI, contender.FailsafeBreaker} {
		require.GreaterOrEqual(t, ratio(barColor(name)), 4.5, name)
		require.GreaterOrEqual(t, ratio(StyleOf(name).Color), 4.5, name)
		require.EqualValues(t, 0xff, StyleOf(name).Color.A, name)
	}
}
