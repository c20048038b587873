package cost

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/aiguard-go/aiguard/benchmarks/internal/contender"
)

// BenchmarkPrompt measures the check of a prompt against MaxPromptChars.
func BenchmarkPrompt(b *testing.B) {
	const most = contender.MaxPromptChars
	for _, text := range []struct {
		name, piece string
		chars       int
	}{
		{"ascii", "Ten chars.", most},
		{"chinese", "一二三四五六七八九十", most},
		{"mixed", "Grüße, 世界🌍.", most},
		{"short", "一二三四五六七八九十", most / 4}, // fewer bytes than the limit in characters
	} {
		prompt := string([]rune(strings.Repeat(text.piece, most))[:text.chars])
		b.Run(text.name, func(b *testing.B) {
			compare(b, []string{contender.Aiguard, contender.Hand}, func(b *testing.B, name string) {
				check := func() bool { return utf8.RuneCountInString(prompt) <= most }
				if name == contender.Aiguard {
					g := contender.Guard(contender.Bounded)
					defer g.Close()
					check = func() bool { return g.CheckPrompt("gpt-4o-mini", prompt) == nil }
				}
				for b.Loop() {
					if !check() {
						b.Fatal("refused")
					}
				}
			})
		})
	}
}
