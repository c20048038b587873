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
	auxiliaries  map[string]bool // begin a question that yes or no answers
	greetings    map[string]bool // may precede the question
}

var lexicon = sync.OnceValue(func() *words {
	w := &words{
		words: map[string]string{}, phrases: map[string]string{},
		inPhrases: map[string]bool{}, beginPhrases: map[string]bool{},
		auxiliaries: set(auxiliaries), greetings: set(greetings),
	}
	for _, free := range strings.Fields(meaningless + greetings) {
		w.words[free] = ""
	}
	for aux := range w.auxiliaries {
		if _, free := w.words[aux]; !free {
			w.words[aux] = aux
		}
	}
	for line := range strings.Lines(synonyms) {
		mark, list, ok := strings.Cut(strings.TrimSpace(line), ": ")
		if !ok {
			continue
		}
		for same := range strings.SplitSeq(list, ", ") {
			if first, _, phrase := strings.Cut(same, " "); phrase {
				w.beginPhrases[first] = true
				maps.Copy(w.inPhrases, set(same))
				w.phrases[same] = strings.TrimPrefix(mark, "-")
			} else {
				w.words[same] = strings.TrimPrefix(mark, "-")
			}
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

// meaningless are words that may be missing or differ. Do not add a word that has an opposite.
const meaningless = `
a an the this that these those there here it its
i me my myself we us our you
am is are be been being do does have has
of in on at for to with about as into and
what which
just actually really basically simply exactly briefly
`

const greetings = `
hi hello hey please kindly thanks thank ok okay so well sorry
`

const auxiliaries = `
am is are do does have has can could should would may might must shall
`

// synonyms has a mark on each line, and the words and phrases with this meaning. The mark "-" is none.
const synonyms = `
-: can you, could you, would you, will you, can you tell me, could you tell me, would you tell me, can you please tell me
-: could you please tell me, can you explain, could you explain, can you please explain, could you please explain
-: can you explain to me, could you explain to me, do you know, tell me, tell me about, please tell me, give me, show me
-: i want to know, i would like to know, i'd like to know, i need to know, i am wondering, i was wondering, i wonder
-: i have a question, i am curious, help me understand, let me know, explain, explain to me, describe, define, describe to me
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
?: is it possible to, am i able to, are we able to, is it possible for me to, is it ok to, is it okay to, am i allowed to
when: when, what time, at what time, what date, on what date, on which date, on which day, on what day
where: where, in what place, at what place, in which place, what location, in what location
why: why, how come, what is the reason, what's the reason, the reason why, the reason, for what reason
why: what is the reason why, what are the reasons
who: who, whom, which person, what person
many: many, what number of, what is the number of
mean: mean, meaning of, the meaning of, definition of, the definition of, stand for, signify
did: did, was, were, had
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
choose: choose, pick, select
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
email: email, e mail, mail
often: often, frequently
easy: easy, simple
hard: hard, difficult
entire: entire, whole
needed: needed, required, necessary
need: need, require
amount: amount, quantity
shop: shop, store
trip: trip, journey
speak: speak, talk
cost: cost, price
learn: learn, study
cure: cure, treat
kind: kind, type, sort
wrote: wrote, authored
example: example, sample
advantage: advantage, benefit
disadvantage: disadvantage, drawback, downside
`
