package tokenguard

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestSplitFollowsThePatterns(t *testing.T) {
	for _, c := range []struct {
		split func(string) int
		text  string
		want  []string
	}{
		{splitO200k, "camelCase HTTPServer's", []string{"camel", "Case", " HTTPServer's"}},
		{splitO200k, "中A中BC", []string{"中A中", "BC"}},
		{splitO200k, "\u0301ABC", []string{"\u0301", "ABC"}}, // the alternative with small letters comes first, and a mark matches it
		{splitO200k, "!\u0301ABC", []string{"!\u0301", "ABC"}},
		{splitO200k, "1234 !/\n/ x", []string{"123", "4", " !/\n/", " x"}},
		{splitO200k, "a \n \n  b", []string{"a", " \n \n", " ", " b"}},
		{splitCl100k, "'sunny' camelCase", []string{"'s", "unny", "'", " camelCase"}},
		{splitCl100k, "it'S  x\t12", []string{"it", "'S", " ", " x", "\t", "12"}},
		{splitCl100k, "!/\n/ \n", []string{"!/\n", "/", " \n"}},
		{splitGPT2, "it'S don't 12345\n\n x", []string{"it", "'", "S", " don", "'t", " 12345", "\n\n", " x"}},
	} {
		var got []string
		for rest := c.text; rest != ""; {
			n := c.split(rest)
			got = append(got, rest[:n])
			rest = rest[n:]
		}
		assert.Equal(t, c.want, got, "%q", c.text)
	}
}
