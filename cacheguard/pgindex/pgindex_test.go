package pgindex

import (
	"context"
	"database/sql"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard/cacheguard"
)

// The folder integration/pgvector tests the index with a database.

func TestSettingsAreChecked(t *testing.T) {
	db := new(sql.DB) // not used
	for want, c := range map[string]struct {
		db  *sql.DB
		cfg Config
	}{
		"pgindex: New: db is nil; want a database": {nil, Config{}},
		`pgindex: Config.Table is "a; DROP TABLE b"; want up to 40 characters of a to z, 0 to 9 and _, and no digit at the start`: {db, Config{Table: "a; DROP TABLE b"}},
		`pgindex: Config.Table is "1a"; want up to 40 characters of a to z, 0 to 9 and _, and no digit at the start`:              {db, Config{Table: "1a"}},
		"pgindex: Config.Dimensions is -1; want 0 (the default, 256) to 16000":                                                    {db, Config{Dimensions: -1}},
		"pgindex: Config.Dimensions is 16001; want 0 (the default, 256) to 16000":                                                 {db, Config{Dimensions: 16001}},
	} {
		_, err := New(t.Context(), c.db, c.cfg)
		assert.EqualError(t, err, want)
	}
}

func TestVectorsOfAnotherDimensionAreRejected(t *testing.T) {
	x := &Index{dimensions: 2}
	const want = "pgindex: a vector has 1 dimensions; want 2 (Config.Dimensions)"
	_, err := x.Nearest(context.Background(), "", []float32{1}, 0.5)
	require.EqualError(t, err, want)
	require.EqualError(t, x.Update(context.Background(), []cacheguard.Item{{Vector: []float32{1}}}, nil), want)
	require.NoError(t, x.Update(context.Background(), nil, nil), "nothing to do")
}

func TestLiteralKeepsTheVector(t *testing.T) {
	assert.Equal(t, "[]", literal(nil))
	assert.Equal(t, "[0.1,-1,1e-10]", literal([]float32{0.1, -1, 1e-10}))
}
