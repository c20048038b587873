package jsonseq

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard/internal/jsonscan"
	"github.com/aiguard-go/aiguard/internal/linear"
	"github.com/aiguard-go/aiguard/internal/sse"
)

var limits = jsonscan.Limits{Containers: 8, Depth: 4}

// read returns the texts, the error, and all raw bytes with the rest. An exclamation mark stands for each invalid text.
func read(t testing.TB, r *Reader) (texts []string, raw string, err error) {
	t.Helper()
	for {
		ev, err := r.Next()
		if err != nil {
			return texts, raw + string(r.Rest()), err
		}
		s := string(ev.Data)
		if ev.Err != nil {
			s += "!"
		}
		texts, raw = append(texts, s), raw+string(ev.Raw)
	}
}

func TestTextsAreSplitHoweverTheyCome(t *testing.T) {
	for in, want := range map[string][]string{
		"":                                 nil,
		" \n\n":                            nil,
		"{}":                               {"{}"},
		"{\"a\":1}\n{\"b\":[2]}\n":         {`{"a":1}`, `{"b":[2]}`},
		"{\"a\":1}\r\n\r\n{}":              {`{"a":1}`, `{}`},
		"[{\"a\":\"]}\"}\n,\r\n{\"b\":2}]": {`{"a":"]}"}`, `{"b":2}`},
		"[{\n  \"a\": 1\n}\n,\n{}\n]\n":    {"{\n  \"a\": 1\n}", "{}"},
		`[]`:                               nil,
		`{"a":"\\"}{"b":"\""}`:             {`{"a":"\\"}`, `{"b":"\""}`},
		`{"a":1`:                           {`{"a":1!`},
		"{}\n{\"a\":":                      {"{}", `{"a":!`},
		"oops {}":                          {"oops!", "{}"},
		`12 "x" null`:                      {"12", `"x"`, "null"},
		`{]}`:                              {"{]!", "}!"},
		`[[[[[[1]]]]]]`:                    {"[[[[[1]]]]]!"},
	} {
		for _, r := range []io.Reader{strings.NewReader(in), iotest.OneByteReader(strings.NewReader(in)), iotest.DataErrReader(strings.NewReader(in))} {
			texts, raw, err := read(t, NewReader(r, 100, limits))
			require.Equal(t, io.EOF, err, in)
			require.Equal(t, want, texts, in)
			require.Equal(t, in, raw, "no byte is lost")
		}
	}
}

func TestTextThatIsTooLongEndsTheStream(t *testing.T) {
	for _, in := range []string{`{"a":"` + strings.Repeat("x", 200), strings.Repeat(" ", 200), "x" + strings.Repeat("y", 200)} {
		r := NewReader(strings.NewReader(in), 100, limits)
		_, _, err := read(t, r)
		require.Equal(t, sse.ErrLineTooLong, err)
		_, err = r.Next()
		require.Equal(t, sse.ErrLineTooLong, err, "for good")
	}
}

func TestReadErrorDropsWhatIsIncomplete(t *testing.T) {
	texts, _, err := read(t, NewReader(io.MultiReader(strings.NewReader("{}\n{\"a\":"), iotest.ErrReader(io.ErrUnexpectedEOF)), 100, limits))
	require.Equal(t, io.ErrUnexpectedEOF, err)
	require.Equal(t, []string{"{}"}, texts)
}

func TestReadingIsLinear(t *testing.T) {
	in := `{"a":"` + strings.Repeat("x", 8<<20) + `"}`
	linear.Within(t, 5*time.Second, func() {
		texts, _, err := read(t, NewReader(strings.NewReader(in), 16<<20, limits))
		require.Equal(t, io.EOF, err)
		require.Len(t, texts, 1)
	})
}

func FuzzReader(f *testing.F) {
	for _, s := range []string{"{\"a\":1}\n{\"b\":[2]}\n", "[{\"a\":\"]}\"}\n,\r\n{\"b\":2}]", `{"a":1`, "oops", `{]}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		r := NewReader(bytes.NewReader(in), 64, limits)
		texts, raw, err := read(t, r)
		again, _, err2 := read(t, NewReader(iotest.OneByteReader(bytes.NewReader(in)), 64, limits))
		if err == io.EOF && err2 == io.EOF {
			require.Equal(t, texts, again)
			require.Equal(t, string(in), raw)
		}
		require.LessOrEqual(t, r.Size(), 2*minBuffer)
	})
}

func TestReaderWithoutRoomHoldsNoMore(t *testing.T) {
	r := NewReader(strings.NewReader(`{"a":"`+strings.Repeat("x", 1<<20)), 16<<20, limits)
	r.Ask(func(size int) bool { return size <= 64<<10 })
	_, _, err := read(t, r)
	require.Equal(t, sse.ErrNoRoom, err)
	require.LessOrEqual(t, r.Size(), 64<<10)
}

func TestTrimmedReaderReadsOn(t *testing.T) {
	large := `{"a":"` + strings.Repeat("x", 50_000) + `"}`
	in := []byte("[" + large + `,{"b":1},` + large + "]")
	r := NewReader(iotest.OneByteReader(bytes.NewReader(in)), 1<<20, limits)
	for _, want := range []string{large, `{"b":1}`, large} {
		ev, err := r.Next()
		require.NoError(t, err)
		require.Equal(t, want, string(ev.Data))
		r.Trim(16 << 10)
		require.LessOrEqual(t, r.Size(), 16<<10)
	}
	_, err := r.Next()
	require.Equal(t, io.EOF, err)
}
