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
	// Just below the 10 MB that net/http and its HTTP/2 accept by default.
	hugeHeaders   = 9       // of 1 MB each
	manyHeaders   = 900_000 // of 10 bytes each
	manyHeadersH2 = 290_000 // HTTP/2 counts 32 bytes more for each

	hintPause = 10 * time.Millisecond // for ever need not mean at full speed
	movedPath = "/moved"              // where redirects lead, before the old path
)

func connectionFaults() []faultRow {
	return []faultRow{
		{FaultRefused, nil, "the port is closed: connection refused"},
		{FaultTLSStall, nil, "the connection is accepted, but TLS (or HTTP) is never spoken"},
		{FaultNeverRead, nil, "the request's body is not read: a large prompt blocks in sending"},
		{FaultEOF, always(Drop()), "the request is read and the connection closed"},
		{FaultReset, always(ResetConn()), "the request is read and the connection reset"},
		{FaultStaleKeepAlive, always(staleKeepAlive), "a connection's first request is answered, its second closes it"},
		{FaultGoesDark, nil, "connections that exist fall silent but stay open, new ones work"},
		{FaultRedirect301, always(redirect(http.StatusMovedPermanently, "")), "301 to another path, which answers"},
		{FaultRedirect302, always(redirect(http.StatusFound, "")), "302 to another path, which answers"},
		{FaultRedirect307, always(redirect(http.StatusTemporaryRedirect, "")), "307 to another path, which answers"},
		{FaultRedirect308, always(redirect(http.StatusPermanentRedirect, "")), "308 to another path, which answers"},
		{FaultRedirectHost, always(redirect(http.StatusTemporaryRedirect, "localhost")),
			"307 to the same server under another host name, localhost"},
		{FaultHugeHeaders, withHugeHeaders, "9 MB of headers, then a good answer"},
		{FaultManyHeaders, withManyHeaders, "900,000 tiny headers (HTTP/2: 290,000), then a good answer"},
		{FaultEndlessEarlyHints, always(endlessEarlyHints), "103 Early Hints again and again, for ever"},
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

// redirect leads to where it does not lead on but gives an answer, so that who
// follows it succeeds. With a host, that is the same port under another name.
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
			location = "//" + to + location // the scheme stays
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
	return func(w http.ResponseWriter, r *Request) { good.manyHeaders(w, r) }
}

func (a *answer) manyHeaders(w http.ResponseWriter, r *Request) {
	body := encode(a.whole(a))
	if r.Proto == "HTTP/2.0" {
		// After the first, each of them is a single byte to send.
		w.Header()["X"] = make([]string, manyHeadersH2)
		JSON(http.StatusOK, body)(w, r)
		return
	}
	// Raw: a map of so many names would cost the server what it is to cost
	// the client.
	nc, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic("aiguardtest: " + err.Error())
	}
	defer nc.Close()
	if r.ex != nil {
		// A client that has seen enough leaves; the rest of the connection is ours.
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

func endlessEarlyHints(w http.ResponseWriter, r *Request) {
	w.Header().Set("Link", "</style.css>; rel=preload")
	for wait(r.Context(), hintPause) == nil {
		w.WriteHeader(http.StatusEarlyHints)
	}
}
