package tokenguard

import (
	"fmt"
	"math"
	"sync"

	"github.com/tiktoken-go/tokenizer"
)

// encoding counts tokens. It splits text into pieces by the encoding's pattern and merges the bytes of each piece
// into tokens. Only the vocabulary comes from the library. The library's own pattern for white space ends at the
// first newline instead of the last. It counts too many tokens for blank lines with indentation and takes quadratic
// time there.
type encoding struct {
	ranks   map[string]uint32 // of each token; lower ranks merge first
	longest int               // longest token in bytes
	split   func(string) int  // returns the length of the first piece of a text that is not empty
}

// encodingOf returns an encoding by name. Each encoding is built on first use.
func encodingOf(name string) (*encoding, error) {
	switch name {
	case o200k:
		return o200kBase()
	case cl100:
		return cl100kBase()
	case p50k:
		return p50kBase()
	}
	return r50kBase()
}

var (
	o200kBase  = build(tokenizer.O200kBase, 199_998, splitO200k)
	cl100kBase = build(tokenizer.Cl100kBase, 100_256, splitCl100k)
	p50kBase   = build(tokenizer.P50kBase, 50_280, splitGPT2)
	r50kBase   = build(tokenizer.R50kBase, 50_256, splitGPT2)
)

// build returns a function that reads a vocabulary of that many tokens once. The library returns tokens only by ID;
// the IDs are the ranks.
func build(name tokenizer.Encoding, tokens int, split func(string) int) func() (*encoding, error) {
	return sync.OnceValues(func() (*encoding, error) {
		codec, err := tokenizer.Get(name)
		if err != nil {
			return nil, fmt.Errorf("tokenguard: %s: %w", name, err)
		}
		e := &encoding{ranks: make(map[string]uint32, tokens), split: split}
		for id := uint(0); len(e.ranks) < tokens; id++ {
			token, err := codec.Decode([]uint{id})
			if err != nil && id >= uint(tokens)+1 { // one ID may be missing: that of a special token
				return nil, fmt.Errorf("tokenguard: %s has %d tokens instead of %d: %w", name, len(e.ranks), tokens, err)
			}
			if err == nil {
				e.ranks[token] = uint32(id)
				e.longest = max(e.longest, len(token))
			}
		}
		return e, nil
	})
}

// longPiece is the length above which a piece is counted in parts, to limit memory. No language has words of 16 KiB.
const longPiece = 16 << 10

// count counts the tokens of text. It stops above limit and then returns a number between limit and the real count.
func (e *encoding) count(text string, limit int) int {
	if least := e.atLeast(text); least > limit {
		return least
	}
	text = valid(text)
	n := 0
	for text != "" {
		size := e.split(text)
		if least := n + e.atLeast(text[:size]); least > limit {
			return least
		}
		for at := 0; at < size; at += longPiece {
			if n += e.tokens(text[at:min(at+longPiece, size)]); n > limit {
				return n
			}
		}
		text = text[size:]
	}
	return n
}

// atLeast returns a lower bound of the tokens in text.
func (e *encoding) atLeast(text string) int { return (len(text) + e.longest - 1) / e.longest }

const none = math.MaxUint32 // rank of a string that is not a token

func (e *encoding) rank(s string) uint32 {
	if r, ok := e.ranks[s]; ok {
		return r
	}
	return none
}
