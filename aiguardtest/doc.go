// Package aiguardtest is a fake model provider for tests of a service that calls a model. It answers, fails, stalls or
// breaks as configured. It supports the APIs of OpenAI, Anthropic, Gemini and Ollama.
//
//	func TestSlowProvider(t *testing.T) {
//		fake := aiguardtest.NewServer(t)
//		fake.Enqueue(
//			aiguardtest.Error(429, "rate_limit_exceeded", "Retry-After", "1"),
//			aiguardtest.After(2*time.Second, aiguardtest.Text("Paris")),
//		)
//		cfg := openai.DefaultConfig("any key")
//		cfg.BaseURL = fake.URL
//		service := NewService(openai.NewClientWithConfig(cfg))
//		// … call the service, then check what it did:
//		// fake.Count(), fake.Requests(), fake.Peak(), fake.Disconnects()
//	}
//
// Most tests need [NewServer] and [Server.Enqueue]. By default every request gets a correct answer. [Server.Handle]
// chooses a reply by request, and [Server.SetDefault] sets the reply for all other requests. [Server.Play] takes
// precedence over all of them. Programs use [Start].
//
// # APIs
//
// The path of a request selects the API. A prefix before the listed part has no effect, so every client can use
// [Server].URL as its base URL:
//
//	/v1/messages                            Anthropic; streams are server-sent events
//	/models/{model}:generateContent         Gemini
//	/models/{model}:streamGenerateContent   Gemini; a JSON array, or with ?alt=sse server-sent events
//	/api/chat, /api/generate                Ollama; JSON lines unless "stream" is false
//	all others                              OpenAI; streams are server-sent events
//
// Replies and faults have the form of the API. For example, an [Error] has Anthropic's form for Anthropic's SDK, and a
// stream that breaks for Ollama's client consists of JSON lines.
//
// # Replies
//
// A [Reply] is one behaviour. Replies compose: Cut(100, Slowly(time.Second, Text("Hi"))). Functions with a parameter
// "next" wrap another reply.
//
//	Text(text)                  correct and complete, plain or streamed, on every endpoint
//	TextN(text, chunks)         the same with that many chunks of text in a stream
//	JSON(status, body, …)       this body, with these headers
//	Raw(status, type, body)     this body, of this content type
//	Error(status, code, …)      an error of the API; its message contains ProviderText
//	Events(payloads…)           a stream of these events, without [DONE] unless given
//	Bytes(parts…)               a stream of exactly these bytes
//
//	After(d, next)              silence for d, then next
//	HeadersThen(d, next)        headers, silence for d, then next's body
//	Slowly(d, next)             d before each event
//	Hang()                      silence for ever, no headers
//	HangAfter(next)             next, but its body never ends
//	Cut(n, next)                n bytes of next's body, then the connection breaks
//	ResetConn()                 a connection reset before any header
//	Drop()                      a closed connection before any header
//	Redirect(status, location)  to a path or a URL
//
//	FailFirst(n, fail, ok)      fail for the first n requests, then ok
//	Then(first, more…)          one reply after the other, then the last for ever
//
// "For ever" means until the client leaves or the server is closed.
//
// # Faults
//
// A [Fault] is a failure with a name. [Server.Play] applies it to every request until Play(""). [Fault.Reply] applies
// it to a single request. Test your service with all of them:
//
//	for _, f := range aiguardtest.Faults() {
//		t.Run(f.String(), func(t *testing.T) {
//			fake := aiguardtest.NewServer(t)
//			fake.Play(f)
//			// … call the service: does it end in time, and with what error?
//		})
//	}
//
// [FaultRefused], [FaultTLSStall], [FaultNeverRead] and [FaultGoesDark] happen below HTTP and have no Reply. Some
// faults end in a good answer, and a client should get that answer. An example is FaultStreamManyPings.
//
// The list below describes OpenAI's form. Other APIs have their own form. For example, Anthropic sends stop_reason and
// message_stop instead of finish_reason and [DONE]. APIs without comments send an empty piece of text as a ping.
// Gemini's FaultStreamErrorEvent is an error in a separate line without "data:". If an API has no such fault, it plays
// the nearest one. For Anthropic, FaultInsufficientQuota is its 400 for a credit balance that is too low. For Ollama,
// whose errors are texts without a code, it is a plain 429.
//
// The connection:
//
//	FaultRefused            the port is closed: connection refused
//	FaultTLSStall           the connection is accepted, but TLS (or HTTP) is never answered
//	FaultNeverRead          the request's body is not read: a large prompt blocks in sending
//	FaultEOF                the request is read and the connection closed
//	FaultReset              the request is read and the connection reset
//	FaultStaleKeepAlive     the first request on a connection is answered, the second closes it
//	FaultGoesDark           existing connections fall silent but stay open, new ones work
//	FaultRedirect301        301 to another path, which answers
//	FaultRedirect302        302 to another path, which answers
//	FaultRedirect307        307 to another path, which answers
//	FaultRedirect308        308 to another path, which answers
//	FaultRedirectHost       307 to the same server under another host name, localhost
//	FaultHugeHeaders        9 MB of headers, then a good answer
//	FaultManyHeaders        900,000 tiny headers (HTTP/2: 290,000), then a good answer
//	FaultEndlessEarlyHints  103 Early Hints, repeated for ever
//
// Answers that are not streams, sent on every endpoint:
//
//	FaultNoHeaders        silence, not even headers
//	FaultHeadersOnly      headers, then silence
//	FaultByteASecond      a good answer, one byte a second
//	FaultStalledError429  429 with Retry-After: 1; its body begins and stalls
//	FaultStalledError500  500; its body begins and stalls
//	FaultHugeAnswer       200 MB of good JSON
//	FaultManyObjects      900 KB of JSON: 300,000 empty choices
//	FaultDeepNesting      JSON nested 100,000 deep
//	FaultGzipBomb         4 MB of gzip that are 4 GB of JSON
//	FaultGzipBombError    the same in a 500's body
//	FaultHugeError        500 with a body of 200 MB
//	FaultTruncatedJSON    half of the JSON in a complete HTTP body
//	FaultCutAnswer        half of the JSON, then the connection is closed
//	FaultResetAnswer      half of the JSON, then the connection is reset
//	FaultErrorInOK        200 with an error of code rate_limit_exceeded
//	FaultNull             200 with null
//	FaultNoChoices        200 with {}
//	FaultEmptyBody        200 with an empty body
//	FaultNoContent        204
//	FaultHTML             200 with HTML
//	FaultWrongType        a good answer that claims to be image/png
//	FaultTrailingBytes    a good answer, then 16 KiB of garbage
//	FaultUndrained        a good answer, then white space in chunks of its own
//	FaultErrorText        500 whose error is a string
//	FaultHTML502          502 with HTML
//	FaultHTML504          504 with HTML
//	FaultNullCode         500 with "code":null
//	FaultNumericCode      500 with "code":500, a number
//	FaultFailedResponse   200 with a response (of the Responses API) of status "failed"
//
// Streams, sent on every endpoint (OpenAI: as chat streams), even if no stream was requested:
//
//	FaultStreamNoEvent            headers, then silence
//	FaultStreamSilence            two events, then silence
//	FaultStreamOnlyPings          comments for ever, and no event
//	FaultStreamManyPings          200 comments, then a good answer
//	FaultStreamNeverEnds          events for ever, one a millisecond
//	FaultStreamLong               a good answer of 20 events, 100 ms apart
//	FaultStreamHugeLine           an event of 50 MB in one line
//	FaultStreamEndlessLine        an event that never ends, in one line
//	FaultStreamHugeComments       200 good events, each after a comment of 64 KiB
//	FaultStreamNoFinish           two events, then the end: no finish_reason, no [DONE]
//	FaultStreamNoFinishNoLF       the same, the last line without its newline
//	FaultStreamNoDone             a good answer without [DONE]
//	FaultStreamNoDoneHeldOpen     the same, and the connection stays open
//	FaultStreamError              an event, then an error of code rate_limit_exceeded
//	FaultStreamErrorOddSpacing    the same, spaced unlike OpenAI's
//	FaultStreamErrorHeldOpen      the same without a line after it, and the connection stays open
//	FaultStreamErrorAfterPing     the same after a comment
//	FaultStreamErrorEvent         the same as "event: error"
//	FaultStreamMalformed          an event, then half of one
//	FaultStreamAnsweredJSON       a good answer that is not a stream
//	FaultStreamAnsweredHTML       200 with HTML
//	FaultStreamAnsweredError      200 with an error, in JSON, of code rate_limit_exceeded
//	FaultStreamCut                an event and a half, then the connection is closed
//	FaultStreamReset              an event and a half, then the connection is reset
//	FaultStreamOpenedThenNothing  an event, then silence: for clients that forget to close
//	FaultStreamManyObjects        an event of 900 KB: 300,000 empty choices
//
// Refusals:
//
//	FaultRetryAfter          429 with Retry-After: 1
//	FaultRetryAfterDate      429 with Retry-After: a date, one to two seconds from now
//	FaultRetryAfterMS        429 with retry-after-ms: 500
//	FaultXMSRetryAfterMS     429 with x-ms-retry-after-ms: 500
//	FaultRetryAfterLong      429 with Retry-After: 3600
//	FaultRetryAfterAbsurd    429 with Retry-After: 1000000000, 31 years
//	FaultRetryAfterNegative  429 with Retry-After: -5
//	FaultRetryAfterGarbage   429 with Retry-After: soon; perhaps
//	FaultRetryAfterNaN       429 with Retry-After: NaN
//	FaultInsufficientQuota   429 insufficient_quota
//	FaultBillingNotActive    429 billing_not_active
//	FaultSpendLimit          429 project_spend_limit_exceeded
//	FaultCreditExhausted     429 credit_balance_exhausted
//	FaultSlowDown            429 slow_down
//	FaultPromptTooLong       400 context_length_exceeded
//	FaultContentPolicy       400 content_policy_violation
//	FaultStatus401           401 invalid_api_key
//	FaultStatus403           403 unsupported_country_region_territory
//	FaultStatus408           408
//	FaultStatus409           409
//	FaultStatus500           500
//	FaultStatus502           502
//	FaultStatus503           503
//	FaultStatus504           504
//	FaultStatus529           529, overloaded
//
// # Load
//
// A [Provider] simulates a provider with limited capacity. Requests in progress share its speed. It has a rate limit,
// refuses requests beyond its capacity, and can have an outage. Answers take a realistic time:
//
//	fake.SetDefault(aiguardtest.NewProvider(aiguardtest.ProviderConfig{
//		Capacity:         5,               // requests at full speed
//		RPM:              360,             // then 429 with Retry-After
//		RateLimitHeaders: true,            // x-ratelimit-remaining-requests and so on
//		OutageAfter:      2 * time.Minute, // for a minute
//		OutageFor:        time.Minute,
//	}).Reply(aiguardtest.Text("Paris")))
//
// For many thousands of requests, use the Provider as an http.RoundTripper without a server.
//
// # Proxies
//
// A [Proxy] accepts connections and falls silent at the point that its [ProxyFault] names:
//
//	proxy := aiguardtest.NewProxy(t, aiguardtest.ProxyNoConnect)
//	client := &http.Client{Transport: &http.Transport{Proxy: http.ProxyURL(proxy.URL)}}
//	_, err := client.Post("https://api.example.com/v1/chat/completions", "application/json", body)
//
// # Transports
//
// The server uses plain HTTP/1.1 on 127.0.0.1, and any client can reach it. With [TLS] it uses HTTPS with HTTP/2, and
// [Server.Transport] trusts its certificate. With [Pipe] it uses no sockets. In a testing/synctest bubble the real
// net/http client and this server then run in virtual time, and a test of a 30-second timeout takes a millisecond:
//
//	synctest.Test(t, func(t *testing.T) {
//		fake := aiguardtest.NewServer(t, aiguardtest.Pipe())
//		fake.SetDefault(aiguardtest.Hang())
//		client := &http.Client{Transport: fake.Transport(), Timeout: 30 * time.Second}
//		_, err := client.Post(fake.URL+"/chat/completions", "application/json", body)
//		// … err is a timeout, at virtual second 30
//	})
//
// The package depends only on the standard library and does not import testing.
package aiguardtest
