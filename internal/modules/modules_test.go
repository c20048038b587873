package modules_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard/internal/modules"
)

func TestPublishedModulesAreThoseThatExportNames(t *testing.T) {
	root := t.TempDir()
	for name, text := range map[string]string{
		"go.mod":                    "module example.org/m",
		"m.go":                      "package m\n\nfunc F() {}",
		"lib/go.mod":                "module example.org/m/lib",
		"lib/doc.go":                "package lib",
		"lib/lib.go":                "package lib\n\ntype T struct{}",
		"suite/go.mod":              "module example.org/m/suite",
		"suite/doc.go":              "// Package suite has tests only.\npackage suite",
		"suite/suite_test.go":       "package suite\n\nfunc TestX() {}",
		"example/go.mod":            "module example.org/m/example",
		"example/main.go":           "package main\n\nfunc Exported() {}",
		"lib/testdata/x/go.mod":     "module x",
		"node_modules/thing/go.mod": "module thing",
		".hidden/go.mod":            "module hidden",
	} {
		path := filepath.Join(root, filepath.FromSlash(name))
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
	}
	found, err := modules.Find(root)
	require.NoError(t, err)
	assert.Equal(t, []modules.Module{
		{Dir: ".", Published: true}, {Dir: "example"}, {Dir: "lib", Published: true}, {Dir: "suite"},
	}, found)
	assert.Equal(t, "v1.2.3", found[0].Tag("v1.2.3"))
	assert.Equal(t, "lib/v1.2.3", found[2].Tag("v1.2.3"))
}

func TestRepositoryPublishesItsLibraries(t *testing.T) {
	found, err := modules.Find("../..")
	require.NoError(t, err)
	published := map[string]bool{}
	for _, m := range found {
		published[m.Dir] = m.Published
	}
	for dir, want := range map[string]bool{
		".": true, "cacheguard": true, "redisguard": true, "riverguard": true, "sqlstore": true, "tokenguard": true,
		"benchmarks": false, "browser": false, "examples/fallback": false, "examples/questions/river": false, "integration": false, "sdktest": false,
	} {
		got, ok := published[dir]
		assert.True(t, ok, dir)
		assert.Equal(t, want, got, dir)
	}
}

func TestFolderWithoutModulesIsAnError(t *testing.T) {
	_, err := modules.Find(t.TempDir())
	require.ErrorContains(t, err, "no go.mod")
}
