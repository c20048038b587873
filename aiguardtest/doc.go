// Package aiguardtest is a fake OpenAI server that answers, fails, stalls and
// breaks as told, for testing a service that calls a model.
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
//		// … call the service, then look at what it did:
//		// fake.Count(), fake.Requests(), fake.Peak(), fake.Disconnects()
//	}
//
// Most tests need [NewServer] and [Server.Enqueue]. Without any Enqueue every
// request gets a correct answer. [Server.Handle] chooses by request, and
// [Server.SetDefault] is for all that remain. Programs use [Start].
//
// # Replies
//
// A [Reply] is one behaviour. Replies compose: Cut(100, Slowly(time.Second,
// Text("Hi"))). What takes "next" wraps another reply.
//
//	Text(text)                  correct and complete, plain or streamed, on every endpoint
//	TextN(text, chunks)         the same with that many chunks of text in a stream
//	JSON(status, body, …)       this body, with these headers
//	Raw(status, type, body)     this body, of this content type
//	Error(status, code, …)      an OpenAI error; its message contains ProviderText
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
//
//	FailFirst(n, fail, ok)      fail for the first n requests, then ok
//	Then(first, more…)          one reply after the other, then the last for ever
//
// "For ever" ends when the client leaves or the server is closed.
//
// # Transports
//
// The server speaks plain HTTP/1.1 on 127.0.0.1, and is reached by any client.
// With [TLS] it speaks HTTPS with HTTP/2; [Server.Transport] trusts it. With
// [Pipe] it uses no sockets, so that in a testing/synctest bubble the real
// net/http client and this server run in virtual time, and a test of a
// 30-second timeout takes a millisecond:
//
//	synctest.Test(t, func(t *testing.T) {
//		fake := aiguardtest.NewServer(t, aiguardtest.Pipe())
//		fake.SetDefault(aiguardtest.Hang())
//		client := &http.Client{Transport: fake.Transport(), Timeout: 30 * time.Second}
//		_, err := client.Post(fake.URL+"/chat/completions", "application/json", body)
//		// … err is a timeout, at virtual second 30
//	})
//
// The package needs the standard library only, and does not import testing.
package aiguardtest
