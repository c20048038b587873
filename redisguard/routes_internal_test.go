package redisguard

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Messages come from other processes, or from whoever else may publish.
func FuzzParseRoutes(f *testing.F) {
	f.Add(`[["[\"h\",\"\",\"m\"]",1500,false,0,true,9.5]]`)
	f.Add(`[["[]",-1e308,true,1e308,false,-3]]`)
	f.Add(`{}`)
	f.Add(`[[]]`)
	f.Fuzz(func(t *testing.T, text string) {
		states, err := parseRoutes(text)
		for _, s := range states {
			require.NoError(t, err)
			require.GreaterOrEqual(t, s.Pause, time.Duration(0))
			require.GreaterOrEqual(t, s.RetryTokens, 0.0)
		}
	})
}

func TestRouteMessagesAreRead(t *testing.T) {
	states, err := parseRoutes(`[["[\"h\",\"\",\"m\"]",1500,false,0,true,9.5]]`)
	require.NoError(t, err)
	require.Len(t, states, 1)
	require.Equal(t, "h", states[0].Host)
	require.Equal(t, "m", states[0].Model)
	require.EqualValues(t, 1_500_000_000, states[0].Pause)
	require.True(t, states[0].Reopened)
	require.InDelta(t, 9.5, states[0].RetryTokens, 0)
	for _, text := range []string{``, `[["x",0,false,0,true,1]]`, `[[1,0,false,0,true,1]]`, `[["[]"]]`} {
		_, err := parseRoutes(text)
		require.Error(t, err, text)
	}
}
