//go:build unix

// Package redistest starts Redis and Valkey servers for tests.
package redistest

import (
	"bufio"
	"net"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

// Server is a server on 127.0.0.1 that stores nothing on disk.
type Server struct {
	Addr string

	path    string
	options []string
	cmd     *exec.Cmd
	exited  chan struct{} // closed when cmd has exited
}

// attempts is how often a server is started, because a connection of another process may have its port.
const attempts = 5

// Start starts the program name, which is also the name of its Debian package, until the end of the test. It skips the
// test if the program is not installed.
func Start(t testing.TB, name string, options ...string) *Server {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("needs %s (Debian package %s)", name, name)
	}
	for range attempts {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s := &Server{Addr: ln.Addr().String(), path: path, options: options}
		if err := ln.Close(); err != nil {
			t.Fatal(err)
		}
		if s.start(t) {
			t.Cleanup(s.Kill)
			return s
		}
	}
	t.Fatalf("%s does not start", name)
	return nil
}

// start reports false if the server exits instead of responding.
func (s *Server) start(t testing.TB) bool {
	t.Helper()
	_, port, err := net.SplitHostPort(s.Addr)
	if err != nil {
		t.Fatal(err)
	}
	args := append([]string{"--bind", "127.0.0.1", "--port", port, "--dir", t.TempDir(), "--save", "", "--appendonly", "no",
		"--daemonize", "no"}, s.options...)
	cmd, exited := exec.Command(s.path, args...), make(chan struct{})
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s.cmd, s.exited = cmd, exited
	go func() {
		defer close(exited)
		_ = cmd.Wait()
	}()
	for start := time.Now(); time.Since(start) < 30*time.Second; {
		if s.responds() {
			return true
		}
		select {
		case <-exited:
			return false
		case <-time.After(10 * time.Millisecond):
		}
	}
	s.Kill()
	return false
}

// responds reports whether the server answers a PING.
func (s *Server) responds() bool {
	conn, err := net.DialTimeout("tcp", s.Addr, time.Second)
	if err != nil {
		return false
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Second))
	if _, err := conn.Write([]byte("PING\r\n")); err != nil {
		return false
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	return err == nil && line == "+PONG\r\n"
}

// Kill ends the server at once.
func (s *Server) Kill() {
	_ = s.cmd.Process.Kill()
	<-s.exited
}

// Restart starts the server again, without its data.
func (s *Server) Restart(t testing.TB) {
	t.Helper()
	s.Kill()
	for range attempts {
		if s.start(t) {
			return
		}
	}
	t.Fatalf("%s does not start again", s.path)
}

// Freeze stops the server without closing its connections.
func (s *Server) Freeze(t testing.TB) { s.signal(t, syscall.SIGSTOP) }

// Thaw ends a Freeze.
func (s *Server) Thaw(t testing.TB) { s.signal(t, syscall.SIGCONT) }

func (s *Server) signal(t testing.TB, sig syscall.Signal) {
	t.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}
