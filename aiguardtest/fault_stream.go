package aiguardtest

import (
	"io"
	"net/http"
	"slices"
	"strings"
	"time"
)

const (
	streamPing = ": ping\n\n"
	pingPause  = 10 * time.Millisecond
	eventPause = time.Millisecond // of a stream that never ends

	longEvents = 20
	longPause  = 100 * time.Millisecond

	hugeLine     = 50_000_000
	hugeComment  = 64 << 10
	commentTimes = 200 // 13 MB
)

func streamFaults() []faultRow {
	one, two := delta("Hel"), delta("lo!")
	first := "data: " + one + "\n\n"
	fault := errorBody(429, errorInside)
	good := Events(one, two, finish, "[DONE]")
	return []faultRow{
		{FaultStreamNoEvent, HangAfter(Bytes()), "headers, then silence"},
		{FaultStreamSilence, HangAfter(Events(one, two)), "two events, then silence"},
		{FaultStreamOnlyPings, forEver(streamPing, pingPause), "comments for ever, and no event"},
		{FaultStreamManyPings, inTurn(Bytes(strings.Repeat(streamPing, 200)), good), "200 comments, then a good answer"},
		{FaultStreamNeverEnds, forEver(first, eventPause), "events for ever, one a millisecond"},
		{FaultStreamLong, long(longEvents, longPause), "a good answer of 20 events, 100 ms apart"},
		{FaultStreamHugeLine, inTurn(oneLine(hugeLine), Events(finish, "[DONE]")), "an event of 50 MB in one line"},
		{FaultStreamEndlessLine, oneLine(-1), "an event that never ends, in one line"},
		{FaultStreamHugeComments, commented(commentTimes, hugeComment), "200 good events, each after a comment of 64 KiB"},
		{FaultStreamNoFinish, Events(one, two), "two events, then the end: no finish_reason, no [DONE]"},
		{FaultStreamNoFinishNoLF, Bytes(first, "data: "+two), "the same, the last line without its newline"},
		{FaultStreamNoDone, Events(one, two, finish), "a good answer without [DONE]"},
		{FaultStreamNoDoneHeldOpen, HangAfter(Events(one, two, finish)), "the same, and the connection stays open"},
		{FaultStreamError, Events(one, fault), "an event, then an error of code rate_limit_exceeded"},
		{FaultStreamErrorOddSpacing, Bytes(first, "data:"+strings.Replace(fault, `{"error":`, `  { "error" :  `, 1)+"\n\n"), "the same, spaced unlike OpenAI's"},
		{FaultStreamErrorHeldOpen, HangAfter(Bytes(first, "data: "+fault+"\n")), "the same without a line after it, and the connection stays open"},
		{FaultStreamErrorAfterPing, Bytes(first, streamPing, "data: "+fault+"\n\n"), "the same after a comment"},
		{FaultStreamErrorEvent, Bytes(first, "event: error\ndata: "+fault+"\n\n"), `the same as "event: error"`},
		{FaultStreamMalformed, Events(one, two[:len(two)/2], finish, "[DONE]"), "an event, then half of one"},
		{FaultStreamAnsweredJSON, JSON(200, chatAnswer), "a good answer that is not a stream"},
		{FaultStreamAnsweredHTML, Raw(200, "text/html", html), "200 with HTML"},
		{FaultStreamAnsweredError, JSON(200, fault), "200 with an error, in JSON, of code rate_limit_exceeded"},
		{FaultStreamCut, Cut(len(first)+len(two)/2, Events(one, two, finish)), "an event and a half, then the connection is closed"},
		{FaultStreamReset, resetAfter(Bytes(first, "data: "+two[:len(two)/2])), "an event and a half, then the connection is reset"},
		{FaultStreamOpenedThenNothing, HangAfter(Events(one)), "an event, then silence: for clients that forget to close"},
		{FaultStreamManyObjects, inTurn(Bytes(`data: {"choices":[{}`), filling(",{}", manyObjects), Bytes("]}\n\n", "data: [DONE]\n\n")), "an event of 900 KB: 300,000 empty choices"},
	}
}

const (
	deltaBefore = `{"id":"chatcmpl-fake","object":"chat.completion.chunk","created":1700000000,"model":"fake-model",` +
		`"choices":[{"index":0,"delta":{`
	deltaAfter = `},"logprobs":null,"finish_reason":null}]}`
	finish     = deltaBefore + `},"logprobs":null,"finish_reason":"stop"}]}`
)

// delta is a chat stream's event.
func delta(text string) string { return deltaBefore + `"content":"` + text + `"` + deltaAfter }

// inTurn sends one reply's body after the other, under the first one's headers.
func inTurn(replies ...Reply) Reply {
	return func(w http.ResponseWriter, r *Request) {
		for _, reply := range replies {
			r.unfinished() // whatever the one before it thought
			reply(w, r)
			w = &bodyWriter{w, http.Header{}}
		}
	}
}

// filling is so many times the text, or for ever if times is below 0.
func filling(text string, times int) Reply {
	return func(w http.ResponseWriter, r *Request) { _ = fill(w, r, text, times) }
}

// oneLine is an event of about size bytes, or without end if size is below 0.
func oneLine(size int) Reply {
	before, after, _ := strings.Cut(delta("|"), "|")
	return inTurn(Bytes("data: "+before), filling("a", size), Bytes(after+"\n\n"))
}

// forEver sends the text again and again.
func forEver(text string, pause time.Duration) Reply {
	return func(w http.ResponseWriter, r *Request) {
		startStream(w)
		for flush(w) == nil && wait(r.Context(), pause) == nil {
			if _, err := io.WriteString(w, text); err != nil {
				return
			}
		}
	}
}

// long is a healthy stream of so many events, the last two of which end it.
func long(events int, pause time.Duration) Reply {
	payloads := slices.Repeat([]string{delta("Hi ")}, events-2)
	return Slowly(pause, Events(append(payloads, finish, "[DONE]")...))
}

// commented is a good stream with comments before its events.
func commented(events, size int) Reply {
	return func(w http.ResponseWriter, r *Request) {
		part := ":" + strings.Repeat("x", size-2) + "\ndata: " + delta("Hi ") + "\n\n"
		startStream(w)
		for range events {
			if _, err := io.WriteString(w, part); err != nil {
				return
			}
		}
		Events(finish, "[DONE]")(&bodyWriter{w, http.Header{}}, r)
	}
}
