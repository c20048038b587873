// Package marks finds what two questions must have in common to mean the same, however similar their vectors are. A
// vector hardly shows a negation, another number or another name.
//
// The marks of a question are its words in order, except for a short list of English words that change no meaning, such
// as "please" and "the". A few synonyms are one word. So each word that this package does not know counts as a name, in
// any language. Two questions with different marks are never similar. Questions with equal marks can still differ in the
// words on the list, such as "in" and "on", and in punctuation.
//
// Whatever this package does not understand keeps questions apart: another word order, inflections other than a plural,
// and any synonym that it does not know. In scripts without spaces between words, such as Chinese and Thai, only
// punctuation may differ.
package marks

import (
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Of returns the marks of text. Two texts may mean the same only if their marks are equal. The cost is linear in the
// text. Of returns "" for a text without a word that has a meaning.
func Of(text string) string {
	m := marker{out: make([]byte, 0, len(text)+16)}
	var t tokenizer
	t.text = text
	for {
		tok, ok := t.next()
		if !ok {
			break
		}
		m.add(tok)
	}
	m.flush(0)
	return string(m.out)
}

// marker turns tokens into marks. It holds back a few tokens, because they may begin a phrase.
type marker struct {
	out   []byte
	held  []token
	begun bool // there was a token other than a greeting
}

// longestPhrase is the number of words in the longest phrase.
const longestPhrase = 6

func (m *marker) add(tok token) {
	m.held = append(m.held, tok)
	m.flush(longestPhrase - 1)
}

// flush emits tokens until at most keep are held.
func (m *marker) flush(keep int) {
	for len(m.held) > keep {
		n := m.emitFirst()
		m.held = m.held[:copy(m.held, m.held[n:])]
	}
}

// emitFirst emits the phrase or the token at the front, and returns how many tokens that is.
func (m *marker) emitFirst() int {
	var key [128]byte
	phrase, n, mark := key[:0], 0, ""
	for i, tok := range m.held {
		if i == 0 && !lexicon().beginPhrases[tok.text] {
			break
		}
		if tok.kind != word || tok.name || len(phrase)+len(tok.text)+1 > len(key) {
			break
		}
		if i > 0 {
			phrase = append(phrase, ' ')
		}
		phrase = append(phrase, tok.text...)
		if found, ok := lexicon().phrases[string(phrase)]; ok && i > 0 {
			n, mark = i+1, found
		}
	}
	if n > 0 {
		m.emit(mark)
		m.begun = true
		return n
	}
	tok := m.held[0]
	switch {
	case tok.kind != word || tok.name:
		m.emit(tok.text)
	case !m.begun && lexicon().auxiliaries[tok.text]: // a question that yes or no answers
		m.emit("?")
	default:
		m.emitWord(tok.text)
	}
	m.begun = m.begun || !lexicon().greetings[tok.text]
	return 1
}

func (m *marker) emitWord(w string) {
	if mark, ok := lexicon().words[w]; ok {
		m.emit(mark)
		return
	}
	w = singular(w)
	if mark, ok := lexicon().words[w]; ok {
		m.emit(mark)
		return
	}
	m.emit(w)
}

// emit appends a mark. The empty mark means nothing.
func (m *marker) emit(mark string) {
	if mark != "" {
		m.out = append(append(m.out, mark...), 0)
	}
}

// singular removes the ending of a plural from a word in lower case.
func singular(w string) string {
	switch {
	case len(w) < 4 || !strings.HasSuffix(w, "s") || hasEnding(w, "ss", "us", "is"):
		return w
	case strings.HasSuffix(w, "ies") && len(w) > 4:
		return w[:len(w)-3] + "y"
	case hasEnding(w, "sses", "shes", "ches", "xes", "oes"):
		return w[:len(w)-2]
	}
	return w[:len(w)-1]
}

func hasEnding(w string, endings ...string) bool {
	return slices.ContainsFunc(endings, func(ending string) bool { return strings.HasSuffix(w, ending) })
}

type kind int8

const (
	word kind = iota
	number
	symbol
)

// token is a word, a number or a symbol. Words are in lower case.
type token struct {
	text string
	kind kind
	name bool // must be equal as it is: not a word of a sentence
}

// tokenizer splits a text into tokens.
type tokenizer struct {
	text    string
	at      int
	pending []token // parts of a token that are not yet returned
	inside  bool    // the text continues a sentence, so that a capital letter begins a name
	quoted  bool
}

func (t *tokenizer) next() (token, bool) {
	for len(t.pending) == 0 {
		if t.at == len(t.text) {
			return token{}, false
		}
		r, size := utf8.DecodeRuneInString(t.text[t.at:])
		switch {
		case isWord(r):
			t.readWord()
			continue
		case strings.ContainsRune("\"`“”„«»「」『』", r):
			t.quoted = !t.quoted
			if t.quoted {
				t.pending = append(t.pending, token{text: `"`, kind: symbol})
			}
		case r == '.' || r == '?' || r == '!' || r == '\n' || r == '。' || r == '？' || r == '！' || r == '؟':
			t.inside = false
		case t.means(r, size):
			t.pending = append(t.pending, token{text: t.text[t.at : t.at+size], kind: symbol})
		}
		t.at += size
	}
	tok := t.pending[0]
	t.pending = t.pending[1:]
	return tok, true
}

func isWord(r rune) bool {
	return unicode.IsLetter(r) || unicode.IsMark(r) || unicode.IsNumber(r) || r == '_' || r == utf8.RuneError
}

// means reports whether the rune outside of words has a meaning. Punctuation has none, but for a minus sign.
func (t *tokenizer) means(r rune, size int) bool {
	switch r {
	case ' ', '\t', '\r', ',', ';', ':', '\'', '’', '‘', '(', ')', '[', ']', '{', '}', '–', '—', '…', '¿', '¡',
		'、', '，', '：', '；', '（', '）':
		return false
	case '-':
		after, _ := utf8.DecodeRuneInString(t.text[t.at+size:])
		return unicode.IsNumber(after) || after == '-' // an option of a program
	}
	return !unicode.IsSpace(r)
}

// joins reports whether the rune can be within a word, number, address or path.
func joins(r rune) bool { return strings.ContainsRune(".,:/\\@&'’-+#", r) }

// readWord reads a token and splits it.
func (t *tokenizer) readWord() {
	start := t.at
	for t.at < len(t.text) {
		r, size := utf8.DecodeRuneInString(t.text[t.at:])
		if !isWord(r) {
			after, _ := utf8.DecodeRuneInString(t.text[t.at+size:])
			if !joins(r) || !isWord(after) || t.at+size == len(t.text) || r == ',' && !t.between(size, unicode.IsNumber) {
				break
			}
		}
		t.at += size
	}
	text := t.text[start:t.at]
	for t.at < len(t.text) && (t.text[t.at] == '+' || t.text[t.at] == '#') { // C++, C#
		t.at++
		text = t.text[start:t.at]
	}
	switch first, _ := utf8.DecodeRuneInString(text); {
	case t.quoted:
		t.pending = append(t.pending, token{text: text, name: true})
	case unicode.IsNumber(first):
		t.splitNumber(text)
	default:
		t.splitWord(text)
	}
	t.inside = true
}

// between reports whether the runes before and after the one at t.at are of a class.
func (t *tokenizer) between(size int, class func(rune) bool) bool {
	before, _ := utf8.DecodeLastRuneInString(t.text[:t.at])
	after, _ := utf8.DecodeRuneInString(t.text[t.at+size:])
	return class(before) && class(after)
}

// splitNumber separates a number from a unit after it.
func (t *tokenizer) splitNumber(text string) {
	end := len(text)
	for i, r := range text {
		if unicode.IsLetter(r) {
			end = i
			break
		}
	}
	if strings.IndexFunc(text[end:], unicode.IsNumber) >= 0 { // a date with the name of a month, an identifier
		t.pending = append(t.pending, token{text: strings.ToLower(text), kind: number})
		return
	}
	t.pending = append(t.pending, token{text: plainNumber(text[:end]), kind: number})
	switch unit := strings.ToLower(text[end:]); unit {
	case "", "st", "nd", "rd", "th":
	default:
		t.pending = append(t.pending, token{text: unit})
	}
}

// plainNumber writes the digits of any script as 0 to 9, and removes commas between groups of three digits.
func plainNumber(text string) string {
	var b strings.Builder
	for i, r := range text {
		if r == ',' && groups(text[i+1:]) {
			continue
		}
		if d, ok := digit(r); ok {
			r = '0' + d
		}
		b.WriteRune(r)
	}
	return b.String()
}

// groups reports whether exactly three ASCII digits come next.
func groups(text string) bool {
	isDigit := func(i int) bool { return i < len(text) && text[i] >= '0' && text[i] <= '9' }
	return isDigit(0) && isDigit(1) && isDigit(2) && !isDigit(3)
}

// digit returns the value of a decimal digit. Unicode has them in runs from 0 to 9.
func digit(r rune) (rune, bool) {
	if r < utf8.RuneSelf {
		return r - '0', r >= '0' && r <= '9'
	}
	for _, run := range unicode.Nd.R16 {
		if r >= rune(run.Lo) && r <= rune(run.Hi) {
			return (r - rune(run.Lo)) % 10, true
		}
	}
	for _, run := range unicode.Nd.R32 {
		if r >= rune(run.Lo) && r <= rune(run.Hi) {
			return (r - rune(run.Lo)) % 10, true
		}
	}
	return 0, false
}

// splitWord separates the parts of a compound and of a contraction.
func (t *tokenizer) splitWord(text string) {
	odd := func(r rune) bool {
		return !unicode.IsLetter(r) && !unicode.IsMark(r) && r != '-' && r != '\'' && r != '’'
	}
	if strings.ContainsFunc(text, odd) {
		t.pending = append(t.pending, token{text: strings.ToLower(text), name: true}) // a file, an address, a version
		t.inside = true
		return
	}
	for part := range strings.SplitSeq(text, "-") {
		if part == "" {
			continue
		}
		first, _ := utf8.DecodeRuneInString(part)
		t.addPart(strings.ReplaceAll(strings.ToLower(part), "’", "'"), unicode.IsUpper(first), part == strings.ToUpper(part))
		t.inside = true
	}
}

// addPart adds a word without hyphens. capital means that its first letter is upper case, and upper that all are.
func (t *tokenizer) addPart(w string, capital, upper bool) {
	not, will := false, false
	if stem, ok := strings.CutSuffix(w, "n't"); ok {
		not = true
		switch stem {
		case "wo":
			stem = "will"
		case "ca":
			stem = "can"
		case "sha":
			stem = "shall"
		}
		w = stem
	} else if stem, ending, ok := strings.Cut(w, "'"); ok && stem != "" {
		switch ending {
		case "ll":
			w, will = stem, true
		case "s", "re", "ve", "m", "d":
			w = stem
		}
	}
	if w == "cannot" {
		w, not = "can", true
	}
	mark, known := lexicon().words[w]
	known = known || lexicon().inPhrases[w]
	tok := token{text: w}
	switch {
	case !capital || w == "i":
	case !known:
		tok.name = true // in a plural too: Williams is not William
	case t.inside && (mark == "" || !upper):
		tok = token{text: "^" + w, name: true} // "US", "May" and "Will" are not "us", "may" and "will"
	}
	t.pending = append(t.pending, tok)
	if will {
		t.pending = append(t.pending, token{text: "will"})
	}
	if not {
		t.pending = append(t.pending, token{text: "not"})
	}
}
