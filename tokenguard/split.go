package tokenguard

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// The functions below implement the patterns by which tiktoken splits text before it merges bytes (openai_public.py).
// Each returns the length of the first piece of a text that is valid UTF-8 and not empty. Splitting a whole text
// takes linear time.

// splitO200k implements the pattern of o200k_base.
func splitO200k(s string) int {
	r, size := utf8.DecodeRuneInString(s)
	switch {
	case unicode.IsLetter(r):
		end, _ := word(s, 0)
		return end
	case unicode.IsNumber(r):
		return digits(s, 3)
	case r != '\r' && r != '\n': // this character may come before a word
		end, small := word(s, size)
		if unicode.IsMark(r) && !small { // a mark is a word itself, and that alternative comes before capitals alone
			end, _ = word(s, 0)
		}
		if end > 0 {
			return end
		}
	}
	if n := symbols(s, "\r\n/"); n > 0 {
		return n
	}
	return space(s)
}

// splitCl100k implements the pattern of cl100k_base.
func splitCl100k(s string) int {
	if n := contraction(s); n > 0 {
		return n
	}
	r, size := utf8.DecodeRuneInString(s)
	switch {
	case unicode.IsLetter(r):
		return letters(s, 0)
	case unicode.IsNumber(r):
		return digits(s, 3)
	case r != '\r' && r != '\n':
		if n := letters(s, size); n > size {
			return n
		}
	}
	if n := symbols(s, "\r\n"); n > 0 {
		return n
	}
	return space(s)
}

// splitGPT2 implements the pattern of r50k_base and p50k_base.
func splitGPT2(s string) int {
	if n := contraction(s); n > 0 && lower(s[:n]) {
		return n
	}
	at := 0
	if s[0] == ' ' {
		at = 1
	}
	if n := letters(s, at); n > at {
		return n
	}
	if n := at + digits(s[at:], len(s)); n > at {
		return n
	}
	if n := symbols(s, ""); n > 0 {
		return n
	}
	end, _ := spaces(s)
	return beforeLast(s, end)
}

// word returns the end of the o200k_base word that starts at at, or 0 if there is none. A word is capitals followed
// by small letters, or capitals alone, and then a contraction. Characters without case (中, marks) count as both.
// small reports whether the word has small letters.
func word(s string, at int) (end int, small bool) {
	capitals, both := at, at // end of the possible capitals, and end of the last of them that may also be small
	for capitals < len(s) {
		r, size := utf8.DecodeRuneInString(s[capitals:])
		if !unicode.In(r, unicode.Lu, unicode.Lt, unicode.Lm, unicode.Lo, unicode.M) {
			break
		}
		capitals += size
		if !unicode.In(r, unicode.Lu, unicode.Lt) {
			both = capitals
		}
	}
	end = capitals
	for end < len(s) {
		r, size := utf8.DecodeRuneInString(s[end:])
		if !unicode.In(r, unicode.Ll, unicode.Lm, unicode.Lo, unicode.M) {
			break
		}
		end += size
	}
	small = end > capitals || both > at
	switch {
	case end == at:
		return 0, false
	case end == capitals && small:
		end = both // the capitals after it start a new word
	}
	return end + contraction(s[end:]), small
}

// letters returns the end of the letters that start at at.
func letters(s string, at int) int {
	for at < len(s) {
		r, size := utf8.DecodeRuneInString(s[at:])
		if !unicode.IsLetter(r) {
			break
		}
		at += size
	}
	return at
}

// digits returns the length of the leading digits, at most most of them.
func digits(s string, most int) int {
	end := 0
	for range most {
		r, size := utf8.DecodeRuneInString(s[end:])
		if !unicode.IsNumber(r) {
			break
		}
		end += size
	}
	return end
}

// symbols returns the length of the leading symbols, which are neither letters, digits nor white space. It includes
// one space before them and any characters of tail after them.
func symbols(s, tail string) int {
	begin := 0
	if s[0] == ' ' {
		begin = 1
	}
	end := begin
	for end < len(s) {
		r, size := utf8.DecodeRuneInString(s[end:])
		if unicode.IsSpace(r) || unicode.IsLetter(r) || unicode.IsNumber(r) {
			break
		}
		end += size
	}
	if end == begin {
		return 0
	}
	for end < len(s) && strings.IndexByte(tail, s[end]) >= 0 {
		end++
	}
	return end
}

// space returns the length of the leading white space: up to its last newline, or as in beforeLast.
func space(s string) int {
	end, newline := spaces(s)
	if newline > 0 {
		return newline
	}
	return beforeLast(s, end)
}

// spaces returns the end of the leading white space, and the end of the last newline in it.
func spaces(s string) (end, newline int) {
	for end < len(s) {
		r, size := utf8.DecodeRuneInString(s[end:])
		if !unicode.IsSpace(r) {
			break
		}
		end += size
		if r == '\r' || r == '\n' {
			newline = end
		}
	}
	return end, newline
}

// beforeLast returns end without the last white space character, which belongs to the next word. It returns end
// itself if no word follows or if there is only one such character.
func beforeLast(s string, end int) int {
	_, last := utf8.DecodeLastRuneInString(s[:end])
	if end == len(s) || end == last {
		return end
	}
	return end - last
}

// contraction returns the length of a leading 's 't 'm 'd 're 've 'll in either case, or 0.
func contraction(s string) int {
	if len(s) < 2 || s[0] != '\'' {
		return 0
	}
	switch s[1] | 0x20 {
	case 's', 't', 'm', 'd':
		return 2
	}
	if len(s) < 3 {
		return 0
	}
	switch a, b := s[1]|0x20, s[2]|0x20; {
	case a == 'r' && b == 'e', a == 'v' && b == 'e', a == 'l' && b == 'l', s[1:3] == "ſ": // ſ is an s in Unicode case folding
		return 3
	}
	return 0
}

// lower reports whether a contraction has no capitals.
func lower(s string) bool {
	for i := range len(s) {
		if s[i] >= 'A' && s[i] <= 'Z' || s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// valid replaces each invalid byte by U+FFFD.
func valid(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	return string([]rune(s))
}
