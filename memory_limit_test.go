package aiguard_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
	"github.com/aiguard-go/aiguard/internal/procmem"
)

const (
	hugeCalls  = 200
	hugeAnswer = 5_000_000
	softLimit  = "96MiB" // GOMEMLIMIT of the child
	container  = 160_000 // kB of VmRSS at which it is killed
)

// A service with a soft memory limit in a container with a hard one, and 200 callers whose answers are 5 MB each: without
// the guard it is killed; with it, it lives, answers what it can and refuses the rest. It even lives with so many slots that
// all 200 answers come at the same moment: then only the bound of what is held of them stands between it and its end.
func TestTwoHundredHugeAnswersUnderALowMemoryLimit(t *testing.T) {
	lab := newMemoryLab(t)
	for _, row := range []struct {
		name  string
		order memoryOrder
		lives bool
	}{
		{"without the guard", memoryOrder{Raw: true}, false},
		{"guarded, a queue of 25", memoryOrder{Config: &memoryConfig{MaxQueue: 25}}, true}, // the default 100 takes longer
		{"guarded, all at once", memoryOrder{Config: &memoryConfig{MaxConcurrent: hugeCalls, MaxQueue: aiguard.Off}}, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			row.order.Calls = hugeCalls
			got := lab.inContainer(t, row.name, row.order)
			require.Equal(t, !row.lives, got.killed)
			if !row.lives {
				return
			}
			answered, refused := 0, 0
			for end, n := range got.Ends {
				switch {
				case strings.HasPrefix(end, strconv.Itoa(hugeAnswer)+" bytes"):
					answered += n
				case end == string(aiguard.ErrOverloaded):
					refused += n
				}
			}
			require.Positive(t, answered)
			require.Positive(t, refused)
			require.Equal(t, hugeCalls, answered+refused, "%v", got.Ends)
		})
	}
}

type containerReport struct {
	memoryReport
	killed bool
}

// inContainer runs a child in as much memory as a container has: what is more is killed from outside, as the kernel does.
func (lab *memoryLab) inContainer(t *testing.T, name string, order memoryOrder) (r containerReport) {
	t.Helper()
	srv := lab.http1
	srv.Reset()
	srv.SetDefault(aiguardtest.JSON(200, honest(strings.Repeat("x", hugeAnswer))))
	defer srv.SetDefault(nil)
	order.URL = srv.URL
	text, err := json.Marshal(order)
	require.NoError(t, err)

	cmd := exec.CommandContext(t.Context(), lab.binary, "-test.run", "^TestMemoryChild$", "-test.v")
	cmd.Env = append(os.Environ(), memoryChildEnv+"="+string(text), "GOGC=100", "GOMEMLIMIT="+softLimit, "GODEBUG=")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	start := time.Now()
	require.NoError(t, cmd.Start())
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	peak := 0
	for tick := time.NewTicker(2 * time.Millisecond); ; {
		select {
		case <-tick.C:
			rss, hwm, _ := procmem.Of(strconv.Itoa(cmd.Process.Pid)) // it may have gone
			peak = max(peak, hwm)
			if rss > container && !r.killed {
				r.killed = true
				_ = cmd.Process.Kill()
			}
			continue
		case err = <-done:
			tick.Stop()
		}
		break
	}
	ends := "killed"
	if !r.killed {
		require.NoError(t, err, "%s", &out)
		found := false
		r.memoryReport, found = findReport(out.Bytes())
		require.True(t, found, "%s", &out)
		ends = fmt.Sprint(r.Ends)
	}
	r.Peak = max(r.Peak, peak)
	fmt.Fprintf(&lab.table, "%-32s %-9s %5d %9.1f  %s in %v\n", name, "HTTP/1.1", order.Calls, float64(r.Peak)/1000,
		strings.TrimPrefix(ends, "map"), time.Since(start).Round(100*time.Millisecond))
	return r
}
