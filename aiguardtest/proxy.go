package aiguardtest

import (
	"io"
	"net"
	"net/url"
	"sync"
)

// ProxyFault names the point at which a proxy falls silent. The proxy then keeps its connections open, reads
// everything, and sends nothing.
type ProxyFault string

// The faults of proxies. Clients send CONNECT to an HTTP proxy only for https URLs.
const (
	ProxyNoConnect    ProxyFault = "proxy/no-connect"    // an HTTP proxy never answers CONNECT
	ProxyHalfConnect  ProxyFault = "proxy/half-connect"  // an HTTP proxy begins to answer CONNECT
	ProxySilentTunnel ProxyFault = "proxy/silent-tunnel" // an HTTP proxy answers CONNECT and lets nothing through
	ProxyNoGreeting   ProxyFault = "proxy/no-greeting"   // a SOCKS5 proxy never answers a greeting
	ProxyHalfGreeting ProxyFault = "proxy/half-greeting" // a SOCKS5 proxy begins to answer a greeting
	ProxyNoSOCKS      ProxyFault = "proxy/no-socks"      // a SOCKS5 proxy answers only greetings
	ProxyHalfSOCKS    ProxyFault = "proxy/half-socks"    // a SOCKS5 proxy begins to answer the request to connect
	ProxySilentSOCKS  ProxyFault = "proxy/silent-socks"  // a SOCKS5 proxy connects and lets nothing through
	ProxyUnspokenTLS  ProxyFault = "proxy/unspoken-tls"  // a proxy with an https URL never speaks TLS
	proxyConnected               = "HTTP/1.1 200 OK\r\n\r\n"
	socksGreeting                = "\x05\x00"
	socksConnected               = "\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00"
)

// proxyTable defines each fault by the scheme of the proxy's URL and by the answers of the proxy to the first reads.
var proxyTable = []struct {
	fault   ProxyFault
	scheme  string
	answers []string
}{
	{ProxyNoConnect, "http", nil},
	{ProxyHalfConnect, "http", []string{proxyConnected[:12]}},
	{ProxySilentTunnel, "http", []string{proxyConnected}},
	{ProxyNoGreeting, "socks5", nil},
	{ProxyHalfGreeting, "socks5", []string{socksGreeting[:1]}},
	{ProxyNoSOCKS, "socks5", []string{socksGreeting}},
	{ProxyHalfSOCKS, "socks5", []string{socksGreeting, socksConnected[:5]}},
	{ProxySilentSOCKS, "socks5", []string{socksGreeting, socksConnected}},
	{ProxyUnspokenTLS, "https", nil},
}

// ProxyFaults returns all faults of proxies.
func ProxyFaults() []ProxyFault {
	all := make([]ProxyFault, len(proxyTable))
	for i, row := range proxyTable {
		all[i] = row.fault
	}
	return all
}

// Proxy is a proxy that falls silent. It listens on a free port of 127.0.0.1.
type Proxy struct {
	// URL is the proxy's address, for http.Transport.Proxy: &http.Transport{Proxy: http.ProxyURL(p.URL)}.
	URL *url.URL

	listener net.Listener
	answers  []string
	serving  sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]struct{}
	total int
	shut  bool
}

// NewProxy starts a proxy for a test and closes it at the end of the test. It panics if the fault does not exist or the
// proxy cannot listen on 127.0.0.1.
func NewProxy(tb TB, fault ProxyFault) *Proxy {
	tb.Helper()
	for _, row := range proxyTable {
		if row.fault != fault {
			continue
		}
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			panic("aiguardtest: cannot listen on 127.0.0.1: " + err.Error())
		}
		p := &Proxy{
			URL:      &url.URL{Scheme: row.scheme, Host: ln.Addr().String()},
			listener: ln, answers: row.answers, conns: make(map[net.Conn]struct{}),
		}
		p.serving.Go(p.serve)
		tb.Cleanup(p.close)
		return p
	}
	panic("aiguardtest: unknown proxy fault " + string(fault))
}

// Conns returns the number of open connections and the number of connections made.
func (p *Proxy) Conns() (open, total int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.conns), p.total
}

func (p *Proxy) serve() {
	for {
		conn, err := p.listener.Accept()
		if err != nil {
			return // closed
		}
		if !p.enter(conn) {
			conn.Close()
			return
		}
		p.serving.Go(func() {
			defer p.leave(conn)
			buf := make([]byte, 4<<10)
			for _, answer := range p.answers {
				if _, err := conn.Read(buf); err != nil {
					return
				}
				if _, err := io.WriteString(conn, answer); err != nil {
					return
				}
			}
			_, _ = io.Copy(io.Discard, conn) // until the client leaves
		})
	}
}

func (p *Proxy) enter(conn net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.shut {
		p.conns[conn] = struct{}{}
		p.total++
	}
	return !p.shut
}

func (p *Proxy) leave(conn net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	conn.Close()
	delete(p.conns, conn)
}

func (p *Proxy) close() {
	p.listener.Close()
	p.mu.Lock()
	p.shut = true
	for conn := range p.conns {
		conn.Close()
	}
	p.mu.Unlock()
	p.serving.Wait()
}
