package aiguard_test

import (
	"context"
	"fmt"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
)

// unanswered returns an address whose queue of connections is full: the kernel drops what asks for one more.
func unanswered(t *testing.T) string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	t.Cleanup(func() { _ = syscall.Close(fd) })
	require.NoError(t, syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	require.NoError(t, syscall.Listen(fd, 0))
	name, err := syscall.Getsockname(fd)
	require.NoError(t, err)
	address := fmt.Sprintf("127.0.0.1:%d", name.(*syscall.SockaddrInet4).Port)
	for range 10 {
		conn, err := net.DialTimeout("tcp", address, 200*time.Millisecond)
		if err != nil {
			return address
		}
		t.Cleanup(func() { conn.Close() })
	}
	t.Fatal("the queue is never full")
	return ""
}

func TestCallerThatLeavesEndsTheDial(t *testing.T) {
	address := unanswered(t)
	left := leavesNoGoroutine()
	c := clientOf(t, aiguard.Config{}, "http://"+address+"/v1", nil)
	dialing := make(chan struct{}, 1)
	pool := aiguard.Pool(c.Guard())
	dial := pool.DialContext
	pool.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		dialing <- struct{}{}
		return dial(ctx, network, addr)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() { _, err := chat(ctx, c); ended <- err }()
	<-dialing
	cancel()
	require.Equal(t, context.Canceled, <-ended)
	start := time.Now()
	settles(t, "no goroutine is left", func() bool { return left() == "" })
	require.Less(t, time.Since(start), time.Second)
}
