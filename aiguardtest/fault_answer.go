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
	hello = "Hello!"

	// chatAnswer is a good answer, for faults around it.
	chatAnswer = chatBefore + hello + chatAfter
	chatBefore = `{"id":"chatcmpl-fake","object":"chat.completion","created":1700000000,"model":"fake-model",` +
		`"choices":[{"index":0,"message":{"role":"assistant","content":"`
	chatAfter = `","refusal":null},"logprobs":null,"finish_reason":"stop"}],` +
		`"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}`

	errorBefore = `{"error":{"message":"` + ProviderText + ` `
	errorAfter  = `","type":"server_error","param":null,"code":null}}`

	failedResponse = `{"id":"resp_fake","object":"response","created_at":1700000000,"status":"failed",` +
		`"error":{"code":"server_error","message":"` + ProviderText + `"},"incomplete_details":null,` +
		`"model":"fake-model","output":[],"parallel_tool_calls":true,"usage":null}`

	html = "<!DOCTYPE html><html><head><title>" + ProviderText + "</title></head><body><h1>" + ProviderText + "</h1></body></html>\n"

	// errorInside is the code of errors where no status tells the same.
	errorInside = "rate_limit_exceeded"

	hugeBody    = 200_000_000
	manyObjects = 300_000 // 900 KB
	deepNesting = 100_000
	trailing    = 16 << 10

	blockSize = 64 << 10 // of what is written again and again
)

func answerFaults() []faultRow {
	bad := http.StatusInternalServerError
	return []faultRow{
		{FaultNoHeaders, Hang(), "silence, not even headers"},
		{FaultHeadersOnly, HangAfter(JSON(200, "")), "headers, then silence"},
		{FaultByteASecond, byteASecond, "a good answer, one byte a second"},
		{FaultStalledError429, HangAfter(JSON(429, errorBefore, "Retry-After", "1")), "429 with Retry-After: 1; its body begins and stalls"},
		{FaultStalledError500, HangAfter(JSON(bad, errorBefore)), "500; its body begins and stalls"},
		{FaultHugeAnswer, filled(200, chatBefore, "a", hugeBody, chatAfter), "200 MB of good JSON"},
		{FaultManyObjects, filled(200, `{"choices":[{}`, ",{}", manyObjects, "]}"), "900 KB of JSON: 300,000 empty choices"},
		{FaultDeepNesting, nested, "JSON nested 100,000 deep"},
		{FaultGzipBomb, gzipBomb(200, chatBefore, chatAfter), "4 MB of gzip that are 4 GB of JSON"},
		{FaultGzipBombError, gzipBomb(bad, errorBefore, errorAfter), "the same in a 500's body"},
		{FaultHugeError, filled(bad, errorBefore, "a", hugeBody, errorAfter), "500 with a body of 200 MB"},
		{FaultTruncatedJSON, JSON(200, chatAnswer[:len(chatAnswer)/2]), "half of the JSON in a complete HTTP body"},
		{FaultCutAnswer, Cut(len(chatAnswer)/2, JSON(200, chatAnswer)), "half of the JSON, then the connection is closed"},
		{FaultResetAnswer, resetAfter(JSON(200, chatAnswer[:len(chatAnswer)/2])), "half of the JSON, then the connection is reset"},
		{FaultErrorInOK, JSON(200, errorBody(429, errorInside)), "200 with an error inside, of code rate_limit_exceeded"},
		{FaultNull, JSON(200, "null"), "200 with null"},
		{FaultNoChoices, JSON(200, "{}"), "200 with {}"},
		{FaultEmptyBody, JSON(200, ""), "200 with an empty body"},
		{FaultNoContent, JSON(http.StatusNoContent, ""), "204"},
		{FaultHTML, Raw(200, "text/html", html), "200 with HTML"},
		{FaultWrongType, Raw(200, "image/png", chatAnswer), "a good answer that claims to be image/png"},
		{FaultTrailingBytes, JSON(200, chatAnswer+strings.Repeat("x", trailing)), "a good answer, then 16 KiB of garbage"},
		{FaultUndrained, undrained, "a good answer, then white space in chunks of its own"},
		{FaultErrorText, JSON(bad, `{"error":"`+ProviderText+`"}`), "500 whose error is a string"},
		{FaultHTML502, Raw(http.StatusBadGateway, "text/html", html), "502 with HTML"},
		{FaultHTML504, Raw(http.StatusGatewayTimeout, "text/html", html), "504 with HTML"},
		{FaultNullCode, Error(bad, ""), `500 with "code":null`},
		{FaultNumericCode, JSON(bad, strings.Replace(errorBefore+errorAfter, `"code":null`, `"code":500`, 1)), `500 with "code":500, a number`},
		{FaultFailedResponse, JSON(200, failedResponse), `200 with a response (of the Responses API) of status "failed"`},
	}
}

// filled answers with JSON that has the filling again and again in its middle.
// Times below 0 is for ever.
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

// fill writes filling so many times, or for ever if times is below 0, until
// the client leaves.
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

func byteASecond(w http.ResponseWriter, r *Request) {
	JSON(200, "")(w, r)
	r.unfinished()
	for i := range len(chatAnswer) {
		if flush(w) != nil || wait(r.Context(), time.Second) != nil {
			return
		}
		if i == len(chatAnswer)-1 {
			r.finishing()
		}
		if _, err := w.Write([]byte{chatAnswer[i]}); err != nil {
			return
		}
	}
}

func nested(w http.ResponseWriter, r *Request) {
	JSON(200, `{"choices":[`)(w, r)
	r.unfinished()
	if fill(w, r, "[", deepNesting) == nil && fill(w, r, "]", deepNesting) == nil {
		r.finishing()
		_, _ = w.Write([]byte("]}"))
	}
}

// bombBlock is 4 MiB of a's, compressed. Members of a gzip stream may follow
// each other, so 1,024 times the same 4 KB are 4 GiB.
var bombBlock = sync.OnceValue(func() string {
	return compressed(strings.Repeat("a", 4<<20))
})

func compressed(text string) string {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, _ = z.Write([]byte(text)) // a Buffer takes everything
	_ = z.Close()
	return b.String()
}

func gzipBomb(status int, before, after string) Reply {
	return func(w http.ResponseWriter, r *Request) {
		w.Header().Set("Content-Encoding", "gzip")
		filled(status, compressed(before), bombBlock(), 1024, compressed(after))(w, r)
	}
}

// resetAfter resets the connection (HTTP/2: the stream) where next's end would
// be.
func resetAfter(next Reply) Reply {
	return func(w http.ResponseWriter, r *Request) {
		next(w, r)
		r.unfinished()
		// A reset may overtake what was sent before it and was not yet read.
		if flush(w) == nil && wait(r.Context(), 10*time.Millisecond) == nil {
			ResetConn()(w, r)
		}
	}
}

// undrained makes readers that stop at the JSON's end leave something behind.
func undrained(w http.ResponseWriter, r *Request) {
	JSON(200, chatAnswer)(w, r)
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
