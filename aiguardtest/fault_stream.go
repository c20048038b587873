package aiguardtest

import (
	"net/http"
	"slices"
	"strings"
	"time"
)

const (
	manyPings  = 200
	pingPause  = 10 * time.Millisecond
	eventPause = time.Millisecond // between events of an endless stream

	longTexts = 18 // plus two events that end the stream
	longPause = 100 * time.Millisecond

	hugeLine     = 50_000_000
	hugeComment  = 64 << 10
	commentTimes = 200 // 13 MB in total
)

func streamFaults() []faultRow {
	streamed := func(of func(s *stream) *stream) func(*answer) Reply {
		return func(a *answer) Reply { return of(a.stream()).reply() }
	}
	heldOpen := func(play func(*answer) Reply) func(*answer) Reply {
		return func(a *answer) Reply { return HangAfter(play(a)) }
	}
	halve := func(part string) string { return part[:len(part)/2] }
	two := func(s *stream) *stream { return s.says("Hel", "lo!") }
	noDone := func(s *stream) *stream { return two(s).finishes() }
	failing := func(s *stream) *stream { return s.says("Hel").fails() }
	limited := func(a *answer) Reply { return JSON(http.StatusOK, a.body(a.words(a.limited))) }
	return []faultRow{
		{FaultStreamNoEvent, always(HangAfter(Bytes())), "headers, then silence"},
		{FaultStreamSilence, heldOpen(streamed(two)), "two events, then silence"},
		{FaultStreamOnlyPings, func(a *answer) Reply { return forEver(a, pingPause, func(s *stream) { s.pings(1) }) },
			"comments for ever, and no event"},
		{FaultStreamManyPings, streamed(func(s *stream) *stream { return two(s.pings(manyPings)).ends() }),
			"200 comments, then a good answer"},
		{FaultStreamNeverEnds, func(a *answer) Reply { return forEver(a, eventPause, func(s *stream) { s.says("Hel") }) },
			"events for ever, one a millisecond"},
		{FaultStreamLong, func(a *answer) Reply { return Slowly(longPause, longStream(a).reply()) },
			"a good answer of 20 events, 100 ms apart"},
		{FaultStreamHugeLine, func(a *answer) Reply { return oneLine(a, hugeLine) }, "an event of 50 MB in one line"},
		{FaultStreamEndlessLine, func(a *answer) Reply { return oneLine(a, -1) }, "an event that never ends, in one line"},
		{FaultStreamHugeComments, commented, "200 good events, each after a comment of 64 KiB"},
		{FaultStreamNoFinish, streamed(two), "two events, then the end: no finish_reason, no [DONE]"},
		{FaultStreamNoFinishNoLF, streamed(func(s *stream) *stream {
			return two(s).last(func(part string) string { return strings.TrimRight(part, "\r\n") })
		}), "the same, the last line without its newline"},
		{FaultStreamNoDone, streamed(noDone), "a good answer without [DONE]"},
		{FaultStreamNoDoneHeldOpen, heldOpen(streamed(noDone)), "the same, and the connection stays open"},
		{FaultStreamError, streamed(failing), "an event, then an error of code rate_limit_exceeded"},
		{FaultStreamErrorOddSpacing, streamed(oddlySpaced), "the same, spaced unlike OpenAI's"},
		{FaultStreamErrorHeldOpen, heldOpen(streamed(func(s *stream) *stream {
			return failing(s).last(func(part string) string { return strings.TrimSuffix(strings.TrimSuffix(part, "\n"), "\r") })
		})), "the same without a line after it, and the connection stays open"},
		{FaultStreamErrorAfterPing, streamed(func(s *stream) *stream { return s.says("Hel").pings(1).fails() }),
			"the same after a comment"},
		{FaultStreamErrorEvent, streamed(func(s *stream) *stream { return s.says("Hel").failsOtherwise() }),
			`the same as "event: error"`},
		{FaultStreamMalformed, streamed(func(s *stream) *stream {
			return s.says("Hel").events(halve(s.a.delta(s.a, "lo!"))).ends()
		}), "an event, then half of one"},
		{FaultStreamAnsweredJSON, func(a *answer) Reply { return JSON(http.StatusOK, encode(a.whole(a))) },
			"a good answer that is not a stream"},
		{FaultStreamAnsweredHTML, always(Raw(http.StatusOK, "text/html", html)), "200 with HTML"},
		{FaultStreamAnsweredError, limited, "200 with an error, in JSON, of code rate_limit_exceeded"},
		{FaultStreamCut, func(a *answer) Reply { return Cut(two(a.stream()).last(halve).size(), two(a.stream()).reply()) },
			"an event and a half, then the connection is closed"},
		{FaultStreamReset, func(a *answer) Reply { return resetAfter(two(a.stream()).last(halve).reply()) },
			"an event and a half, then the connection is reset"},
		{FaultStreamOpenedThenNothing, heldOpen(streamed(func(s *stream) *stream { return s.says("Hel") })),
			"an event, then silence: for clients that forget to close"},
		{FaultStreamManyObjects, manyInEvent, "an event of 900 KB: 300,000 empty choices"},
	}
}

// oddlySpaced adds an error with blanks where the API sends none.
func oddlySpaced(s *stream) *stream {
	data := "  " + strings.Replace(s.a.words(s.a.limited), `"error":`, ` "error" :  `, 1)
	return s.says("Hel").events(data).last(func(part string) string { return strings.Replace(part, "data: ", "data:", 1) })
}

func manyInEvent(a *answer) Reply {
	s := a.stream().events(a.objects(true))
	if a.mark != "" {
		s.raw(a.mark)
	}
	before, after := s.around()
	return inTurn(Bytes(before+"{}"), filling(",{}", manyObjects), Bytes(after))
}

// inTurn sends the bodies of the replies one after the other, under the headers of the first.
func inTurn(replies ...Reply) Reply {
	return func(w http.ResponseWriter, r *Request) {
		for _, reply := range replies {
			r.unfinished() // undoes a finishing call of the previous reply
			reply(w, r)
			w = &bodyWriter{w, http.Header{}}
		}
	}
}

// filling adds text the given number of times. Negative times stand for endless repetition.
func filling(text string, times int) Reply {
	return func(w http.ResponseWriter, r *Request) { _ = fill(w, r, text, times) }
}

// oneLine sends an event of about size bytes. A negative size stands for an endless event.
func oneLine(a *answer, size int) Reply {
	before, after := a.stream().says(gap).ends().around()
	return inTurn(Bytes(before), filling("a", size), Bytes(after))
}

// forEver sends events without end.
func forEver(a *answer, pause time.Duration, more func(*stream)) Reply {
	return func(w http.ResponseWriter, r *Request) {
		startStream(w, r)
		for s := a.stream(); flush(w) == nil && wait(r.Context(), pause) == nil; {
			if more(s); s.send(w) != nil {
				return
			}
		}
	}
}

// longStream returns a healthy stream.
func longStream(a *answer) *stream {
	return a.stream().says(slices.Repeat([]string{"Hi "}, longTexts)...).ends()
}

// commented sends a good stream with comments before its events.
func commented(a *answer) Reply {
	return func(w http.ResponseWriter, r *Request) {
		startStream(w, r)
		s := a.stream()
		for range commentTimes {
			s.says("Hi ").last(func(part string) string { return a.pad(hugeComment) + part })
			if s.send(w) != nil {
				return
			}
		}
		s.ends().reply()(&bodyWriter{w, http.Header{}}, r)
	}
}
