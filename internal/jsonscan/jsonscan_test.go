package jsonscan

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

var unlimited = Limits{Containers: -1, Depth: -1}

const chunk = `{"id":"chatcmpl-9xKQm2wVbTz0","object":"chat.completion.chunk","created":1712345678,"model":"gpt-4o-mini-2024-07-18","system_fingerprint":"fp_0123456789","choices":[{"index":0,"delta":{"content":" The answer"},"logprobs":null,"finish_reason":null}]}`

// documents are valid and begin with a bracket or a quote, so that every
// proper prefix of them is incomplete.
var documents = []string{
	`{}`, `[]`, `""`, `[[]]`, `[{}]`, `{"a":{}}`, `[[],[]]`,
	`{"a":1}`, `{"a":-1.5e+10,"b":[true,false,null,0,-0,0.0,1E5,1e-7]}`,
	` { "a" : [ 1 , 2 ] , "b" : { } , "c" : [ ] } `,
	"\t\r\n [\n1\r\n,\t2 ]",
	`"a\"\\\/\b\f\n\r\t\u00e9\uD83D\ude00z"`,
	`"long enough to take the fast path, and then some \" more of it"`,
	`["héllo wörld","日本語テキスト","😀"]`,
	"\"\xff\xfe bad UTF-8 \xc3\"", "\"\x7f\x80\xa0\"",
	`{"":"","a":{"b":{"c":[[[{"d":[]}]]]}}}`,
	`{"a":1,"a":2}`,
	chunk,
}

func TestCheckVerdicts(t *testing.T) {
	for _, c := range []struct {
		in  string
		end int
		err error
	}{
		{"", 0, ErrIncomplete},
		{" \t\r\n", 4, ErrIncomplete},
		{"\v", 0, ErrSyntax},
		{"\uFEFF{}", 0, ErrSyntax},
		{"0", 1, nil}, {"12", 2, nil}, {" 12 ", 3, nil}, {"-0", 2, nil}, {"12,", 2, nil},
		{"01", 1, nil}, // the value 0, and something else
		{"[01]", 2, ErrSyntax},
		{"-", 1, ErrIncomplete}, {"1.", 2, ErrIncomplete}, {"1e", 2, ErrIncomplete}, {"1e+", 3, ErrIncomplete},
		{"-x", 1, ErrSyntax}, {"1.x", 2, ErrSyntax}, {"1ex", 2, ErrSyntax}, {"1e+-", 3, ErrSyntax},
		{"+1", 0, ErrSyntax}, {".5", 0, ErrSyntax}, {"NaN", 0, ErrSyntax}, {"Infinity", 0, ErrSyntax},
		{"true", 4, nil}, {"false", 5, nil}, {"null", 4, nil}, {"nullx", 4, nil},
		{"tru", 3, ErrIncomplete}, {"trux", 3, ErrSyntax}, {"True", 0, ErrSyntax},
		{`"a`, 2, ErrIncomplete}, {`"a"b`, 3, nil},
		{`"\`, 2, ErrIncomplete}, {`"\x"`, 2, ErrSyntax}, {`"\u12`, 5, ErrIncomplete}, {`"\u12g4"`, 5, ErrSyntax},
		{`"\u@@@@"`, 3, ErrSyntax}, {`"\u` + "\x00", 3, ErrSyntax},
		{"\"a\nb\"", 2, ErrSyntax}, {"\"0123456789\x1f\"", 11, ErrSyntax}, {"\"\x00\"", 1, ErrSyntax},
		{"'a'", 0, ErrSyntax},
		{"{", 1, ErrIncomplete}, {"{,", 1, ErrSyntax}, {"{]", 1, ErrSyntax}, {"{1", 1, ErrSyntax},
		{`{"a"`, 4, ErrIncomplete}, {`{"a" `, 5, ErrIncomplete}, {`{"a",`, 4, ErrSyntax}, {`{"a"}`, 4, ErrSyntax},
		{`{"a":}`, 5, ErrSyntax}, {`{"a":1`, 6, ErrIncomplete}, {`{"a":1,}`, 7, ErrSyntax}, {`{"a":1]`, 6, ErrSyntax},
		{`{"a":1 "b"`, 7, ErrSyntax}, {`{"a"::1}`, 5, ErrSyntax},
		{"[", 1, ErrIncomplete}, {"[,", 1, ErrSyntax}, {"[}", 1, ErrSyntax}, {"[1,]", 3, ErrSyntax}, {"[1 2]", 3, ErrSyntax},
		{"[1:2]", 2, ErrSyntax}, {"]", 0, ErrSyntax}, {"}", 0, ErrSyntax}, {":", 0, ErrSyntax}, {",", 0, ErrSyntax},
		{`[{"a":[]}]}`, 10, nil}, {"{} x", 2, nil}, {"{}{", 2, nil},
		{"<html>", 0, ErrSyntax}, {"// c\n{}", 0, ErrSyntax},
	} {
		end, err := Check([]byte(c.in), unlimited)
		require.Equal(t, c.err, err, "%q", c.in)
		require.Equal(t, c.end, end, "%q", c.in)
		requireLikeEncodingJSON(t, []byte(c.in))
	}
}

func TestEveryProperPrefixIsIncomplete(t *testing.T) {
	for _, doc := range documents {
		doc := strings.TrimRight(doc, " ")
		end, err := Check([]byte(doc), unlimited)
		require.NoError(t, err, doc)
		require.Equal(t, len(doc), end, doc)
		for i := range len(doc) {
			end, err := Check([]byte(doc[:i]), unlimited)
			require.Equal(t, ErrIncomplete, err, "%q", doc[:i])
			require.Equal(t, i, end, "%q", doc[:i])
		}
	}
}

// Strings are scanned eight bytes at a time: each byte must be judged the same
// wherever it is, and whatever is next to it.
func TestEveryByteAtEveryPlaceInAString(t *testing.T) {
	for c := range 256 {
		for _, fill := range []string{"a", "!", "\u0020", "\u0080", "ÿ"} {
			for n := range 20 {
				doc := []byte(`"` + strings.Repeat(fill, n) + string([]byte{byte(c)}) + strings.Repeat(fill, 19-n) + `"`)
				requireLikeEncodingJSON(t, doc)
			}
		}
	}
}

// A scanner that is given the lines must say at each line what Check says of
// everything so far.
func TestScannerAgreesWithCheckAtEveryLine(t *testing.T) {
	for _, doc := range append([]string{
		"{\n\"a\"\n:\n[\n1\n,\n{\n}\n]\n,\n\"b\":\ntrue}", "\n\n12\n", "tru\n\n", "\"a\nb\"", "{\"a\nb", "1.\n5", "[1\n2]",
		strings.Repeat("[\n{\"a\":\n", 300) + "1" + strings.Repeat("\n}\n]", 300),
	}, documents...) {
		requireScannerAgrees(t, []byte(doc), unlimited)
		requireScannerAgrees(t, []byte(doc), Limits{3, 2})
	}
}

func requireScannerAgrees(t *testing.T, doc []byte, lim Limits) {
	t.Helper()
	var s Scanner
	s.Reset(lim)
	at := 0
	for line := range bytes.SplitSeq(doc, []byte("\n")) {
		end, err := s.Line(line)
		wantEnd, wantErr := Check(doc[:at+len(line)], lim)
		require.Equal(t, wantErr, err, "%q", doc[:at+len(line)])
		if err == nil {
			require.Equal(t, wantEnd, at+end, "%q", doc)
		}
		if err != ErrIncomplete {
			return
		}
		at += len(line) + 1
	}
}

func TestLimitsStopTheScan(t *testing.T) {
	for _, c := range []struct {
		in  string
		lim Limits
		err error
	}{
		{`12`, Limits{}, nil},
		{`[`, Limits{}, ErrTooBig},
		{`[]`, Limits{1, 1}, nil},
		{`[[]]`, Limits{2, 2}, nil},
		{`[[]]`, Limits{1, 2}, ErrTooBig},
		{`[[]]`, Limits{2, 1}, ErrTooBig},
		{`[[],[],{}]`, Limits{4, 2}, nil},
		{`[[],[],{}]`, Limits{3, 2}, ErrTooBig},
		{`[[[]],{"a":{}}]`, Limits{-1, 3}, nil},
		{`[x`, Limits{1, 1}, ErrSyntax},
		{`[[x`, Limits{1, 1}, ErrTooBig},
		{`["[[[[{{{{"]`, Limits{1, 1}, nil},
	} {
		_, err := Check([]byte(c.in), c.lim)
		require.Equal(t, c.err, err, "%s %v", c.in, c.lim)
	}
}

func TestManySmallContainersAreTooBig(t *testing.T) {
	doc := []byte(`{"choices":[` + strings.Repeat(`{},`, 300_000) + `{}]}`)
	end, err := Check(doc, Limits{100_000, 100})
	require.Equal(t, ErrTooBig, err)
	require.Equal(t, len(`{"choices":[`)+3*(100_000-2), end)

	end, err = Check(doc, Limits{300_003, 3})
	require.NoError(t, err)
	require.Equal(t, len(doc), end)
}

func TestDeepNesting(t *testing.T) {
	const n = 100_000
	for _, open := range []string{"[", `{"a":`} {
		doc := []byte(strings.Repeat(open, n))
		end, err := Check(doc, Limits{-1, 100})
		require.Equal(t, ErrTooBig, err)
		require.Equal(t, 100*len(open), end)
		_, err = Check(doc, unlimited)
		require.Equal(t, ErrIncomplete, err)
	}
	// The kinds of all levels are remembered, on both sides of every seam.
	var left, right []byte
	for i := range n {
		if i*i%7 < 3 {
			left, right = append(left, '['), append(right, ']')
		} else {
			left, right = append(left, `{"a":`...), append(right, '}')
		}
	}
	slices.Reverse(right)
	doc := slices.Concat(left, []byte("1"), right)
	end, err := Check(doc, unlimited)
	require.NoError(t, err)
	require.Equal(t, len(doc), end)
	for level := 0; level < n; level++ {
		if level < 250 && level%16 != 0 || level > 330 && level%9973 != 0 {
			continue // all would take minutes
		}
		i := len(doc) - 1 - level
		bad := slices.Clone(doc)
		bad[i] ^= ']' ^ '}'
		end, err := Check(bad, unlimited)
		require.Equal(t, ErrSyntax, err)
		require.Equal(t, i, end)
	}
}

func TestMembersAndElements(t *testing.T) {
	var got []string
	for k, v := range Members([]byte(" { \"a\" : [ 1 , {\"x\":\"]\"} ] ,\"b\\n\":\"}\\\"\" , \"\":-1.5e3,\"n\":null,\"o\":{ } } trailing")) {
		got = append(got, string(k)+"="+string(v))
	}
	require.Equal(t, []string{`a=[ 1 , {"x":"]"} ]`, `b\n="}\""`, `=-1.5e3`, `n=null`, `o={ }`}, got)

	got = nil
	for v := range Elements([]byte(` [ 1,"a,b" , [ [ ] ] ,{"a":"["},true ] `)) {
		got = append(got, string(v))
	}
	require.Equal(t, []string{`1`, `"a,b"`, `[ [ ] ]`, `{"a":"["}`, `true`}, got)

	for _, in := range []string{"", " ", "null", "12", `"{}"`, "[", "{", "{}", "[]", `{"a`, `{"a"`, `{"a":`, `{"a":}`, `{"a":"`, `{"a":[`, "[,", "[}", "x"} {
		for k, v := range Members([]byte(in)) {
			t.Errorf("%q: member %q %q", in, k, v)
		}
		for v := range Elements([]byte(in)) {
			t.Errorf("%q: element %q", in, v)
		}
	}
	for range Members([]byte(`{"a":1,"b":2}`)) {
		break
	}
	for range Elements([]byte(`[1,2]`)) {
		break
	}
}

// A Cursor finds what Members of Members find, whatever of it is read and whatever is passed over.
func TestCursorReadsDeepInOnePass(t *testing.T) {
	doc := []byte(` { "a" : [ { "x" : 1 , "y" : [ ] } , [ [ ] , { } ] , "z" ] , "b" : { } , "c" : { "d" : "e" } , "f" : null } `)
	var got []string
	c := Read(doc)
	for key := range c.Members() {
		got = append(got, string(key))
		switch string(key) {
		case "a":
			for range c.Elements() {
				for key := range c.Members() {
					got = append(got, string(key))
					if string(key) == "x" {
						got = append(got, string(c.Value()))
						require.Equal(t, "1", string(doc[c.Offset()-1:c.Offset()]))
					}
				}
			}
		case "b", "f":
			for range c.Elements() {
				t.Error("no array")
			}
			for range c.Members() {
				t.Error("nothing in it")
			}
		}
	}
	require.Equal(t, []string{"a", "x", "1", "y", "b", "c", "f"}, got)
	require.Equal(t, len(doc)-1, c.Offset())
	require.Nil(t, c.Value(), "there is no other")
}

// trace reads the value at a Cursor and returns what the Cursor reported. choices decides for each value in it whether
// trace skips it, reads it whole, or goes on inside it.
func trace(c *Cursor, choices *[]byte) (out []string) {
	choice := byte(2)
	if rest := *choices; len(rest) > 0 {
		choice, *choices = rest[0], rest[1:]
	}
	out = append(out, fmt.Sprintf("%q at %d", c.Peek(), c.Offset()))
	if choice%3 == 0 {
		return out
	}
	if choice%3 == 2 {
		for key := range c.Members() {
			out = append(append(out, string(key)), trace(c, choices)...)
		}
		for range c.Elements() {
			out = append(out, trace(c, choices)...)
		}
	}
	return append(out, string(c.Value()), fmt.Sprintf("end %d", c.Offset()))
}

// requireSameTrace compares the Cursor of a Scanner that has checked doc line by line with one that scans doc.
func requireSameTrace(t *testing.T, s *Scanner, doc, choices []byte) {
	t.Helper()
	s.Reset(unlimited)
	last := 0
	for line := range bytes.SplitSeq(doc, []byte("\n")) {
		end, err := s.Line(line)
		if err == nil && last+end == len(doc) {
			again := choices
			plain, known := Read(doc), s.Read(doc)
			require.Equal(t, trace(&plain, &choices), trace(&known, &again), "%q", doc)
		}
		last += len(line) + 1
	}
}

func TestCursorOfAScannerFindsTheSame(t *testing.T) {
	var s Scanner
	all := append([]string{"1", "\n1", "{\n\"a\":[1,2]}", `{"a":[` + strings.Repeat(`{"b":1},`, 300) + `[]]}`}, documents...)
	for range 3 { // the Scanner records the tokens of a text if an earlier one had as many
		for _, doc := range all {
			doc := strings.TrimRight(doc, " ")
			for _, choices := range []string{"", "\x01", "\x02\x00\x01\x02\x02\x01\x00", "\x02\x01\x01\x01\x01\x01\x01\x01\x01\x01"} {
				requireSameTrace(t, &s, []byte(doc), []byte(choices))
			}
		}
	}
	s.Reset(unlimited)
	_, err := s.Line([]byte(chunk))
	require.NoError(t, err)
	c := s.Read([]byte(chunk))
	require.NotEmpty(t, c.tokens)
	require.LessOrEqual(t, s.Size(), 6<<10)
}

func FuzzCursorOfAScanner(f *testing.F) {
	for _, doc := range documents {
		f.Add([]byte(doc), []byte("\x02\x02\x01\x00\x02\x02"))
	}
	f.Add([]byte("{\n\"a\":[1,{}]\n}"), []byte{})
	f.Add([]byte(" [ [ ] , { } , 5 ]"), []byte{2, 1, 2, 0})
	f.Fuzz(func(t *testing.T, doc, choices []byte) {
		var s Scanner
		for range 2 {
			requireSameTrace(t, &s, doc, choices)
		}
	})
}

// stringValues finds each string value in a text, if that has passed Check.
func stringValues(c *Cursor, found func(start, end int)) {
	for range c.Members() {
		stringValues(c, found)
	}
	for range c.Elements() {
		stringValues(c, found)
	}
	if v := c.Value(); len(v) > 0 && v[0] == '"' {
		found(c.Offset()-len(v), c.Offset())
	}
}

// A caller that appends to what it was given must not write into the rest.
func TestSlicesAreCapped(t *testing.T) {
	doc := []byte(`{"a":[1,2]}`)
	for k, v := range Members(doc) {
		_, _ = append(k, 'x'), append(v, 'x')
		for e := range Elements(v) {
			_ = append(e, 'x')
		}
	}
	require.Equal(t, `{"a":[1,2]}`, string(doc))
}

func TestText(t *testing.T) {
	for _, c := range []struct {
		in, want string
		ok       bool
	}{
		{`""`, "", true},
		{`"plain"`, "plain", true},
		{`"é\n\u00e9\ud83d\ude00\ud83dx"`, "é\né😀\uFFFDx", true},
		{"\"\xff\"", "\uFFFD", true},
		{`12`, "", false}, {`null`, "", false}, {``, "", false}, {`"`, "", false}, {`"a`, "", false}, {`"a"x`, "", false}, {`"\x"`, "", false},
	} {
		got, ok := Text([]byte(c.in))
		require.Equal(t, c.ok, ok, c.in)
		require.Equal(t, c.want, got, c.in)
	}
}

func TestNothingAllocates(t *testing.T) {
	doc := []byte(`{"a":` + chunk + `,"l":[` + chunk + `,"x\ny",12],"d":` + strings.Repeat("[", 200) + strings.Repeat("]", 200) + `}`)
	broken := doc[:len(doc)-10]
	n := 0
	require.Zero(t, testing.AllocsPerRun(100, func() {
		_, err1 := Check(doc, Limits{1000, 256})
		_, err2 := Check(broken, Limits{1000, 256})
		_, err3 := Check(doc, Limits{2, 2})
		if err1 != nil || err2 != ErrIncomplete || err3 != ErrTooBig {
			panic("wrong verdict")
		}
		for k, v := range Members(doc) {
			n += len(k)
			for e := range Elements(v) {
				n += len(e)
			}
		}
		c := Read(doc)
		for k := range c.Members() {
			n += len(k)
			for range c.Elements() {
				n += len(c.Value())
			}
		}
	}))
	require.NotZero(t, n)
}

// requireLikeEncodingJSON compares Check with a json.Decoder: the verdict,
// including whether more text could help, and the offset.
func requireLikeEncodingJSON(t *testing.T, data []byte) {
	t.Helper()
	if bytes.Count(data, []byte("["))+bytes.Count(data, []byte("{")) > 9000 {
		return // encoding/json gives up at a depth of 10000
	}
	end, err := Check(data, unlimited)
	if end < 0 || end > len(data) {
		t.Fatalf("%q: offset %d", data, end)
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	var raw json.RawMessage
	want := dec.Decode(&raw)
	switch {
	case want == nil:
		if err != nil || int64(end) != dec.InputOffset() {
			t.Fatalf("%q: %d, %v; encoding/json: valid up to %d", data, end, err, dec.InputOffset())
		}
		if rest := data[end:]; skipSpace(rest, 0) == len(rest) && !json.Valid(data) {
			t.Fatalf("%q: accepted, but not by json.Valid", data)
		}
	case errors.Is(want, io.EOF) || errors.Is(want, io.ErrUnexpectedEOF):
		if err != ErrIncomplete {
			t.Fatalf("%q: %v; encoding/json: %v", data, err, want)
		}
	default:
		if err != ErrSyntax {
			t.Fatalf("%q: %v; encoding/json: %v", data, err, want)
		}
	}
}

func FuzzCheck(f *testing.F) {
	for _, doc := range documents {
		f.Add([]byte(doc))
		f.Add([]byte(doc[:len(doc)/2]))
		f.Add([]byte(doc + "x"))
	}
	f.Add([]byte("[1.5e+7,-0.0,01]"))
	f.Add([]byte("{\n\"a\": tru\n}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		requireLikeEncodingJSON(t, data)
		requireScannerAgrees(t, data, unlimited)
		requireScannerAgrees(t, data, Limits{5, 3})
	})
}

func FuzzMembers(f *testing.F) {
	for _, doc := range documents {
		f.Add([]byte(doc))
		f.Add([]byte(doc[1:]))
	}
	f.Add([]byte(`{"a":[{"b":"\ud83d\ude00"}, 1 ],"c":{"a":"x"}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		// Whatever it is, nothing panics or yields more than there is.
		inMembers, inElements := 0, 0
		for k, v := range Members(data) {
			inMembers += len(k) + len(v)
		}
		for v := range Elements(data) {
			inElements += len(v)
		}
		if max(inMembers, inElements) > len(data) {
			t.Fatalf("%q: more than there is", data)
		}
		c := Read(data)
		stringValues(&c, func(start, end int) {
			if start < 0 || end > len(data) || start >= end {
				t.Fatalf("%q: %d to %d", data, start, end)
			}
		})
		s, ok := Text(data)
		var want *string
		if err := json.Unmarshal(data, &want); ok && (err != nil || want == nil || *want != s) {
			t.Fatalf("%q: text %q, %v", data, s, err)
		}
		if !json.Valid(data) {
			return
		}

		var list []json.RawMessage
		if json.Unmarshal(data, &list) == nil {
			i := 0
			for v := range Elements(data) {
				if string(v) != string(list[i]) {
					t.Fatalf("%q: element %d is %q", data, i, v)
				}
				i++
			}
			if i != len(list) {
				t.Fatalf("%q: %d elements", data, i)
			}
		}
		var object map[string]json.RawMessage
		if json.Unmarshal(data, &object) == nil && object != nil {
			got := map[string]string{}
			for k, v := range Members(data) {
				if _, double := got[string(k)]; double || bytes.IndexByte(k, '\\') >= 0 || !utf8.Valid(k) {
					return
				}
				got[string(k)] = string(v)
			}
			want := map[string]string{}
			for k, v := range object {
				want[k] = string(v)
			}
			if !maps.Equal(want, got) {
				t.Fatalf("%q: %q, want %q", data, got, want)
			}
		}
	})
}

func BenchmarkCheck(b *testing.B) {
	text := strings.Repeat(`It is a truth universally acknowledged, that a \"single man\" in possession of a good fortune, must be in want of a wife.\n`, 80)
	for _, c := range []struct{ name, doc string }{
		{"chunk", chunk},
		{"answer", fmt.Sprintf(`{"id":"x","choices":[{"index":0,"message":{"role":"assistant","content":"%s"}}],"usage":{"total_tokens":2000}}`, text)},
		{"embedding", `{"data":[{"embedding":[` + strings.Repeat("-0.012345678,", 1535) + `0.5]}]}`},
		{"containers", `{"choices":[` + strings.Repeat(`{},`, 30_000) + `{}]}`},
	} {
		doc := []byte(c.doc)
		b.Run(c.name, func(b *testing.B) {
			b.SetBytes(int64(len(doc)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Check(doc, Limits{100_000, 100}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// In text that Check accepts, the end of a string needs no second check.
func FuzzSkipString(f *testing.F) {
	for _, text := range []string{`a"`, `\""`, `\\"`, `\\\"b"`, strings.Repeat(`x`, 100) + `"`, strings.Repeat(`x`, 31) + `\"` + strings.Repeat(`\\`, 40) + `"`, `\u00e9 é"`, `a`} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		want, err := scanString(text, 0)
		end, ok := skipString(text, 0)
		if err == nil && (end != want || !ok) || err == ErrIncomplete && ok {
			t.Fatalf("%q: %d, %t, want %d, %v", text, end, ok, want, err)
		}
	})
}
