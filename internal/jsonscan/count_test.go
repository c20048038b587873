package jsonscan

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard/internal/linear"
)

func TestRunesCountsTheTextOfAString(t *testing.T) {
	for _, s := range []string{`""`, `"a"`, `"中文"`, `"\n\t\"\\\/"`, `"\u00e9x"`, `"\ud83d\ude00x"`, `"\ud83dx"`, `"\ud83d\u0041"`, `"\ude00\ud83d"`,
		`"` + strings.Repeat(`日\u65e5`, 100) + `"`} {
		var text string
		require.NoError(t, json.Unmarshal([]byte(s), &text))
		require.Equal(t, utf8.RuneCountInString(text), Runes([]byte(s)), s)
	}
	require.Zero(t, Runes([]byte(`12`)))
	require.Zero(t, Runes(nil))
}

func TestValueRunesDoesNotDependOnTheEncoding(t *testing.T) {
	plain := ValueRunes([]byte(`{"a<b":["é",1,true]}`))
	require.Equal(t, utf8.RuneCountInString(`{"a<b":["é",1,true]}`), plain)
	require.Equal(t, plain, ValueRunes([]byte("{ \"a\\u003cb\" :\n [\"\\u00e9\", 1 , true ] }")))
}

func FuzzRunes(f *testing.F) {
	for _, doc := range documents {
		f.Add([]byte(doc))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		end, err := Check(data, unlimited)
		require.GreaterOrEqual(t, ValueRunes(data), 0)
		require.GreaterOrEqual(t, Runes(data), 0)
		if err != nil {
			return
		}
		value := data[skipSpace(data, 0):end]
		if skipped, ok := Skip(data[:end], 0); !ok || skipped != end {
			t.Fatalf("skipped to %d, value ends at %d", skipped, end)
		}
		if text, ok := Text(value); ok && utf8.Valid(value) {
			require.Equal(t, utf8.RuneCountInString(text), Runes(value), "%q", value)
		}
	})
}

func TestCountingIsLinear(t *testing.T) {
	for name, unit := range map[string]string{"text": "x", "escapes": `\n`, "surrogates": `\ud83d\ude00`, "other": "中"} {
		t.Run(name, func(t *testing.T) {
			linear.Check(t, 0, func(size int) (int, func()) {
				text := []byte(`"` + strings.Repeat(unit, size/len(unit)) + `"`)
				return len(text), func() {
					Runes(text)
					ValueRunes(text)
				}
			})
		})
	}
}
