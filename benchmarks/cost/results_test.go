package cost

import (
	"maps"
	"os"
	"os/exec"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard/benchmarks/internal/contender"
)

func TestFiguresAreReadFromWhatBenchmarksPrint(t *testing.T) {
	r := Results{}
	require.NoError(t, r.Read([]byte(`goos: linux
BenchmarkDo/failsafe-go+breaker-2   	   56203	      4151 ns/op	    1344 B/op	      31 allocs/op
BenchmarkDoCrowd/1000/hand-16       	   63316	      4243 ns/op	     565 B/op	       8 allocs/op
BenchmarkPrompt/ascii/hand          	   10000	     20699 ns/op
BenchmarkStream/bare-2              	      22	  10031365 ns/op	        19.01 allocs/event	     10031 ns/event
PASS
`)))
	require.NoError(t, r.Read([]byte("BenchmarkDo/failsafe-go+breaker-2 1 6151 ns/op\n")))
	for key, want := range map[measured][]float64{
		{"Do", "failsafe-go+breaker", SecPerOp}:    {4.151e-6, 6.151e-6},
		{"Do", "failsafe-go+breaker", AllocsPerOp}: {31},
		{"DoCrowd/1000", "hand", BytesPerOp}:       {565},
		{"Prompt/ascii", "hand", SecPerOp}:         {20.699e-6},
		{"Stream", "bare", SecPerEvent}:            {10.031e-6},
		{"Stream", "bare", allocsPerEvent}:         {19.01},
	} {
		assert.InDeltaSlice(t, want, r[key], 1e-12, "%v", key)
	}
}

func TestMalformedLineIsAnError(t *testing.T) {
	require.Error(t, Results{}.Read([]byte("BenchmarkDo/hand-2 many 4151 ns/op\n")))
}

func TestMedianIsNotTheMeanAndKeepsTheOrder(t *testing.T) {
	values := []float64{9, 1, 2}
	r := Results{{"Do", "hand", SecPerOp}: values}
	median, _, ok := r.Median("Do", "hand", SecPerOp)
	require.True(t, ok)
	require.Equal(t, 2.0, median)
	require.Equal(t, []float64{9, 1, 2}, values)
}

func TestTargetIsReachedUpToItsBound(t *testing.T) {
	for _, c := range []struct {
		target        Target
		ours, peer    float64
		reached       bool
		text, written string
	}{
		{ratio(SecPerOp, 0.5, "hand"), 5e-7, 1e-6, true, "≤ 0.5 × hand", "0.5 ×"},
		{ratio(SecPerOp, 0.5, "hand"), 5.1e-7, 1e-6, false, "≤ 0.5 × hand", "0.51 ×"},
		{more(AllocsPerOp, 20, "bare"), 80, 60, true, "≤ bare + 20 allocs/op", "+20"},
		{more(AllocsPerOp, 20, "bare"), 81, 60, false, "≤ bare + 20 allocs/op", "+21"},
		{more(AllocsPerOp, 20, "bare"), 60, 60, true, "≤ bare + 20 allocs/op", "+0"},
		{atMost(SecPerOp, 10e-6), 10e-6, 0, true, "≤ 10 µs", "10 µs"},
		{atMost(AllocsPerOp, 0), 1, 0, false, "≤ 0 allocs/op", "1 allocs/op"},
		{atLeast(Reused, 95), 94.5, 0, false, "≥ 95 % reused", "94.5 % reused"},
		{atMost(PeakBytes, 100e6), 91.9e6, 0, true, "≤ 100 MB", "91.9 MB"},
	} {
		r := Row{Work: "work", Bench: "Do", Targets: []Target{c.target}}
		all := Results{{"Do", contender.Aiguard, c.target.Unit}: {c.ours}}
		if c.target.Peer != "" {
			_, err := all.Judge(r)
			require.Error(t, err, "nothing to compare with")
			all[measured{"Do", c.target.Peer, c.target.Unit}] = []float64{c.peer}
		}
		verdicts, err := all.Judge(r)
		require.NoError(t, err)
		assert.Equal(t, c.reached, verdicts[0].Reached, "%s: %v and %v", c.target.Text, c.ours, c.peer)
		assert.Equal(t, c.text, c.target.Text)
		assert.Equal(t, c.written, verdicts[0].String())
	}
}

func TestRatioIsThatOfTheMedianRound(t *testing.T) {
	row := Row{Work: "work", Bench: "Do", Targets: []Target{ratio(SecPerOp, 0.5, "hand")}}
	r := Results{{"Do", contender.Aiguard, SecPerOp}: {4, 9, 2}, {"Do", "hand", SecPerOp}: {10, 18, 2}} // the machine was slow in the second round
	verdicts, err := r.Judge(row)
	require.NoError(t, err)
	require.Equal(t, 0.5, verdicts[0].Figure)
	require.Equal(t, 4.0, verdicts[0].Ours)
	require.Equal(t, 10.0, verdicts[0].Peer)

	r.Add("Do", "hand", SecPerOp, 1)
	_, err = r.Judge(row)
	require.EqualError(t, err, "work: sec/op of hand from 4 rounds; want 3")
}

// TestEveryBenchmarkMeasuresItsRow runs each benchmark once, with small crowds. It checks that all contenders do the
// work and that each benchmark reports the units of its targets.
func TestEveryBenchmarkMeasuresItsRow(t *testing.T) {
	self, err := os.Executable()
	require.NoError(t, err)
	out, err := exec.CommandContext(t.Context(), self, "-test.run", "^TestOutage$/^aiguard$", "-test.bench", ".", "-test.benchtime", "1x", "-small").
		CombinedOutput()
	require.NoError(t, err, "%s", out)
	r := Results{}
	require.NoError(t, r.Read(out))
	for _, row := range Rows {
		names := row.Contenders
		switch row.How {
		case MemoryRows:
			continue
		case Virtual:
			names = []string{contender.Aiguard} // TestOutage runs the other contenders
		}
		for _, name := range names {
			assert.Len(t, r[measured{row.Bench, name, row.Unit}], 1, "%s of %s in %s", row.Bench, name, row.Unit)
		}
		_, err := r.Judge(row)
		assert.NoError(t, err)
	}
	var known []string
	for _, row := range Rows {
		known = append(known, row.Bench)
	}
	for key := range maps.Keys(r) {
		assert.True(t, slices.Contains(known, key.bench), "%s belongs to no row", key.bench)
	}
}

func TestReasonsAreThoseOfRows(t *testing.T) {
	for work := range Reasons {
		assert.True(t, slices.ContainsFunc(Rows, func(row Row) bool { return row.Work == work }), work)
	}
}
