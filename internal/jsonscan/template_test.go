package jsonscan

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTemplateFitsWhatDiffersInItsStringOnly(t *testing.T) {
	known := `{"a":"x","b":["old \" text",1]}`
	var tpl Template
	require.False(t, tpl.Fits(nil), "it knows nothing yet")
	require.False(t, tpl.Fits([]byte(known)))
	tpl.Learn([]byte(known), []Span{{Start: strings.Index(known, `"old`), End: strings.Index(known, `,1`)}})
	for text, fits := range map[string]bool{
		known:                  true,
		`{"a":"x","b":["",1]}`: true,
		`{"a":"x","b":["日本語 \u00e9 \\",1]}`:   true,
		`{"a":"x","b":["],[\",1]}",1]}`:       true,
		`{"a":"x","b":[",1]}`:                 false,
		`{"a":"x","b":["",1],"c":["",1]}`:     false,
		`{"a":"x","b":["","",1]}`:             false,
		`{"a":"x","b":["y\",1]}`:              false,
		`{"a":"x","b":["\x",1]}`:              false,
		"{\"a\":\"x\",\"b\":[\"\n\",1]}":      false,
		`{"a":"y","b":["old \" text",1]}`:     false,
		`{"a":"x","b":["old \" text",2]}`:     false,
		`{"a":"x","b":["old \" text", 1]}`:    false,
		` {"a":"x","b":["old \" text",1]}`:    false,
		`{"a":"x","b":["old \" text",1]} `:    false,
		`{"a":"x","b":[null,1]}`:              false,
		`{"a":"x","b":["`:                     false,
		`",1]}`:                               false,
		``:                                    false,
		`{"a":"x","b":["old \" text",1]}",1]`: false,
	} {
		require.Equal(t, fits, tpl.Fits([]byte(text)), text)
	}
	tpl.Forget()
	require.False(t, tpl.Fits([]byte(known)))

	long := `"` + strings.Repeat("x", maxTemplate) + `"`
	tpl.Learn([]byte(long), []Span{{End: len(long)}})
	require.False(t, tpl.Fits([]byte(long)))
	require.LessOrEqual(t, tpl.Size(), maxTemplate)
}

func TestTemplateMayHaveTwoFreeStrings(t *testing.T) {
	known := `{"a":"x","b":"y","c":"z"}`
	var tpl Template
	tpl.Learn([]byte(known), []Span{{Start: 5, End: 8}, {Start: 21, End: 24}})
	for text, fits := range map[string]bool{
		known:                         true,
		`{"a":"","b":"y","c":""}`:     true,
		`{"a":"\"","b":"y","c":"\\"}`: true,
		`{"a":"x","b":"z","c":"z"}`:   false,
		`{"a":"x","b":"y","c":z"}`:    false,
		`{"a":"x","b":"y","c":"z`:     false,
		`{"a":"x","b":"y"}`:           false,
		`{"a":"x","b":"y","c":"z"} `:  false,
		`{"a":"x","b":"y","c":1}`:     false,
	} {
		require.Equal(t, fits, tpl.Fits([]byte(text)), text)
	}
}

func TestTemplateMayHaveAFreeNumberAndAStringThatIsNotEmpty(t *testing.T) {
	known := `{"n":12,"a":"x"}`
	var tpl Template
	tpl.Learn([]byte(known), []Span{{Start: 5, End: 7}, {Start: 12, End: 15, Some: true}})
	for text, fits := range map[string]bool{
		known:                            true,
		`{"n":0,"a":"xyz"}`:              true,
		`{"n":12345,"a":"\""}`:           true,
		`{"n":12345,"a":"\"}`:            false,
		`{"n":12,"a":""}`:                false,
		`{"n":-1,"a":"x"}`:               false,
		`{"n":01,"a":"x"}`:               false,
		`{"n":1234567890123456,"a":"x"}`: false,
		`{"n":1.5,"a":"x"}`:              false,
		`{"n":"1","a":"x"}`:              false,
		`{"n":,"a":"x"}`:                 false,
		`{"n":`:                          false,
	} {
		require.Equal(t, fits, tpl.Fits([]byte(text)), text)
	}
}

// What fits is JSON of the very shape of the known text, whatever that is and whatever its string.
func FuzzTemplate(f *testing.F) {
	for _, doc := range documents {
		f.Add([]byte(doc), []byte(doc), []byte(" new"))
	}
	f.Add([]byte(`{"a":"x","b":"y"}`), []byte(`{"a":"","b":"","b":"y"}`), []byte(`","b":"`))
	f.Add([]byte(`["x","x"]`), []byte(`["x\"]`), []byte(`\`))
	f.Fuzz(func(t *testing.T, known, other, text []byte) {
		if end, err := Check(known, unlimited); err != nil || end != len(known) {
			return
		}
		c := Read(known)
		stringValues(&c, func(start, end int) {
			var tpl Template
			tpl.Learn(known, []Span{{Start: start, End: end}})
			if len(known) <= maxTemplate && !tpl.Fits(known) {
				t.Fatalf("%q does not fit itself", known)
			}
			filled := append(append(append([]byte(nil), known[:start+1]...), text...), known[end-1:]...)
			for _, text := range [][]byte{other, filled} {
				if !tpl.Fits(text) {
					continue
				}
				if at, err := Check(text, unlimited); err != nil || at != len(text) {
					t.Fatalf("%q fits %q: %d, %v", text, known, at, err)
				}
				at := start + len(text) - len(known) + end - start
				if _, ok := Text(text[start:at]); !ok {
					t.Fatalf("%q fits %q, but without the string", text, known)
				}
			}
			if _, ok := Text(known[start:end]); !ok {
				t.Fatalf("%q: %d to %d is no string", known, start, end)
			}
			quoted := append(append([]byte{'"'}, text...), '"')
			if at, err := Check(quoted, unlimited); (err == nil && at == len(quoted)) != tpl.Fits(filled) && len(filled) <= maxTemplate {
				t.Fatalf("%q in %q: %v", quoted, known, tpl.Fits(filled))
			}
		})
	})
}
