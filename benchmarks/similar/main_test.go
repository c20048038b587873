package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestReportAndPictureAreUpToDate(t *testing.T) {
	written, err := os.ReadFile("SIMILAR.md")
	require.NoError(t, err)
	require.Equal(t, string(report()), string(written), "run `go run ./similar` in the folder benchmarks")

	path := filepath.Join(t.TempDir(), "similar.svg")
	require.NoError(t, drawPicture(path))
	drawn, err := os.ReadFile(path)
	require.NoError(t, err)
	committed, err := os.ReadFile("../../docs/similar.svg")
	require.NoError(t, err)
	require.Equal(t, string(drawn), string(committed), "run `go run ./similar` in the folder benchmarks")
}
