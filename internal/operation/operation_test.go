package operation_test

import (
	"context"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard/internal/operation"
)

type progress struct {
	percent int
	note    string
}

func (p *progress) SetProgress(percent int, note string) { p.percent, p.note = percent, note }

func TestProgressIsLimitedAndValid(t *testing.T) {
	const most = 200 // characters
	var p progress
	ctx := context.WithValue(t.Context(), operation.ProgressKey{}, &p)
	for note, want := range map[string]string{
		"": "", "plain": "plain", "a\x00b\xffc\xc3": "abc", "日本\ufffd": "日本\ufffd",
		strings.Repeat("é", most):                        strings.Repeat("é", most),
		strings.Repeat("é", most+1):                      strings.Repeat("é", most),
		"\x00" + strings.Repeat("é\xff", 1<<20) + "\x00": strings.Repeat("é", most),
	} {
		operation.SetProgress(ctx, 50, note)
		require.Equal(t, progress{50, want}, p)
	}
	for percent, want := range map[int]int{-1: 0, 0: 0, 100: 100, 101: 100} {
		operation.SetProgress(ctx, percent, "")
		require.Equal(t, want, p.percent)
	}
	operation.SetProgress(t.Context(), 50, "of nothing")
}

func TestPanicWithoutARuntimeErrorIsDescribedByItsTypeAlone(t *testing.T) {
	for _, p := range []any{"the prompt", struct{ Prompt string }{"the prompt"}} {
		var what, stack string
		_, err := operation.Call(func() (any, error) { panic(p) }, func(w, s string) { what, stack = w, s })
		require.ErrorIs(t, err, operation.KindInternal)
		require.NotContains(t, what, "the prompt")
		require.Contains(t, stack, "operation_test.go")
	}
}
