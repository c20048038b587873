package panics_test

import (
	"io"
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard/internal/panics"
)

// recovered returns what WithStack makes of the panic of f.
func recovered(f func()) (value any) {
	defer func() { value = panics.WithStack(recover()) }()
	f()
	return nil
}

func explode() { panic(io.ErrClosedPipe) }

func TestPanicKeepsItsValueAndItsStack(t *testing.T) {
	err, ok := recovered(explode).(error)
	require.True(t, ok)
	require.ErrorIs(t, err, io.ErrClosedPipe)
	require.ErrorContains(t, err, "panics_test.explode(", "the stack of the panic, not of the goroutine that repeats it")
	err, ok = recovered(func() { panic("boom") }).(error)
	require.True(t, ok)
	require.ErrorContains(t, err, "boom")
}

func TestAbortedHandlerAndNoPanicStayAsTheyAre(t *testing.T) {
	require.Nil(t, recovered(func() {}))
	require.Equal(t, http.ErrAbortHandler, recovered(func() { panic(http.ErrAbortHandler) }))
}
