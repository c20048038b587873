package riverguard

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
)

func FuzzParseIDAcceptsOnlyWhatItMakes(f *testing.F) {
	for _, id := range []string{"", "-", "SECRET-1", "SECRET-01", "SECRET-+1", "SECRET--1", "a-b-1", "\x00-1", "é-1", "-9223372036854775809"} {
		f.Add(id, int64(1))
	}
	f.Fuzz(func(t *testing.T, id string, number int64) {
		if job, secret, ok := parseID(id); ok && operationID(job, secret) != id {
			t.Errorf("%q is read as the job %d with the secret %q", id, job, secret)
		}
		const secret = "SECRET"
		if job, got, ok := parseID(operationID(number, secret)); !ok || job != number || got != secret {
			t.Errorf("the ID of %d is read as %d, %q, %v", number, job, got, ok)
		}
	})
}

// The limits are added to ask for that many rows.
func TestLargestMaxPendingIsNoLimit(t *testing.T) {
	g, err := aiguard.New(aiguard.Config{})
	require.NoError(t, err)
	defer g.Close()
	cfg := Config{MaxPending: math.MaxInt}
	_, err = cfg.complete(g)
	require.NoError(t, err)
	require.Positive(t, cfg.MaxRunning+cfg.MaxPending)
}
