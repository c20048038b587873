package marks

import (
	"maps"
	"strings"
	"sync"
)

// words is what Of knows of English.
type words struct {
	words     map[string]string // the mark of a word, "" if it has no meaning
	phrases   map[string]string // the same for words in a row
	inPhrases map[string]bool   // words of phrases

	beginPhrases map[string]bool
	auxiliaries  map[string]string // the marks of words that begin a question that yes or no answers
	openings     map[string]bool   // have no meaning where a question begins, and after a punctuation mark

	mentionAfter, mentionBefore map[string]bool // a word next to one of them can be what the question is about
	english                     map[string]bool // words that hardly any other language has
}

var lexicon = sync.OnceValue(func() *words {
	w := &words{
		words: map[string]string{}, phrases: map[string]string{},
		inPhrases: map[string]bool{}, beginPhrases: map[string]bool{},
		auxiliaries: map[string]string{}, openings: set(openings),
		mentionAfter: set(mentionAfter), mentionBefore: set(mentionBefore), english: set(englishOnly),
	}
	for _, free := range strings.Fields(meaningless) {
		w.words[free] = ""
	}
	for line := range strings.Lines(auxiliaries + synonyms) {
		mark, list, ok := strings.Cut(strings.TrimSpace(line), ": ")
		if !ok {
			continue
		}
		begins := strings.HasPrefix(mark, "?")
		for same := range strings.SplitSeq(list, ", ") {
			if first, _, phrase := strings.Cut(same, " "); phrase {
				w.beginPhrases[first] = true
				maps.Copy(w.inPhrases, set(same))
				w.phrases[same] = strings.TrimPrefix(mark, "-")
			} else if begins {
				w.auxiliaries[same] = mark
			} else {
				w.words[same] = mark
			}
		}
	}
	for aux := range w.auxiliaries {
		if _, ok := w.words[aux]; !ok {
			w.words[aux] = aux
		}
	}
	return w
})

func set(list string) map[string]bool {
	s := map[string]bool{}
	for _, w := range strings.Fields(list) {
		s[w] = true
	}
	return s
}

// meaningless are words that may be missing or differ, except at the end of a sentence. Do not add a word that has an
// opposite, and no preposition: "what is it for" and "what is it in" differ.
const meaningless = `
a an the there it its
i me my myself us you
am is are be been being do does
what which
just actually really basically simply exactly briefly
`

const openings = `
hi hello hey please kindly thanks thank ok okay so well sorry
explain describe define exactly
`

const mentionAfter = `
say spell pronounce translate write type word words keyword term
`

const mentionBefore = `
mean means work works keyword
`

const englishOnly = `
the what how why which who whom whose where when does did can could should would your you my tell explain describe
define please hello thanks give show like cannot it this that there
`

// auxiliaries has a mark on each line, and the words that begin a question that yes or no answers.
const auxiliaries = `
?: am, is, are, do, does
?can: can, could, may
?should: should
?would: would
?might: might
?must: must
`

// synonyms has a mark on each line, and the words and phrases with this meaning. The mark "-" is none.
const synonyms = `
-: can you, could you, would you, will you, can you tell me, could you tell me, would you tell me, can you please tell me
-: could you please tell me, can you explain, could you explain, can you please explain, could you please explain
-: can you explain to me, could you explain to me, do you know, tell me, tell me about, please tell me, give me, show me
-: i want to know, i would like to know, i'd like to know, i need to know, i am wondering, i was wondering, i wonder
-: i have a question, i am curious, help me understand, let me know, explain to me, describe to me
-: what do you know about, i want to understand, thank you, thanks a lot, for me, to me, any idea, i am trying to find out
-: does anyone know, what does the term, what exactly, the following
how: how do i, how can i, how do you, how can you, how do we, how can we, how does one, how could i, how would i
how: how to, how would one
how: how can one, how should i, how do people, how am i supposed to, how are you supposed to
how: what is the best way to, what's the best way to, what is a good way to, what is the way to, the best way to
how: best way to
how: what are the steps to, what steps do i take to, the steps to, steps to, the right way to, the proper way to
how: what is the right way to
how: what do i do to, what should i do to, what do i have to do to, show me how to, tell me how to, explain how to
how: help me
how: can you help me, could you help me, i want to, i would like to, i'd like to, i am trying to, how might i
how: what would i do to
how: how
?can: is it possible to, am i able to, are we able to, is it possible for me to, is it ok to, is it okay to, am i allowed to
when: when, what time, at what time, what date, on what date, on which date, on which day, on what day
where: where, in what place, at what place, in which place, what location, in what location
why: why, how come, what is the reason, what's the reason, the reason why, the reason, for what reason
why: what is the reason why, what are the reasons
who: who, whom, which person, what person
many: many, what number of, what is the number of
mean: mean, signify, meaning of, the meaning of, definition of, the definition of, stand for
did: did, was, were
have: have, has
will: will, shall, going to
not: not, no, never, without
0: zero
1: one
2: two
3: three
4: four
5: five
6: six
7: seven
8: eight
9: nine
10: ten
11: eleven
12: twelve
20: twenty
100: hundred
1000: thousand
%: percent
km: km, kilometer, kilometre, kilometers, kilometres
kg: kg, kilogram, kilograms, kilo, kilos
cm: cm, centimeter, centimetre, centimeters, centimetres
buy: buy, purchase
delete: delete, remove, erase, get rid of, deleting, removing
fix: fix, repair, solve, resolve
start: start, begin
started: started, began
finish: finish, complete
big: big, large
biggest: biggest, largest
fastest: fastest, quickest
small: small, little
picture: picture, photo, image, photograph
film: film, movie, movies
child: children, kids, kid, child
car: car, automobile
lawyer: lawyer, attorney
doctor: doctor, physician
create: create, make
change: change, modify, alter
find: find, locate
get: get, obtain
choose: choose, select
use: use, utilize
avoid: avoid, prevent
happen: happen, occur, take place
check: check, verify
reply: reply, respond
cancel: cancel, call off
difference: difference, distinction
increase: increase, raise
decrease: decrease, reduce, lower
enable: enable, activate, turn on, switch on
disable: disable, deactivate, turn off, switch off
login: login, log in, sign in, log into, sign into
register: register, sign up, create an account
setup: setup, set up, configure
email: email, e mail
often: often, frequently
easy: easy, simple
hard: hard, difficult
entire: entire, whole
needed: needed, required, necessary
need: need, require
amount: amount, quantity
trip: trip, journey
speak: speak, talk
cost: cost, price
learn: learn, study
wrote: wrote, authored
example: example, sample
advantage: advantage, benefit
disadvantage: disadvantage, drawback, downside
`
