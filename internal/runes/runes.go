// Package runes counts the characters of text faster than package utf8.
package runes

// Count returns the number of characters (runes) in s. It is exact for valid UTF-8. For invalid UTF-8 the count may
// be too low, but is at least a quarter of the bytes.
func Count[T ~string | ~[]byte](s T) int {
	n, all := len(s), len(s)
	for ; len(s) >= 32; s = s[32:] { // 32 bytes at a time: utf8.RuneCountInString takes ten times as long for Chinese
		c := continuations(word(s)) + continuations(word(s[8:])) + continuations(word(s[16:])) + continuations(word(s[24:]))
		n -= int(c * everyByte >> 56) // the sum of its bytes
	}
	for i := range len(s) {
		if s[i]&0xC0 == 0x80 {
			n--
		}
	}
	return max(n, (all+3)/4)
}

const everyByte = 0x0101010101010101

// word returns the first eight bytes of s. The compiler turns this form into a single load.
func word[T ~string | ~[]byte](s T) uint64 {
	_ = s[7]
	return uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24 |
		uint64(s[4])<<32 | uint64(s[5])<<40 | uint64(s[6])<<48 | uint64(s[7])<<56
}

// continuations has a 1 in each byte in which x has a continuation byte, 10xxxxxx.
func continuations(x uint64) uint64 { return x >> 7 & (^x >> 6) & everyByte }
