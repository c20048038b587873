package cost

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"path"
	"slices"

	"golang.org/x/perf/benchfmt"
	"golang.org/x/perf/benchmath"

	"github.com/aiguard-go/aiguard/benchmarks/internal/contender"
)

// Results holds all measured values.
type Results map[measured][]float64

// measured identifies a series of values: a contender in a benchmark, in a unit.
type measured struct{ bench, contender, unit string }

// Add adds one value.
func (r Results) Add(bench, name, unit string, v float64) {
	key := measured{bench, name, unit}
	r[key] = append(r[key], v)
}

// Values returns all values in the order in which they were added.
func (r Results) Values(bench, name, unit string) []float64 { return r[measured{bench, name, unit}] }

// Read adds the values that a run printed in the format of Go benchmarks.
func (r Results) Read(out []byte) error {
	reader := benchfmt.NewReader(bytes.NewReader(out), "benchmarks")
	for reader.Scan() {
		switch record := reader.Result().(type) {
		case *benchfmt.SyntaxError:
			return record
		case *benchfmt.Result:
			bench, name := path.Split(withoutProcs(record.Name))
			for _, v := range record.Values {
				r.Add(path.Clean(bench), name, v.Unit, v.Value)
			}
		}
	}
	if err := reader.Err(); err != nil && err != io.EOF {
		return err
	}
	return nil
}

// withoutProcs returns a benchmark's name without the "-8" for GOMAXPROCS.
func withoutProcs(name benchfmt.Name) string {
	_, parts := name.Parts()
	full := name.Full()
	if n := len(parts); n > 0 && parts[n-1][0] == '-' {
		full = full[:len(full)-len(parts[n-1])]
	}
	return string(full)
}

// Median returns the median and its 95% confidence interval, in percent.
func (r Results) Median(bench, name, unit string) (v float64, spread string, ok bool) {
	return median(r.Values(bench, name, unit))
}

func median(values []float64) (v float64, spread string, ok bool) {
	if len(values) == 0 {
		return math.NaN(), "", false
	}
	s := benchmath.AssumeNothing.Summary(benchmath.NewSample(slices.Clone(values), &benchmath.DefaultThresholds), 0.95)
	return s.Center, s.PctRangeString(), true
}

// Verdict is the outcome of a target.
type Verdict struct {
	Row     Row
	Target  Target
	Ours    float64
	Peer    float64 // NaN: no peer
	Figure  float64
	Reached bool
}

// Judge compares the measured values with the targets of the row. A target with a peer is judged by the median of the
// figures of all rounds, because a machine that is slow for a while is slow for both.
func (r Results) Judge(row Row) (verdicts []Verdict, err error) {
	for _, t := range row.Targets {
		v := Verdict{Row: row, Target: t, Peer: math.NaN()}
		figures := slices.Clone(r.Values(row.Bench, contender.Aiguard, t.Unit))
		var ok bool
		if v.Ours, _, ok = median(figures); !ok {
			return nil, fmt.Errorf("%s: no %s of aiguard", row.Work, t.Unit)
		}
		if t.Peer != "" {
			peers := r.Values(row.Bench, t.Peer, t.Unit)
			if len(peers) != len(figures) {
				return nil, fmt.Errorf("%s: %s of %s from %d rounds; want %d", row.Work, t.Unit, t.Peer, len(peers), len(figures))
			}
			v.Peer, _, _ = median(peers)
			for round, peer := range peers {
				figures[round] = t.measure(figures[round], peer)
			}
		}
		v.Figure, _, _ = median(figures)
		v.Reached = t.reached(v.Figure)
		verdicts = append(verdicts, v)
	}
	return verdicts, nil
}

// String returns the figure that was judged.
func (v Verdict) String() string { return v.Target.write(v.Figure) }
