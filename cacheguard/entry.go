package cacheguard

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"math"
	"net/http"
	"time"
)

// entryVersion is the first byte of an entry. Other values mean another format.
const entryVersion = 1

// keptHeaders are the response headers that stay valid in a cached answer.
var keptHeaders = []string{"Content-Type", "X-Request-Id", "Request-Id", "Apim-Request-Id"}

// entry is a cached answer.
type entry struct {
	stored time.Time
	header http.Header
	body   []byte
}

// name returns the name of the key's entry in a Store.
func (k key) name() string { return hex.EncodeToString(k[:]) }

// encode returns the stored form of e: version, key, time, headers, body, and a SHA-256 sum of these. A length
// precedes each part of variable size.
func (e *entry) encode(k key) []byte {
	b := make([]byte, 0, len(e.body)+512)
	b = append(b, entryVersion)
	b = append(b, k[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(e.stored.UnixNano()))
	for _, name := range keptHeaders {
		b = appendPart(b, []byte(e.header.Get(name)))
	}
	b = appendPart(b, e.body)
	sum := sha256.Sum256(b)
	return append(b, sum[:]...)
}

func appendPart(b, part []byte) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(part))), part...)
}

// decode decodes the output of encode for k. The body shares memory with b. decode returns false for any other input.
func decode(b []byte, k key) (*entry, bool) {
	const fixed = 1 + len(k) + 8
	if len(b) < fixed+sha256.Size || b[0] != entryVersion || !bytes.Equal(b[1:1+len(k)], k[:]) {
		return nil, false
	}
	b, sum := b[:len(b)-sha256.Size], b[len(b)-sha256.Size:]
	if actual := sha256.Sum256(b); !bytes.Equal(actual[:], sum) {
		return nil, false
	}
	nanos := binary.BigEndian.Uint64(b[1+len(k):])
	if nanos > math.MaxInt64 {
		return nil, false
	}
	e := &entry{stored: time.Unix(0, int64(nanos)), header: http.Header{}}
	b = b[fixed:]
	var part []byte
	for _, name := range keptHeaders {
		var ok bool
		if part, b, ok = cutPart(b); !ok {
			return nil, false
		}
		if len(part) > 0 {
			e.header.Set(name, string(part))
		}
	}
	body, rest, ok := cutPart(b)
	if !ok || len(rest) > 0 {
		return nil, false
	}
	e.body = body
	return e, true
}

func cutPart(b []byte) (part, rest []byte, ok bool) {
	if len(b) < 4 {
		return nil, nil, false
	}
	n := uint64(binary.BigEndian.Uint32(b))
	if b = b[4:]; n > uint64(len(b)) {
		return nil, nil, false
	}
	return b[:n:n], b[n:], true
}
