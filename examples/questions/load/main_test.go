package main

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func TestServiceBearsTwentyTimesItsCapacity(t *testing.T) {
	var table strings.Builder
	err := run(t.Context(), options{length: 3 * time.Second, times: 20}, &table)
	t.Log("\n" + table.String())
	require.NoError(t, err)
}
