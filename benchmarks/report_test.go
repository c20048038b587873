package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard/benchmarks/cost"
	"github.com/aiguard-go/aiguard/benchmarks/internal/contender"
)

func TestUnmeasuredRowIsAnError(t *testing.T) {
	require.Error(t, report(io.Discard, cost.Results{}, cost.Rows, enoughRounds, time.Now()))
}

// invented returns results with the value ours for aiguard and others for all other contenders.
func invented(ours, others float64) cost.Results {
	r := cost.Results{}
	for _, row := range cost.Rows {
		units := []string{row.Unit, cost.AllocsPerOp, cost.BytesPerOp}
		for _, target := range row.Targets {
			units = append(units, target.Unit)
		}
		for _, unit := range units {
			for _, name := range row.Contenders {
				v := others
				if name == contender.Aiguard {
					v = ours
				}
				r.Add(row.Bench, name, unit, v)
			}
		}
	}
	return r
}

func TestReportListsEveryTargetAndTheMissedOnes(t *testing.T) {
	var b bytes.Buffer
	require.NoError(t, report(&b, invented(1e9, 1), cost.Rows, 2, time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)))
	text := b.String()
	require.Contains(t, text, "on 2026-01-02")
	require.Contains(t, text, "quick run")
	for _, why := range cost.Reasons {
		require.Contains(t, text, why)
	}
	require.Contains(t, text, "**3 of ", "1e9 percent are reused, in two rows, and 1e9 bytes are read in a second")
	for _, row := range cost.Rows {
		for _, target := range row.Targets {
			if target.Unit != cost.Reused && target.Unit != cost.BytesPerSec {
				require.Contains(t, text, "- "+row.Work+": "+target.Text+", is ")
			}
		}
	}

	b.Reset()
	good := invented(0, 1)
	for _, row := range cost.Rows {
		for range 2 { // to set the median
			good.Add(row.Bench, contender.Aiguard, cost.Reused, 99)
			good.Add(row.Bench, contender.Aiguard, cost.BytesPerSec, 1e9)
		}
	}
	require.NoError(t, report(&b, good, cost.Rows, enoughRounds, time.Now()))
	require.NotContains(t, b.String(), "MISSED")
	require.NotContains(t, b.String(), "quick run")
}

// TestResultsMatchTheRows fails if a row or a target changed after RESULTS.md was written. Run make bench then.
func TestResultsMatchTheRows(t *testing.T) {
	text, err := os.ReadFile(resultsFile)
	require.NoError(t, err)
	for _, row := range cost.Rows {
		for _, target := range row.Targets {
			found := false
			for line := range strings.Lines(string(text)) {
				found = found || strings.Contains(line, "| "+row.Work+" ") && strings.Contains(line, "| "+target.Text+" ")
			}
			assert.True(t, found, "%s has no row %s, %s", resultsFile, row.Work, target.Text)
		}
		for _, name := range row.Contenders {
			assert.Contains(t, string(text), "| "+name+" ")
		}
	}
}

func TestPatternMatchesOneContender(t *testing.T) {
	r := &runner{benchtime: time.Second}
	require.Equal(t, []string{"-test.run", "^$", "-test.bench", `^BenchmarkDo$/^failsafe-go\+breaker$`, "-test.benchtime", "1s"},
		r.args(cost.Row{Bench: "Do"}, contender.FailsafeBreaker))
	require.Equal(t, []string{"-test.run", `^TestOutage$/^bare$`, "-callers", "100"}, r.args(cost.Row{Bench: "Outage", How: cost.Virtual}, contender.Bare))
	require.Equal(t, "1x", r.args(cost.Row{Bench: "Drain", How: cost.OneShot}, contender.Hand)[5])
}

func TestMemoryIsThatOfTheWorstFault(t *testing.T) {
	const printed = `=== RUN   TestX
    memory_rows_test.go:300:
        row                              protocol  calls   peak MB  ends
        answer/huge                      HTTP/1.1      1      17.0  [response_too_large:1]
        answer/huge                      HTTP/1.1     50      76.1  [response_too_large:50]
        answer/huge                      HTTP/2       50      90.5  [response_too_large:50]
        answer/huge, unguarded           HTTP/1.1      1     612.0  stopped by the watchdog
        stream/pings-flood               HTTP/1.1     50      16.0  [timeout:50]
        an honest answer of 1 MiB        HTTP/1.1     50     181.0  [1044450 bytes, 1f:50]
`
	peaks, err := readMemory([]byte(printed))
	require.NoError(t, err)
	require.Equal(t, map[string]float64{contender.Aiguard: 90.5e6, contender.Bare: 612e6}, peaks)
	_, err = readMemory([]byte("--- SKIP\n"))
	require.Error(t, err)
	_, err = readMemory([]byte(strings.Replace(printed, honestRow, "a good answer", 1)))
	require.ErrorContains(t, err, honestRow, "a row with another name counts as a fault")
}

func TestChartNeedsEveryFigure(t *testing.T) {
	err := drawCost(filepath.Join(t.TempDir(), "cost.svg"), cost.Results{})
	require.EqualError(t, err, "ChatLoopback: no sec/op of aiguard")
}

func TestChartShowsTheFiguresOfAtMostFourContendersAPanel(t *testing.T) {
	file := filepath.Join(t.TempDir(), "cost.svg")
	require.NoError(t, drawCost(file, invented(3e-6, 1e-6)))
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	bars := 0
	for _, panel := range drawn {
		require.Contains(t, string(text), panel.title)
		require.LessOrEqual(t, len(panel.contenders), 4)
		bars += len(panel.contenders)
	}
	require.Contains(t, string(text), "aiguard adds 2 µs to a chat call")
	require.Equal(t, len(drawn), strings.Count(string(text), ">3 µs</text>"))
	require.Equal(t, bars-len(drawn), strings.Count(string(text), ">1 µs</text>"))
	for d := xml.NewDecoder(bytes.NewReader(text)); ; {
		_, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
	}
}

func TestChartFromTheReportIsTheSame(t *testing.T) {
	measured, dir := invented(3e-6, 1e-6), t.TempDir()
	var text bytes.Buffer
	require.NoError(t, report(&text, measured, cost.Rows, enoughRounds, time.Now()))
	read := filepath.Join(dir, "RESULTS.md")
	require.NoError(t, os.WriteFile(read, text.Bytes(), 0o644))
	require.NoError(t, drawCost(filepath.Join(dir, "measured.svg"), measured))
	require.NoError(t, redraw(read, filepath.Join(dir, "read.svg")))
	want, err := os.ReadFile(filepath.Join(dir, "measured.svg"))
	require.NoError(t, err)
	got, err := os.ReadFile(filepath.Join(dir, "read.svg"))
	require.NoError(t, err)
	require.Equal(t, string(want), string(got))
}
