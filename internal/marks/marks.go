// Package marks finds what two questions must have in common to mean the same, however similar their vectors are. A
// vector hardly shows a negation, another number or another name.
//
// The marks of a question are its words in order. In an English question, a short list of words that change no meaning,
// such as "can you" and "the", has no marks, and a few synonyms are one word. So each word that this package does not know
// counts as a name.
//
// Whatever this package does not understand keeps questions apart: another word order, any inflection and synonym that it
// does not know, and punctuation that stands alone. In other languages only capital letters and the punctuation of
// sentences may differ, because "on" can be ten, and "a" can show who does what to whom.
package marks

import (
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Of returns the marks of text. Two texts may mean the same only if their marks are equal. The cost is linear in the
// text. Of returns "" for a text without a word.
func Of(text string) string {
	if !strings.ContainsFunc(text, isWord) {
		return ""
	}
	t := tokenizer{text: strings.TrimSpace(text), english: english(text)}
	m := marker{out: make([]byte, 0, len(text)+16), rest: t.all(), english: t.english, opening: true}
	for len(m.rest) > 0 {
		n := m.emitFirst()
		m.before, m.rest = m.rest[n-1].text, m.rest[n:]
	}
	return string(m.out)
}

// english reports whether the lists of this package apply to text: it has a word that only English has, and no letter
// that English does not have.
func english(text string) bool {
	found := false
	for w := range strings.FieldsFuncSeq(text, func(r rune) bool { return !unicode.IsLetter(r) }) {
		if strings.ContainsFunc(w, func(r rune) bool { return r >= utf8.RuneSelf }) {
			return false
		}
		found = found || lexicon().english[strings.ToLower(w)]
	}
	return found
}

// marker turns tokens into marks.
type marker struct {
	out     []byte
	rest    []token
	before  string // the last token that is no longer in rest
	english bool
	opening bool // the question has not begun
}

// longestPhrase is the number of words in the longest phrase.
const longestPhrase = 6

// emitFirst emits the phrase or the token at the front, and returns how many tokens that is.
func (m *marker) emitFirst() int {
	tok := m.rest[0]
	m.opening = m.opening || tok.first
	if !m.english || tok.kind != word || tok.name {
		m.emit(tok.text)
		m.opening = false
		return 1
	}
	if mark, n := m.phrase(); n > 0 && (mark != "" || m.opening || m.last(n) && !m.mentioned(n)) {
		m.emit(mark)
		m.opening = m.opening && mark == ""
		return n
	}
	if lexicon().openings[tok.text] && (m.opening || tok.paused) {
		return 1
	}
	mark, known := lexicon().words[tok.text]
	auxiliary, asks := lexicon().auxiliaries[tok.text]
	switch {
	case m.opening && asks: // a question that yes or no answers
		m.emit(auxiliary)
	case known && mark == "" && (m.mentioned(1) || m.last(1) && !asks):
		m.emit(tok.text)
	default:
		m.emitWord(tok.text)
	}
	m.opening = false
	return 1
}

// phrase returns the mark of the longest phrase at the front, and how many words it has.
func (m *marker) phrase() (mark string, n int) {
	if !lexicon().beginPhrases[m.rest[0].text] {
		return "", 0
	}
	var key [128]byte
	phrase := key[:0]
	for i, tok := range m.rest[:min(len(m.rest), longestPhrase)] {
		if tok.kind != word || tok.name || i > 0 && tok.first || len(phrase)+len(tok.text)+1 > len(key) {
			break
		}
		if i > 0 {
			phrase = append(phrase, ' ')
		}
		phrase = append(phrase, tok.text...)
		if found, ok := lexicon().phrases[string(phrase)]; ok {
			mark, n = found, i+1
		}
	}
	return mark, n
}

// last reports whether the first n tokens end a sentence.
func (m *marker) last(n int) bool { return n == len(m.rest) || m.rest[n].first }

// mentioned reports whether the question is about the first n tokens as words: how do I say "thanks".
func (m *marker) mentioned(n int) bool {
	return lexicon().mentionAfter[m.before] || n < len(m.rest) && lexicon().mentionBefore[m.rest[n].text]
}

// emitWord emits a word of the lists, or its plural, as its mark. A word that is on no list can be a name, so that its
// plural can be another one: adam and adams.
func (m *marker) emitWord(w string) {
	mark, ok := lexicon().words[w]
	if !ok {
		mark, ok = lexicon().words[singular(w)]
	}
	if !ok {
		mark = w
	}
	m.emit(mark)
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
	text   string
	kind   kind
	name   bool // must be equal as it is: not a word of a sentence
	first  bool // begins a sentence
	paused bool // follows a punctuation mark
}

// tokenizer splits a text into tokens.
type tokenizer struct {
	text    string
	english bool
	at      int
	tokens  []token
	inside  bool // the text continues a sentence, so that a capital letter begins a name
	paused  bool // there was a punctuation mark since the last token
	quoted  bool
}

// punctuation separates words if it follows one. It is a symbol if it stands alone.
const punctuation = ".,;:!?…"

// all returns the tokens of the text.
func (t *tokenizer) all() []token {
	for t.at < len(t.text) {
		r, size := utf8.DecodeRuneInString(t.text[t.at:])
		switch {
		case isWord(r):
			t.readWord()
			continue
		case strings.ContainsRune(punctuation, r):
			t.readPunctuation()
			continue
		case strings.ContainsRune("\"`“”„«»「」『』", r):
			t.quoted = !t.quoted
			if t.quoted {
				t.add(token{text: `"`, kind: symbol})
			}
		case r == '\n' || r == '。' || r == '？' || r == '！' || r == '؟':
			t.inside, t.paused = false, true
		case t.means(r, size):
			t.add(token{text: t.text[t.at : t.at+size], kind: symbol})
		case r == '、' || r == '，' || r == '：' || r == '；':
			t.paused = true
		}
		t.at += size
	}
	return t.tokens
}

func (t *tokenizer) add(tok token) {
	tok.first, tok.paused = !t.inside, t.paused
	t.tokens = append(t.tokens, tok)
	t.paused = false
}

// readPunctuation reads punctuation marks in a row.
func (t *tokenizer) readPunctuation() {
	start := t.at
	for t.at < len(t.text) {
		r, size := utf8.DecodeRuneInString(t.text[t.at:])
		if !strings.ContainsRune(punctuation, r) {
			break
		}
		t.at += size
	}
	run := t.text[start:t.at]
	before, _ := utf8.DecodeLastRuneInString(t.text[:start])
	if start == 0 || unicode.IsSpace(before) && t.at < len(t.text) { // at the end of a text it is not alone: "Pourquoi ?"
		t.add(token{text: run, kind: symbol})
		return
	}
	t.paused = true
	t.inside = t.inside && !strings.ContainsAny(run, ".!?")
}

func isWord(r rune) bool {
	return unicode.IsLetter(r) || unicode.IsMark(r) || unicode.IsNumber(r) || r == '_' || r == utf8.RuneError
}

// means reports whether the rune outside of words has a meaning. Commas and the like have none.
func (t *tokenizer) means(r rune, size int) bool {
	before, _ := utf8.DecodeLastRuneInString(t.text[:t.at])
	after, _ := utf8.DecodeRuneInString(t.text[t.at+size:])
	switch r {
	case ' ', '\t', '\r', '‘', '–', '—', '¿', '¡', '、', '，', '：', '；', '（', '）':
		return false
	case '\'', '’':
		return unicode.IsNumber(before) // feet and minutes
	case '(':
		return isWord(before) || !isWord(after) // a call, or nothing within
	case ')':
		return !isWord(before) && !strings.ContainsRune(punctuation, before)
	case '-':
		return unicode.IsNumber(after) || after == '-' || unicode.IsSpace(after) // a sign, an option of a program, a minus
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
		t.add(token{text: text, name: true})
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
		t.add(token{text: strings.ToLower(text), kind: number})
		return
	}
	t.add(token{text: t.plainNumber(text[:end]), kind: number})
	switch unit := text[end:]; strings.ToLower(unit) {
	case "", "st", "nd", "rd", "th":
	default:
		t.addPart(unit)
	}
}

// plainNumber writes the digits of any script as 0 to 9. In English it removes commas between groups of three digits.
func (t *tokenizer) plainNumber(text string) string {
	var b strings.Builder
	for i, r := range text {
		if r == ',' && t.english && groups(text[i+1:]) { // elsewhere a comma precedes decimals
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
		t.add(token{text: strings.ToLower(text), name: true}) // a file, an address, a version
		return
	}
	for part := range strings.SplitSeq(text, "-") {
		if part != "" {
			t.addPart(strings.ReplaceAll(part, "’", "'"))
			t.inside = true
		}
	}
}

// addPart adds a word without hyphens.
func (t *tokenizer) addPart(text string) {
	w := strings.ToLower(text)
	if !t.english {
		t.add(token{text: w})
		return
	}
	w, more := contraction(w)
	t.add(t.wordToken(text, w))
	if more != "" {
		t.add(token{text: more})
	}
}

// contraction separates "not" and "will" from a word.
func contraction(w string) (stem, more string) {
	if w == "cannot" {
		return "can", "not"
	}
	if stem, ok := strings.CutSuffix(w, "n't"); ok && stem != "" {
		switch stem {
		case "wo":
			stem = "will"
		case "ca":
			stem = "can"
		case "sha":
			stem = "shall"
		}
		return stem, "not"
	}
	if stem, ending, ok := strings.Cut(w, "'"); ok && stem != "" {
		switch ending {
		case "ll":
			return stem, "will"
		case "s", "re", "ve", "m": // "d" can be "did", "had" and "would"
			return stem, ""
		}
	}
	return w, ""
}

// wordToken returns the token of the word w, which is written as text.
func (t *tokenizer) wordToken(text, w string) token {
	var before token // in the same phrase
	if n := len(t.tokens); n > 0 && !t.paused {
		before = t.tokens[n-1]
	}
	first, size := utf8.DecodeRuneInString(text)
	capital := unicode.IsUpper(first)
	mark, known := lexicon().words[w]
	known = known || lexicon().inPhrases[w] || lexicon().openings[w]
	switch {
	case mark == "" && before.kind == number && len(text) <= 3: // a unit: mW is not MW
		return token{text: text, name: true}
	case !capital && len(text) <= 3 && text[size:] != strings.ToLower(text[size:]): // the same
		return token{text: text, name: true}
	case w == "i" && capital && before.name: // World War I
		return token{text: "^i", name: true}
	case !capital || w == "i" || w == "i'd":
		return token{text: w}
	case !known:
		return token{text: w, name: true}
	case t.inside && (mark == "" || text != strings.ToUpper(text)):
		return token{text: "^" + w, name: true} // "US", "May" and "Will" are not "us", "may" and "will"
	}
	return token{text: w}
}
