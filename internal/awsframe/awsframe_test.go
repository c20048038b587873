package awsframe

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard/internal/jsonscan"
	"github.com/aiguard-go/aiguard/internal/sse"
)

var limits = jsonscan.Limits{Containers: 8, Depth: 4}

// frame makes a message with string headers, given as pairs.
func frame(payload string, headers ...string) []byte {
	var h []byte
	for i := 0; i < len(headers); i += 2 {
		h = append(append(h, byte(len(headers[i]))), headers[i]...)
		h = append(binary.BigEndian.AppendUint16(append(h, 7), uint16(len(headers[i+1]))), headers[i+1]...)
	}
	b := binary.BigEndian.AppendUint32(nil, uint32(least+len(h)+len(payload)))
	b = binary.BigEndian.AppendUint32(b, uint32(len(h)))
	b = binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
	b = append(append(b, h...), payload...)
	return binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
}

func TestFramesAreRead(t *testing.T) {
	one := frame(`{"a":1}`, ":message-type", "event", ":event-type", "messageStart")
	two := frame(`{"message":"m"}`, ":message-type", "exception", ":exception-type", "throttlingException")
	long := frame(`"`+strings.Repeat("x", 20_000)+`"`, ":event-type", "chunk")
	in := bytes.Join([][]byte{one, two, long}, nil)
	for _, r := range []io.Reader{bytes.NewReader(in), iotest.OneByteReader(bytes.NewReader(in))} {
		frames := NewReader(r, 1<<20, limits)
		for _, want := range []struct {
			name string
			raw  []byte
		}{{"messageStart", one}, {"throttlingException", two}, {"chunk", long}} {
			ev, err := frames.Next()
			require.NoError(t, err)
			require.NoError(t, ev.Err)
			require.Equal(t, want.name, string(ev.Name))
			require.Equal(t, want.raw, ev.Raw)
			require.Equal(t, len(ev.Data), ev.End)
		}
		_, err := frames.Next()
		require.Equal(t, io.EOF, err)
	}
}

func TestErrorFrameIsNamedByItsCode(t *testing.T) {
	for code, want := range map[string]string{"ThrottlingException": "ThrottlingException", "InternalFailure": "error", "chunk": "error"} {
		in := frame("", ":message-type", "error", ":error-code", code, ":error-message", "m")
		ev, err := NewReader(bytes.NewReader(in), 1<<20, limits).Next()
		require.NoError(t, err)
		require.Equal(t, want, string(ev.Name), code)
	}
}

func TestBrokenFramesAreRefused(t *testing.T) {
	good := frame(`{}`, ":event-type", "chunk")
	flip := func(i int) []byte {
		b := bytes.Clone(good)
		b[i] ^= 1
		return b
	}
	for name, tc := range map[string]struct {
		in   []byte
		want error
	}{
		"cut in the prelude": {good[:5], io.ErrUnexpectedEOF},
		"cut behind it":      {good[:prelude], io.ErrUnexpectedEOF},
		"cut in the payload": {good[:len(good)-5], io.ErrUnexpectedEOF},
		"prelude checksum":   {flip(9), ErrFrame},
		"length":             {flip(3), ErrFrame},
		"payload":            {flip(len(good) - 6), ErrFrame},
		"text":               {[]byte("data: {\"choices\":[]}\n\n"), ErrFrame},
		"too long":           {frame(strings.Repeat("x", 2000)), sse.ErrLineTooLong},
		"empty":              {nil, io.EOF},
	} {
		r := NewReader(bytes.NewReader(tc.in), 1000, limits)
		_, err := r.Next()
		require.Equal(t, tc.want, err, name)
		_, err = r.Next()
		require.Equal(t, tc.want, err, name)
	}
}

func TestAnnouncedLengthTakesNoMemory(t *testing.T) {
	b := binary.BigEndian.AppendUint32(nil, 16<<20)
	b = binary.BigEndian.AppendUint32(b, 0)
	b = binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
	r := NewReader(bytes.NewReader(b), 32<<20, limits)
	_, err := r.Next()
	require.Equal(t, io.ErrUnexpectedEOF, err)
	require.LessOrEqual(t, r.Size(), 8<<10)
}

func FuzzReader(f *testing.F) {
	f.Add(frame(`{}`, ":event-type", "chunk"))
	f.Add(frame(`{"message":"m"}`, ":exception-type", "x"))
	f.Add([]byte{0, 0, 0, 16})
	f.Fuzz(func(t *testing.T, in []byte) {
		r := NewReader(bytes.NewReader(in), 4096, limits)
		for i := 0; ; i++ {
			ev, err := r.Next()
			if err != nil {
				break
			}
			require.LessOrEqual(t, len(ev.Raw), 4096)
			require.LessOrEqual(t, i, len(in)/least)
		}
		require.LessOrEqual(t, r.Size(), 8<<10)
	})
}

func TestReaderWithoutRoomHoldsNoMore(t *testing.T) {
	r := NewReader(bytes.NewReader(frame(`"`+strings.Repeat("x", 1<<20)+`"`)), 16<<20, limits)
	r.Ask(func(size int) bool { return size <= 64<<10 })
	_, err := r.Next()
	require.Equal(t, sse.ErrNoRoom, err)
	require.LessOrEqual(t, r.Size(), 64<<10)
}

func TestTrimmedReaderReadsOn(t *testing.T) {
	large := `{"a":"` + strings.Repeat("x", 50_000) + `"}`
	in := bytes.Join([][]byte{frame(large, ":event-type", "e"), frame(`{"b":1}`, ":event-type", "e"), frame(large, ":event-type", "e")}, nil)
	r := NewReader(bytes.NewReader(in), 1<<20, limits)
	for _, want := range []string{large, `{"b":1}`, large} {
		ev, err := r.Next()
		require.NoError(t, err)
		require.Equal(t, want, string(ev.Data))
		r.Trim(16 << 10)
		require.LessOrEqual(t, r.Size(), 16<<10)
	}
}
