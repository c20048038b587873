package aiguardtest

import (
	"bytes"
	"compress/gzip"
	"net/http"
	"strings"
	"sync"
	"time"
)

const (
	hello = "Hello!" // text of the good answers that faults modify

	html = "<!DOCTYPE html><html><head><title>" + ProviderText + "</title></head><body><h1>" + ProviderText + "</h1></body></html>\n"

	hugeBody    = 200_000_000
	manyObjects = 300_000 // 900 KB
	deepNesting = 100_000
	trailing    = 16 << 10

	blockSize = 64 << 10 // size of a block that is written repeatedly
)

func answerFaults() []faultRow {
	ok, bad := http.StatusOK, http.StatusInternalServerError
	whole := func(a *answer) string { return encode(a.whole(a)) }
	half := func(a *answer) string { return whole(a)[:len(whole(a))/2] }
	// Replies that insert a long text into a good answer or into an error.
	inside := func(reply func(status int, before, after string) Reply) func(*answer) Reply {
		return func(a *answer) Reply {
			before, after := cutAtText(a)
			return reply(ok, before, after)
		}
	}
	insideError := func(status int, reply func(status int, before, after string) Reply) func(*answer) Reply {
		return func(a *answer) Reply {
			before, after := a.around(status)
			return reply(status, before, after)
		}
	}
	huge := func(status int, before, after string) Reply { return filled(status, before, "a", hugeBody, after) }
	stalled := func(headers ...string) func(status int, before, _ string) Reply {
		return func(status int, before, _ string) Reply { return HangAfter(JSON(status, before, headers...)) }
	}
	return []faultRow{
		{FaultNoHeaders, always(Hang()), "silence, not even headers"},
		{FaultHeadersOnly, always(HangAfter(JSON(ok, ""))), "headers, then silence"},
		{FaultByteASecond, func(a *answer) Reply { return byteASecond(whole(a)) }, "a good answer, one byte a second"},
		{FaultStalledError429, insideError(429, stalled("Retry-After", "1")),
			"429 with Retry-After: 1; its body begins and stalls"},
		{FaultStalledError500, insideError(bad, stalled()), "500; its body begins and stalls"},
		{FaultHugeAnswer, inside(huge), "200 MB of good JSON"},
		{FaultManyObjects, manyInAnswer, "900 KB of JSON: 300,000 empty choices"},
		{FaultDeepNesting, nested, "JSON nested 100,000 deep"},
		{FaultGzipBomb, inside(gzipBomb), "4 MB of gzip that are 4 GB of JSON"},
		{FaultGzipBombError, insideError(bad, gzipBomb), "the same in a 500's body"},
		{FaultHugeError, insideError(bad, huge), "500 with a body of 200 MB"},
		{FaultTruncatedJSON, func(a *answer) Reply { return JSON(ok, half(a)) }, "half of the JSON in a complete HTTP body"},
		{FaultCutAnswer, func(a *answer) Reply { return Cut(len(half(a)), JSON(ok, whole(a))) },
			"half of the JSON, then the connection is closed"},
		{FaultResetAnswer, func(a *answer) Reply { return resetAfter(JSON(ok, half(a))) },
			"half of the JSON, then the connection is reset"},
		{FaultErrorInOK, func(a *answer) Reply { return JSON(ok, a.body(a.words(a.limited))) },
			"200 with an error of code rate_limit_exceeded"},
		{FaultNull, always(JSON(ok, "null")), "200 with null"},
		{FaultNoChoices, always(JSON(ok, "{}")), "200 with {}"},
		{FaultEmptyBody, always(JSON(ok, "")), "200 with an empty body"},
		{FaultNoContent, always(JSON(http.StatusNoContent, "")), "204"},
		{FaultHTML, always(Raw(ok, "text/html", html)), "200 with HTML"},
		{FaultWrongType, func(a *answer) Reply { return Raw(ok, "image/png", whole(a)) },
			"a good answer that claims to be image/png"},
		{FaultTrailingBytes, func(a *answer) Reply { return JSON(ok, whole(a)+strings.Repeat("x", trailing)) },
			"a good answer, then 16 KiB of garbage"},
		{FaultUndrained, func(a *answer) Reply { return undrained(whole(a)) },
			"a good answer, then white space in chunks of its own"},
		{FaultErrorText, always(JSON(bad, `{"error":"`+ProviderText+`"}`)), "500 whose error is a string"},
		{FaultHTML502, always(Raw(http.StatusBadGateway, "text/html", html)), "502 with HTML"},
		{FaultHTML504, always(Raw(http.StatusGatewayTimeout, "text/html", html)), "504 with HTML"},
		{FaultNullCode, always(Error(bad, "")), `500 with "code":null`},
		{FaultNumericCode, numericCode, `500 with "code":500, a number`},
		{FaultFailedResponse, func(a *answer) Reply { return JSON(ok, encode(a.failed(a))) },
			`200 with a response (of the Responses API) of status "failed"`},
	}
}

// cutAtText returns a good answer in two pieces, so that text can be inserted.
func cutAtText(a *answer) (before, after string) {
	a.text = gap
	before, after, _ = strings.Cut(encode(a.whole(a)), gap)
	return before, after
}

func numericCode(a *answer) Reply {
	bad := http.StatusInternalServerError
	return JSON(bad, strings.Replace(a.body(a.words(refusal{status: bad})), `"code":null`, `"code":500`, 1))
}

func manyInAnswer(a *answer) Reply {
	before, after, _ := strings.Cut(a.objects(false), gap)
	return filled(http.StatusOK, before+"{}", ",{}", manyObjects, after)
}

// filled answers with JSON that repeats filling in its middle. Negative times stand for endless repetition.
func filled(status int, before, filling string, times int, after string) Reply {
	return func(w http.ResponseWriter, r *Request) {
		JSON(status, before)(w, r)
		r.unfinished()
		if fill(w, r, filling, times) == nil {
			r.finishing()
			_, _ = w.Write([]byte(after))
		}
	}
}

// fill writes filling the given number of times until the client leaves. Negative times stand for endless repetition.
func fill(w http.ResponseWriter, r *Request, filling string, times int) error {
	per := blockSize / len(filling)
	if times >= 0 {
		per = min(per, times)
	}
	block := bytes.Repeat([]byte(filling), per)
	for times != 0 {
		n := per
		if times > 0 {
			n = min(per, times)
			times -= n
		}
		if err := r.Context().Err(); err != nil {
			return err
		}
		if _, err := w.Write(block[:n*len(filling)]); err != nil {
			return err
		}
	}
	return nil
}

func byteASecond(body string) Reply {
	return func(w http.ResponseWriter, r *Request) {
		JSON(http.StatusOK, "")(w, r)
		r.unfinished()
		for i := range len(body) {
			if flush(w) != nil || wait(r.Context(), time.Second) != nil {
				return
			}
			if i == len(body)-1 {
				r.finishing()
			}
			if _, err := w.Write([]byte{body[i]}); err != nil {
				return
			}
		}
	}
}

func nested(a *answer) Reply {
	before, after, _ := strings.Cut(a.objects(false), gap)
	return func(w http.ResponseWriter, r *Request) {
		JSON(http.StatusOK, before)(w, r)
		r.unfinished()
		if fill(w, r, "[", deepNesting) == nil && fill(w, r, "]", deepNesting) == nil {
			r.finishing()
			_, _ = w.Write([]byte(after))
		}
	}
}

// bombBlock is 4 MiB of the letter a, compressed to 4 KB. A gzip stream may have several members, so 1,024 blocks
// decompress to 4 GiB.
var bombBlock = sync.OnceValue(func() string {
	return compressed(strings.Repeat("a", 4<<20))
})

func compressed(text string) string {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, _ = z.Write([]byte(text)) // a Buffer never fails
	_ = z.Close()
	return b.String()
}

func gzipBomb(status int, before, after string) Reply {
	return func(w http.ResponseWriter, r *Request) {
		w.Header().Set("Content-Encoding", "gzip")
		filled(status, compressed(before), bombBlock(), 1024, compressed(after))(w, r)
	}
}

// resetAfter resets the connection (HTTP/2: the stream) at the end of next.
func resetAfter(next Reply) Reply {
	return func(w http.ResponseWriter, r *Request) {
		next(w, r)
		r.unfinished()
		// A reset may overtake data that was sent before it and not yet read.
		if flush(w) == nil && wait(r.Context(), 10*time.Millisecond) == nil {
			ResetConn()(w, r)
		}
	}
}

// undrained leaves unread bytes after the end of the JSON.
func undrained(body string) Reply {
	return func(w http.ResponseWriter, r *Request) {
		JSON(http.StatusOK, body)(w, r)
		for range 4 {
			r.unfinished()
			if flush(w) != nil || wait(r.Context(), 5*time.Millisecond) != nil {
				return
			}
			r.finishing()
			if _, err := w.Write([]byte(strings.Repeat(" \n", 512))); err != nil {
				return
			}
		}
	}
}
