// Package syncbuf keeps what one goroutine or process writes for others to read.
package syncbuf

import (
	"bytes"
	"sync"
)

// Buffer is an io.Writer that is safe for concurrent use. The zero Buffer is empty.
type Buffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

// String returns all that was written.
func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
