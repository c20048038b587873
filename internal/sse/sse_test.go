package sse

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aiguard-go/aiguard/internal/jsonscan"
	"github.com/stretchr/testify/require"
)

const testMax = 64

var (
	testLim  = jsonscan.Limits{Containers: 8, Depth: 4}
	errReset = errors.New("connection reset")
)

var streams = []struct {
	name, in string
	want     string // one line for each event, see describe, and the error
}{
	{"nothing", "", "EOF"},
	{"blank lines", "\n\r\n\n", "EOF"},
	{"one event", "data: {\"a\":1}\n\n", `{"a":1} /7; EOF`},
	{"no space after the colon", "data:{}\n\n", `{} /2; EOF`},
	{"space around the data", "data: \t {} \t\n\n", `{} /2; EOF`},
	{"CRLF", "data: {}\r\n\r\ndata: [1]\r\n\r\n", `{} /2; [1] /3; EOF`},
	{"done", "data: {}\n\ndata: [DONE]\n\n", `{} /2; [DONE] done; EOF`},
	{"done without its space, with others", "data:[DONE] \n", `[DONE] done; EOF`},
	{"nearly done", "data: [DONE]]\n\ndata: [DONE\n\n", `[DONE]] syntax; [DONE syntax; EOF`},
	{"events without blank lines", "data: {}\ndata: {\"a\":2}\n", `{} /2; {"a":2} /7; EOF`},
	{"surplus blank lines", "\n\n\ndata: {}\n\n\n\n\ndata: []\n\n\n", `{} /2; [] /2; EOF`},
	{"name", "event: error\ndata: {}\n\ndata: {}\n\n", `error: {} /2; {} /2; EOF`},
	{"last name wins", "event: a\nevent:b\ndata: 1\n\n", `b: 1 /1; EOF`},
	{"empty name", "event: a\nevent\ndata: 1\n\n", `1 /1; EOF`},
	{"name without data is forgotten", "event: a\n\ndata: 1\n\n", `1 /1; EOF`},
	{"name behind data that was complete", "data: {}\nevent: late\n\ndata: {}\n\n", `{} /2; {} /2; EOF`},
	{"name behind a scalar", "data: 1\nevent: late\n\n", `late: 1 /1; EOF`},
	{"scalars wait for the blank line", "data: 12\ndata: 13\n\ndata: \"x\"\n\n", `12|13 /2; "x" /3; EOF`},
	{"several lines", "data: {\"a\":\ndata: 1\ndata: }\n\n", `{"a":|1|} /9; EOF`},
	{"several lines with space", "data:  {\"a\": \ndata:  1\ndata: }  \n\n", `{"a": | 1|} /11; EOF`},
	{"a token over two lines", "data: {\"a\":\"x\ndata: y\"}\n\n", `{"a":"x|y"} syntax; EOF`},
	{"syntax error waits", "data: oops\ndata: {}\n\ndata: {}\n\n", `oops|{} syntax; {} /2; EOF`},
	{"something behind the value", "data: {} x\n\ndata: {}{}\n\n", `{} x /2; {}{} /2; EOF`},
	{"empty data", "data:\n\ndata\n\n", ` incomplete;  incomplete; EOF`},
	{"empty data line, then data", "data:\ndata: {}\n\n", `|{} /3; EOF`},
	{"data that ends in a blank one", "data: tru  \ndata:  \n\n", `tru  | syntax; EOF`},
	{"incomplete at the blank line", "data: {\"a\":\n\ndata: {}\n\n", `{"a": incomplete; {} /2; EOF`},
	{"other fields", "id: 1\nretry: 5\nfoo: bar\nfoo\ndatax: {}\n data: {}\ndata : {}\ndata: []\n\n", `[] /2; EOF`},
	{"comments", ": ping\n\n:\n\n::\ndata: {}\n: ping\n\n", `{} /2; EOF`},
	{"a comment in the middle of data", "data: {\"a\":\n: ping\ndata: 1}\n\n", `{"a":|1} /8; EOF`},
	{"a long comment", ":" + strings.Repeat("x", 20_000) + "\r\ndata: {}\n\n", `{} /2; EOF`},
	{"a long comment at the end", "data: {}\n\n:" + strings.Repeat("x", 20_000), `{} /2; EOF`},
	{"byte order mark", "\uFEFFdata: {}\n\n\uFEFFdata: []\n\n", `{} /2; EOF`},
	{"byte order mark, comment", "\uFEFF:" + strings.Repeat("x", 100) + "\ndata: {}\n\n", `{} /2; EOF`},
	{"half a byte order mark", "\xEF\xBB", `EOF`},
	{"CR is no line end", "data: 1\rdata: 2\n\n", "1\rdata: 2 /1; EOF"},

	{"last line without newline", "data: {}\n\ndata: {\"a\":1}", `{} /2; {"a":1} /7; EOF`},
	{"last line with half a CRLF", "data: 1\r", `1 /1; EOF`},
	{"last event without blank line", "data: 12\n", `12 /2; EOF`},
	{"last event incomplete", "event: e\ndata: {\"a\"", `e: {"a" incomplete; EOF`},

	{"a bare error", "{\"error\":{}}\n", `{"error":{}} /12; EOF`},
	{"a bare error, no newline", "data: {}\n\n{\"error\":{}}", `{} /2; {"error":{}} /12; EOF`},
	{"a bare error, pretty", "data: {}\n\n{\n  \"error\": {\n\"data\": 1\n  }\n}\ndata: {}\n\n", `{} /2; {|  "error": {|"data": 1|  }|} /30; {} /2; EOF`},
	{"a bare error, pretty, CRLF", "{\r\n}\r\n\r\n", `{|} /3; EOF`},
	{"a bare value holds what looks like data", "{\ndata: {}\n\n", `{|data: {} syntax; EOF`},
	{"a bare value ends at a blank line", "{\n\n}\ndata: {}\n\n", `{ incomplete; {} /2; EOF`},
	{"a comment in a bare value", "{\n: ping\n}\n", `{|} /3; EOF`},
	{"a broken bare value", "{oops\ndata: 1\nid: 1\n\n", `{oops|1 syntax; EOF`},
	{"only the first line has a field", "data: [\n{}\n]\n\n", `[|{}|] /6; EOF`},
	{"other bare lines", "Internal Server Error\n[1]\n\"x\"\n<html>\n\n", `EOF`},

	{"too many containers", "data: [{},{},{},{},{},{},{},{}]\n\n", `[{},{},{},{},{},{},{},{}] toobig; EOF`},
	{"too deep, unfinished", "data: [\ndata: [[[[\ndata: {}\n", `[|[[[[ toobig; {} /2; EOF`},
	{"longest line", "data: " + strings.Repeat("1", testMax-6) + "\r\n\n", strings.Repeat("1", testMax-6) + ` /58; EOF`},
	{"longest line at the end", "data: " + strings.Repeat("1", testMax-6), strings.Repeat("1", testMax-6) + ` /58; EOF`},
	{"longest line with half a CRLF", "data: " + strings.Repeat("1", testMax-6) + "\r", strings.Repeat("1", testMax-6) + ` /58; EOF`},
	{"line too long", "data: {}\n\ndata: " + strings.Repeat("1", testMax-5) + "\n\ndata: {}\n\n", `{} /2; too long`},
	{"line too long at the end", "data: " + strings.Repeat("1", testMax-5), `too long`},
	{"line without end", "data: {}\n\ndata: " + strings.Repeat("1", 20_000), `{} /2; too long`},
	{"unknown line too long", "x" + strings.Repeat("1", testMax) + "\n", `too long`},
	{"most data", "data: " + strings.Repeat("1", 31) + "\ndata: " + strings.Repeat("1", 32) + "\n\n", strings.Repeat("1", 31) + "|" + strings.Repeat("1", 32) + ` /31; EOF`},
	{"too much data", "data: " + strings.Repeat("1", 32) + "\ndata: " + strings.Repeat("1", 32) + "\n\n", `too long`},
	{"too many empty lines", strings.Repeat("data\n", 100), `too long`},
}

// describe reads r to its end. An event is its data with | for line ends,
// then /offset, done or what is wrong with it.
func describe(t testing.TB, r *Reader) string {
	return describeLearning(t, r, func(Event) []jsonscan.Span { return nil })
}

// describeLearning does that with a Reader that learns the string that text
// finds in each event. It must make no difference.
func describeLearning(t testing.TB, r *Reader, free func(Event) []jsonscan.Span) string {
	var out []string
	for {
		ev, arrived := Event{}, false
		if len(out)%3 > 0 { // it must make no difference whether an event is taken by Arrived
			ev, arrived = r.Arrived()
		}
		var err error
		if !arrived {
			ev, err = r.Next()
		}
		if err != nil {
			_, again := r.Next()
			require.Equal(t, err, again)
			switch err {
			case ErrLineTooLong:
				return strings.Join(append(out, "too long"), "; ")
			default:
				return strings.Join(append(out, err.Error()), "; ")
			}
		}
		if !ev.Done {
			end, err := jsonscan.Check(ev.Data, r.lim)
			require.Equal(t, err, ev.Err, "%q", ev.Data)
			if err == nil {
				require.Equal(t, end, ev.End, "%q", ev.Data)
			}
		}
		if !ev.Like {
			r.Learn(ev, free(ev))
		}
		s := strings.ReplaceAll(string(ev.Data), "\n", "|")
		if ev.Name != nil {
			s = string(ev.Name) + ": " + s
		}
		switch ev.Err {
		case nil:
			if ev.Done {
				s += " done"
			} else {
				s += fmt.Sprintf(" /%d", ev.End)
			}
		case jsonscan.ErrSyntax:
			s += " syntax"
		case jsonscan.ErrIncomplete:
			s += " incomplete"
		case jsonscan.ErrTooBig:
			s += " toobig"
		default:
			t.Fatalf("verdict %v", ev.Err)
		}
		if ev.Err != nil || ev.Done {
			require.Zero(t, ev.End)
		}
		out = append(out, s)
	}
}

// pieces is a reader that returns its pieces one by one, then err.
type pieces struct {
	rest [][]byte
	err  error
	with bool // err comes together with the last piece
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.rest) == 0 {
		return 0, p.err
	}
	n := copy(b, p.rest[0])
	p.rest[0] = p.rest[0][n:]
	if len(p.rest[0]) == 0 {
		p.rest = p.rest[1:]
	}
	if p.with && len(p.rest) == 0 {
		return n, p.err
	}
	return n, nil
}

func byteByByte(in []byte) (all [][]byte) {
	for i := range in {
		all = append(all, in[i:i+1])
	}
	return all
}

func TestStreams(t *testing.T) {
	for _, c := range streams {
		t.Run(c.name, func(t *testing.T) {
			in := []byte(c.in)
			require.Equal(t, c.want, describe(t, NewReader(bytes.NewReader(in), testMax, testLim)))
			require.Equal(t, c.want, describe(t, NewReader(&pieces{byteByByte(in), io.EOF, true}, testMax, testLim)))
			for i := 0; i <= len(in); i += 1 + len(in)/500 {
				r := NewReader(&pieces{[][]byte{in[:i], in[i:]}, io.EOF, i%2 == 0}, testMax, testLim)
				require.Equal(t, c.want, describe(t, r), "split at %d", i)
			}
		})
	}
}

// lastString is the last member of an object, if that is a string.
func lastString(ev Event) (last []jsonscan.Span) {
	if ev.Err == nil && !ev.Done {
		c := jsonscan.Read(ev.Data)
		for range c.Members() {
			last = nil
			if v := c.Value(); len(v) > 0 && v[0] == '"' {
				last = []jsonscan.Span{{Start: c.Offset() - len(v), End: c.Offset()}}
			}
		}
	}
	return last
}

func TestEventsThatAreAlikeAreToldFromThoseThatOnlyLookIt(t *testing.T) {
	for _, c := range []struct {
		in   string
		like string // of each event, whether it is like what was learned
		want string
	}{
		{"data: {\"a\":\"x\"}\n\ndata: {\"a\":\"\"}\n\ndata: {\"a\":\"y\\\"\"}\n", "nyy", `{"a":"x"} /9; {"a":""} /8; {"a":"y\""} /11; EOF`},
		{"event: e\nid: 1\ndata: {\"a\":\"x\"}\n\nevent: e\nid: 1\ndata: {\"a\":\"yz\"}\n\nevent: e\nid: 2\ndata: {\"a\":\"\"}\n\n: c\nevent: f\nid: 1\ndata: {\"a\":\"y\"}\n\n", "nyyn",
			`e: {"a":"x"} /9; e: {"a":"yz"} /10; e: {"a":""} /8; f: {"a":"y"} /9; EOF`},
		{"data: {\"a\":\"x\"}\n\ndata: {\"a\":\"\n\ndata: {\"a\":\"y\"}\n\ndata: {\"a\":\"z\"}\nid: 3\n\n\ndata: {\"a\":\"z\"}", "nnnyy",
			`{"a":"x"} /9; {"a":" incomplete; {"a":"y"} /9; {"a":"z"} /9; {"a":"z"} /9; EOF`},
		{"data: {\"a\":\"x\"}\ndata:  {\"a\":\"y\"} \r\nevent: e\ndata:{\"a\":\"z\"}\n", "nyn", `{"a":"x"} /9; {"a":"y"} /9; e: {"a":"z"} /9; EOF`},
		{"data: {\"a\":\"x\"}\n{\"a\":\"y\"}\n", "ny", `{"a":"x"} /9; {"a":"y"} /9; EOF`},
		{"data: {\"a\":\"x\"}\ndata: {\"a\":\"\\x\"}\n\n", "nn", `{"a":"x"} /9; {"a":"\x"} syntax; EOF`},
		{"data: {\"a\":\"x\"}\ndata: {\"a\":\"y\"} z\n\n", "nn", `{"a":"x"} /9; {"a":"y"} z /9; EOF`},
		{"data: {\"a\":\"x\"}\ndata: {\"a\":\"y\ndata: {\"a\":\"z\"}\n\n", "nn", `{"a":"x"} /9; {"a":"y|{"a":"z"} syntax; EOF`},
		{"data: {\"a\":\"x\"}\ndata: {\"a\":\ndata: {\"a\":\"z\"}\ndata: }\n", "nn", `{"a":"x"} /9; {"a":|{"a":"z"}|} /17; EOF`},
		{"data: {\"a\":\"x\"}\ndata: {\"a\":1}\ndata: {\"a\":\"x\"}\n", "nnn", `{"a":"x"} /9; {"a":1} /7; {"a":"x"} /9; EOF`},
		{"data: {\"a\":\"x\"} z\n\ndata: {\"a\":\"x\"} z\n\n", "nn", `{"a":"x"} z /9; {"a":"x"} z /9; EOF`},
		{"data: {\"a\":\ndata: \"x\"}\ndata: {\"a\":\ndata: \"x\"}\n", "nn", `{"a":|"x"} /10; {"a":|"x"} /10; EOF`},
	} {
		like := ""
		r := NewReader(strings.NewReader(c.in), testMax, testLim)
		for {
			ev, err := r.Next()
			if err != nil {
				break
			}
			if ev.Like {
				like += "y"
				continue
			}
			like += "n"
			r.Learn(ev, lastString(ev))
		}
		require.Equal(t, c.like, like, c.in)
		require.Equal(t, c.want, describeLearning(t, NewReader(strings.NewReader(c.in), testMax, testLim), lastString), c.in)
		require.Equal(t, c.want, describe(t, NewReader(strings.NewReader(c.in), testMax, testLim)), c.in)
		require.Equal(t, raw(strings.NewReader(c.in), testMax, nil), raw(strings.NewReader(c.in), testMax, lastString))
	}
}

// raw returns what Raw has of all events of a stream. free finds what the Reader learns.
func raw(stream io.Reader, maxLine int, free func(Event) []jsonscan.Span) (all string) {
	r := NewReader(stream, maxLine, testLim)
	for {
		ev, err := r.Next()
		if err != nil {
			return all
		}
		all += string(ev.Raw) + "|"
		if free != nil && !ev.Like {
			r.Learn(ev, free(ev))
		}
	}
}

func TestReadErrorDropsWhatIsIncomplete(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"", "connection reset"},
		{"data: {}\n\ndata: {\"a\":1}", "{} /2; connection reset"},
		{"data: {}\n\ndata: {\"a\":1}\n", "{} /2; {\"a\":1} /7; connection reset"},
		{"data: 12\n", "connection reset"},
		{"data: 12\n\n", "12 /2; connection reset"},
		{"data: {\n", "connection reset"},
		{": ping", "connection reset"},
		{"\xEF", "connection reset"},
	} {
		for _, with := range []bool{false, true} {
			in := []byte(c.in)
			r := NewReader(&pieces{[][]byte{in}, errReset, with && len(in) > 0}, testMax, testLim)
			require.Equal(t, c.want, describe(t, r), c.in)
			r = NewReader(&pieces{byteByByte(in), errReset, with && len(in) > 0}, testMax, testLim)
			require.Equal(t, c.want, describe(t, r), c.in)
		}
	}
}

func TestEventIsReturnedWhileTheStreamHangs(t *testing.T) {
	for _, in := range []string{
		"event: error\ndata: {\"error\":{}}\n",
		"event: error\r\ndata: {\"error\":{}}\r\n",
		": ping\n\nevent: error\ndata: {\"error\":\ndata: {}}\n",
		"{\n \"error\": {}\n}\n",
		"data: [DONE]\n",
		"data: 12\n\n",
		"data: oops\n\n",
		"data: [[[[[\n",
	} {
		pr, pw := io.Pipe()
		go func() {
			_, _ = io.WriteString(pw, in) // and nothing more
		}()
		got := make(chan error, 1)
		go func() {
			_, err := NewReader(pr, testMax, testLim).Next()
			got <- err
		}()
		select {
		case err := <-got:
			require.NoError(t, err)
		case <-time.After(10 * time.Second):
			t.Errorf("%q: no event", in)
		}
		pr.Close()
	}
}

// Next must not ask for more while there is an event to return.
func TestNextReadsOnlyWhenItMust(t *testing.T) {
	r := NewReader(&pieces{[][]byte{[]byte("data: {}\ndata: [DONE]\n\ndata: 1\n\n")}, errReset, false}, testMax, testLim)
	p := r.r.(*pieces)
	for range 3 {
		_, err := r.Next()
		require.NoError(t, err)
		require.NoError(t, r.err)
	}
	require.Empty(t, p.rest)
	_, err := r.Next()
	require.Equal(t, errReset, err)
}

func TestArrivedReturnsWhatHasBeenReadAndNeverReads(t *testing.T) {
	in := "data: {\"a\":1}\n\ndata: {\"b\":2}\n\n: ping\ndata: 3\n\ndata: {\n\ndata: {\"c\":4}\n\ndata: [DONE]\n\ndata: {\"d\""
	r := NewReader(&pieces{[][]byte{[]byte(in), []byte(":5}\n")}, errReset, false}, 1<<10, testLim)
	p := r.r.(*pieces)
	_, ok := r.Arrived()
	require.False(t, ok)
	require.Len(t, p.rest, 2, "nothing has been read")
	var arrived, waited []string
	for {
		ev, ok := r.Arrived()
		if ok {
			arrived = append(arrived, string(ev.Data))
			continue
		}
		require.Len(t, p.rest, 2-min(len(waited), 1))
		_, again := r.Arrived()
		require.False(t, again)
		ev, err := r.Next()
		if err != nil {
			require.Equal(t, errReset, err)
			break
		}
		waited = append(waited, string(ev.Data))
		if string(ev.Data) == `{"d":5}` {
			require.Empty(t, p.rest)
			p.rest = [][]byte{nil}
		}
	}
	require.Equal(t, []string{`{"b":2}`, "3", `{"c":4}`}, arrived)
	require.Equal(t, []string{`{"a":1}`, "{", "[DONE]", `{"d":5}`}, waited)
}

func TestReaderThatNeverDeliversIsGivenUp(t *testing.T) {
	_, err := NewReader(readerFunc(func([]byte) (int, error) { return 0, nil }), testMax, testLim).Next()
	require.Equal(t, io.ErrNoProgress, err)
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

// endless repeats text for n bytes.
func endless(n int64, first, text string) io.Reader {
	block := []byte(strings.Repeat(text, 1+4096/len(text)))
	at := 0
	forever := readerFunc(func(b []byte) (int, error) {
		n := copy(b, block[at:])
		at = (at + n) % len(block)
		return n, nil
	})
	return io.MultiReader(strings.NewReader(first), io.LimitReader(forever, n))
}

func held(r *Reader) int { return cap(r.buf) + cap(r.data) + cap(r.name) }

func TestHostileStreamsUseBoundedMemoryAndTime(t *testing.T) {
	const maxLine = 1 << 20
	lim := jsonscan.Limits{Containers: 100_000, Depth: 100}
	for _, c := range []struct {
		name, first, text string
		n                 int64
		want              error
		bound             int
	}{
		{"a comment without end", ":", "x", 64 << 20, io.EOF, minBuffer},
		{"comments", "", ": ping\n\n", 64 << 20, io.EOF, minBuffer},
		{"blank lines", "", "\n", 64 << 20, io.EOF, minBuffer},
		{"names", "", "event: x\n\n", 64 << 20, io.EOF, 2 * minBuffer},
		{"unknown fields", "", "id: 1\n", 64 << 20, io.EOF, minBuffer},
		{"a line without end", "data: ", "x", 64 << 20, ErrLineTooLong, maxLine + minBuffer},
		{"a name without end", "event: ", "x", 64 << 20, ErrLineTooLong, maxLine + minBuffer},
		{"a long name", "event: " + strings.Repeat("x", maxName+1) + "\n", "x", 1, ErrLineTooLong, 2 * minBuffer},
		{"data that never completes", "data: [0\n", "data:,1\n", 64 << 20, ErrLineTooLong, maxLine + 2*minBuffer},
		{"empty data", "data: [\n", "data\n", 64 << 20, ErrLineTooLong, maxLine + 2*minBuffer},
		{"a bare value without end", "{\n", "\t\n", 64 << 20, ErrLineTooLong, maxLine + 2*minBuffer},
		{"brackets", "data: [\n", "data: ]\n", 1 << 20, io.EOF, maxLine + 2*minBuffer},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := NewReader(endless(c.n, c.first, c.text), maxLine, lim)
			for {
				_, err := r.Next()
				require.LessOrEqual(t, held(r), c.bound)
				if err != nil {
					require.Equal(t, c.want, err)
					return
				}
			}
		})
	}
}

func TestSteadyStateAllocatesNothing(t *testing.T) {
	for _, text := range []string{
		"data: {\"choices\":[{\"delta\":{\"content\":\"hello\"}}]}\n\n",
		"event: delta\r\ndata: {\"a\":\r\ndata: [1,2]}\r\n\r\n: ping\r\n\r\n",
		"{\n  \"error\": {}\n}\n\n",
		"data: oops\n\n",
	} {
		r := NewReader(endless(1<<40, "", text), 1<<20, jsonscan.Limits{Containers: 100, Depth: 10})
		next := func() {
			if ev, err := r.Next(); err != nil || len(ev.Data) == 0 {
				panic("no event")
			}
		}
		next()
		require.Zero(t, testing.AllocsPerRun(5000, next), text)
	}
}

func FuzzReader(f *testing.F) {
	for i, c := range streams {
		if len(c.in) < 1000 {
			f.Add([]byte(c.in), uint64(i)*0x9E3779B97F4A7C15, 10*i)
		}
	}
	f.Add([]byte("data: {\"a\":\"x\"}\ndata: {\"a\":\"y\\\"\"}\ndata: {\"a\":\"\\x\"}\n\n"), uint64(1), 100)
	f.Add([]byte("event: e\ndata: {\"a\":\"x\"}\n\nevent: e\ndata: {\"a\":\"y\\\"\"}\n\nevent: e\ndata: {\"a\":\"\\x\"}\n\n"), uint64(1), 100)
	f.Fuzz(func(t *testing.T, in []byte, splits uint64, maxLine int) {
		maxLine = 1 + (maxLine&0xFFFF)%300
		want := describe(t, NewReader(bytes.NewReader(in), maxLine, testLim))

		var parts [][]byte
		for rest := in; len(rest) > 0; {
			n := min(len(rest), 1+int(splits%9))
			splits = splits>>3 ^ splits<<61 ^ uint64(n)
			parts = append(parts, rest[:n])
			rest = rest[n:]
		}
		r := NewReader(&pieces{slices.Clone(parts), io.EOF, splits%2 == 0}, maxLine, testLim)
		if got := describe(t, r); got != want {
			t.Fatalf("in pieces: %s\nat once: %s", got, want)
		}
		if got := describeLearning(t, NewReader(bytes.NewReader(in), maxLine, testLim), lastString); got != want {
			t.Fatalf("learning: %s\nnot: %s", got, want)
		}
		if got := describeLearning(t, NewReader(&pieces{slices.Clone(parts), io.EOF, false}, maxLine, testLim), lastString); got != want {
			t.Fatalf("learning in pieces: %s\nnot: %s", got, want)
		}
		if got, want := raw(bytes.NewReader(in), maxLine, lastString), raw(bytes.NewReader(in), maxLine, nil); got != want {
			t.Fatalf("raw, learning: %q\nnot: %q", got, want)
		}
		if held(r) > 2*maxLine+64<<10 {
			t.Fatalf("%d bytes held", held(r))
		}
	})
}

func BenchmarkNext(b *testing.B) {
	text := `data: {"id":"chatcmpl-9xKQm2wVbTz0","object":"chat.completion.chunk","created":1712345678,"model":"gpt-4o-mini-2024-07-18","choices":[{"index":0,"finish_reason":null}],"text":" The answer"}` + "\n\n"
	for _, learn := range []bool{false, true} {
		b.Run(fmt.Sprintf("learn=%t", learn), func(b *testing.B) {
			r := NewReader(endless(1<<60, "", text), 1<<20, jsonscan.Limits{Containers: 100_000, Depth: 100})
			b.SetBytes(int64(len(text)))
			b.ReportAllocs()
			for b.Loop() {
				ev, err := r.Next()
				if err != nil {
					b.Fatal(err)
				}
				if learn && !ev.Like {
					r.Learn(ev, lastString(ev))
				}
			}
		})
	}
}

func TestReaderWithoutRoomHoldsNoMore(t *testing.T) {
	r := NewReader(endless(64<<20, "data: ", "x"), 1<<20, testLim)
	asked := 0
	r.Ask(func(size int) bool {
		asked = size
		return size <= 64<<10
	})
	_, err := r.Next()
	require.Equal(t, ErrNoRoom, err)
	require.Greater(t, asked, 64<<10)
	require.LessOrEqual(t, r.Size(), 64<<10)
	_, err = r.Next()
	require.Equal(t, ErrNoRoom, err, "for good")
}

// What Raw gives of all events is the stream without its comments, its surplus blank lines and what is in no event.
func TestRawIsWhatCame(t *testing.T) {
	for in, want := range map[string]string{
		"data: {}\n\ndata: [DONE]\n\n":                         "data: {}\n\ndata: [DONE]\n\n",
		"event: a\nid: 1\nretry: 5\ndata:{}\r\n\r\n":           "event: a\nid: 1\nretry: 5\ndata:{}\r\n\r\n",
		"data: {}\nevent: late\nid: 2\n\ndata: 1\n\n":          "data: {}\nevent: late\nid: 2\n\ndata: 1\n\n",
		": ping\n\n\n\ndata: {}\n\n\n\n: ping\n\ndata: {}\n\n": "data: {}\n\ndata: {}\n\n",
		"data: {\"a\":\n: ping\ndata: 1}\n\n":                  "data: {\"a\":\ndata: 1}\n\n",
		"data: {}\ndata: {}\n":                                 "data: {}\n\ndata: {}\n\n",
		"data: {}":                                             "data: {}\n\n",
		"data: {}\r\ndata: {}\r\n":                             "data: {}\r\n\r\ndata: {}\r\n\r\n",
		"{\"a\":1}\n":                                          "{\"a\":1}\n",
		"data:  Hello \n\ndata: !\n\n":                         "data:  Hello \n\ndata: !\n\n",
	} {
		for _, src := range []io.Reader{strings.NewReader(in), &pieces{byteByByte([]byte(in)), io.EOF, false}} {
			r, got := NewReader(src, 1<<10, testLim), ""
			for {
				ev, err := r.Next()
				if err != nil {
					break
				}
				got += string(ev.Raw)
			}
			if _, slow := src.(*pieces); slow && strings.Contains(in, "late") {
				continue // the line behind the data is not there yet
			}
			require.Equal(t, want, got, "%q", in)
		}
	}
}

func TestErrorFieldIsAnErrorEvent(t *testing.T) {
	require.Equal(t, `{} /2; error: {"message":"x"} /15; EOF`, describe(t, NewReader(strings.NewReader("data: {}\n\nerror: {\"message\":\"x\"}\n\nerror: text\n\n"), testMax, testLim)))
}

// Trim lets go of what a large event needed, and loses nothing of what has been read.
func TestTrimmedReaderReadsOn(t *testing.T) {
	large := `{"a":"` + strings.Repeat("x", 50_000) + `"}`
	in := strings.Repeat("event: e\ndata: "+large+"\n\ndata: {\"b\":1}\n\n: c\n\ndata: {\"c\":\ndata: \""+large[6:50_000]+"\"}\n\n", 3)
	for name, r := range map[string]io.Reader{"at once": strings.NewReader(in), "in pieces": &pieces{rest: slices.Collect(slices.Chunk([]byte(in), 7001)), err: io.EOF}} {
		want, got := NewReader(strings.NewReader(in), 1<<20, jsonscan.Limits{Containers: 8, Depth: 4}), NewReader(r, 1<<20, jsonscan.Limits{Containers: 8, Depth: 4})
		for n := 0; ; n++ {
			a, errA := want.Next()
			b, errB := got.Next()
			require.Equal(t, errA, errB, name)
			if errA != nil {
				require.Equal(t, 9, n, name)
				break
			}
			require.Equal(t, string(a.Name)+string(a.Data)+string(a.Raw), string(b.Name)+string(b.Data)+string(b.Raw), name)
			got.Trim(16 << 10)
			if name == "in pieces" {
				require.Less(t, got.Size(), 3*16<<10, name)
			}
		}
	}
}
