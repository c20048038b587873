package aiguardtest

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

const (
	// The sizes are just below the 10 MB that net/http and its HTTP/2 accept by default.
	hugeHeaders   = 9       // of 1 MB each
	manyHeaders   = 900_000 // of 10 bytes each
	manyHeadersH2 = 290_000 // HTTP/2 counts 32 bytes more for each

	hintPause = 10 * time.Millisecond // between two hints, to limit CPU use
	movedPath = "/moved"              // prefix of the redirect target
)

func connectionFaults() []faultRow {
	return []faultRow{
		{FaultRefused, nil, "the port is closed: connection refused"},
		{FaultTLSStall, nil, "the connection is accepted, but TLS (or HTTP) is never answered"},
		{FaultNeverRead, nil, "the request's body is not read: a large prompt blocks in sending"},
		{FaultEOF, always(Drop()), "the request is read and the connection closed"},
		{FaultReset, always(ResetConn()), "the request is read and the connection reset"},
		{FaultStaleKeepAlive, always(staleKeepAlive), "the first request on a connection is answered, the second closes it"},
		{FaultGoesDark, nil, "existing connections fall silent but stay open, new ones work"},
		{FaultRedirect301, always(redirect(http.StatusMovedPermanently, "")), "301 to another path, which answers"},
		{FaultRedirect302, always(redirect(http.StatusFound, "")), "302 to another path, which answers"},
		{FaultRedirect307, always(redirect(http.StatusTemporaryRedirect, "")), "307 to another path, which answers"},
		{FaultRedirect308, always(redirect(http.StatusPermanentRedirect, "")), "308 to another path, which answers"},
		{FaultRedirectHost, always(redirect(http.StatusTemporaryRedirect, "localhost")),
			"307 to the same server under another host name, localhost"},
		{FaultHugeHeaders, withHugeHeaders, "9 MB of headers, then a good answer"},
		{FaultManyHeaders, withManyHeaders, "900,000 tiny headers (HTTP/2: 290,000), then a good answer"},
		{FaultEndlessEarlyHints, always(endlessEarlyHints), "103 Early Hints, repeated for ever"},
	}
}

func staleKeepAlive(w http.ResponseWriter, r *Request) {
	if r.ex != nil && r.ex.conn != nil && r.ex.onConn > 1 {
		Drop()(w, r)
	}
	Text(hello)(w, r)
}

// Redirect answers with a redirect to location, a path or a URL.
func Redirect(status int, location string) Reply {
	return JSON(status, "", "Location", location)
}

// redirect redirects requests to a path below movedPath. Requests to that path get a good answer. If host is set, the
// target has that host name and the same port.
func redirect(status int, host string) Reply {
	return func(w http.ResponseWriter, r *Request) {
		if path, ok := strings.CutPrefix(r.Path, movedPath+"/"); ok {
			moved := *r
			moved.Path = "/" + path
			Text(hello)(w, &moved)
			return
		}
		location := movedPath + r.Path
		if host != "" {
			to := host
			if _, port, err := net.SplitHostPort(r.Host); err == nil {
				to = net.JoinHostPort(host, port)
			}
			location = "//" + to + location // keeps the scheme
		}
		Redirect(status, location)(w, r)
	}
}

func withHugeHeaders(good *answer) Reply {
	return func(w http.ResponseWriter, r *Request) {
		value := strings.Repeat("x", 1_000_000)
		for range hugeHeaders {
			w.Header().Add("X-Huge", value)
		}
		good.json(good.whole(good))
	}
}

func withManyHeaders(good *answer) Reply {
	return func(w http.ResponseWriter, r *Request) {
		body := encode(good.whole(good))
		if r.Proto == "HTTP/2.0" {
			// After the first one, each header takes a single byte.
			w.Header()["X"] = make([]string, manyHeadersH2)
			JSON(http.StatusOK, body)(w, r)
			return
		}
		// The response is written raw, because a map with so many names would cost the server as much as the client.
		nc, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic("aiguardtest: " + err.Error())
		}
		defer nc.Close()
		if r.ex != nil {
			// A failed write counts as a disconnect, because the connection is hijacked.
			defer func() { r.ex.failed.Store(err != nil) }()
		}
		buf := bufio.NewWriterSize(nc, blockSize)
		_, _ = io.WriteString(buf, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: application/json\r\n"+
			"Content-Length: "+strconv.Itoa(len(body))+"\r\n")
		var line []byte
		for i := range manyHeaders {
			line = append(strconv.AppendInt(append(line[:0], 'x'), int64(i), 10), ":\r\n"...)
			if _, err = buf.Write(line); err != nil {
				return
			}
		}
		_, _ = io.WriteString(buf, "\r\n"+body)
		err = buf.Flush()
	}
}

func endlessEarlyHints(w http.ResponseWriter, r *Request) {
	w.Header().Set("Link", "</style.css>; rel=preload")
	for wait(r.Context(), hintPause) == nil {
		w.WriteHeader(http.StatusEarlyHints)
	}
}
