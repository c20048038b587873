package main

import (
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func TestServiceHandlesTwentyTimesItsCapacity(t *testing.T) {
	for tries := 5; ; tries-- {
		var table strings.Builder
		err := run(t.Context(), options{length: 3 * time.Second, times: 20}, &table)
		t.Log("\n" + table.String())
		if tries > 1 && errors.As(err, new(slow)) {
			t.Log(err)
			continue
		}
		require.NoError(t, err)
		return
	}
}

func TestServiceThatDoesNotStartIsAnError(t *testing.T) {
	t.Setenv("AIGUARD_NOPE", "1")
	err := run(t.Context(), options{length: time.Second, times: 1}, io.Discard)
	require.ErrorContains(t, err, "the service did not start")
	require.ErrorContains(t, err, "AIGUARD_NOPE is not a variable of aiguard")

	t.Setenv("PATH", "")
	_, err = startService(t.Context())
	require.ErrorContains(t, err, "go build")
}

func TestLoadNeedsPositiveFlags(t *testing.T) {
	for _, o := range []options{{}, {length: time.Second}, {length: -1, times: 1}, {length: time.Second, times: -1}} {
		require.ErrorContains(t, run(t.Context(), o, io.Discard), "want more than 0")
	}
}
