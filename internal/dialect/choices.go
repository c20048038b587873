package dialect

import "strconv"

// choices records which choices of an answer have begun and which of them have ended.
type choices struct {
	seen, finished [2]uint64 // by index
	overflow       bool      // a number too large for seen: only [DONE] ends the stream
}

// note records that a choice has begun and, if ended, that it has ended.
func (c *choices) note(index uint64, ended bool) {
	if index >= 128 {
		c.overflow = true
		return
	}
	word, bit := index/64, uint64(1)<<(index%64)
	c.seen[word] |= bit
	if ended {
		c.finished[word] |= bit
	}
}

// complete reports whether a choice has begun and each choice that has begun has ended.
func (c *choices) complete() bool {
	return !c.overflow && c.seen != [2]uint64{} && c.seen == c.finished
}

// index reads the number of a choice.
func index(value []byte) uint64 {
	if len(value) == 1 && value[0] >= '0' && value[0] <= '9' {
		return uint64(value[0] - '0')
	}
	n, err := strconv.ParseUint(string(value), 10, 64)
	if err != nil {
		return 0
	}
	return n
}
