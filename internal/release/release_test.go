package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var releaseDay = time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)

// repository creates a git repository with a root module, a nested library and a nested example.
func repository(t *testing.T) *release {
	t.Helper()
	r := &release{root: t.TempDir(), version: "v0.3.0", check: []string{"true"}, date: releaseDay, out: &strings.Builder{}}
	for name, text := range map[string]string{
		"go.mod":     "module example.org/m\n\ngo 1.25.0\n",
		"m.go":       "package m\n\nfunc F() {}\n",
		"lib/go.mod": "module example.org/m/lib\n\ngo 1.25.0\n\nrequire example.org/m v0.0.0\n\nreplace example.org/m => ../\n",
		"lib/lib.go": "package lib\n\nimport \"example.org/m\"\n\nfunc F() { m.F() }\n",
		"example/go.mod": "module example.org/m/example\n\ngo 1.25.0\n\nrequire (\n\texample.org/m v0.0.0\n\texample.org/m/lib v0.0.0\n" +
			"\texample.org/more v1.0.0\n)\n",
		"example/main.go": "package main\n\nfunc main() {}\n",
		"CHANGELOG.md":    "# Changelog\n\n## [Unreleased]\n\n### Added\n\n- F.\n\n## [0.2.0] - 2026-01-01\n\n- Old.\n",
	} {
		write(t, r, name, text)
	}
	git(t, r, "init", "--quiet")
	git(t, r, "config", "user.name", "Tester")
	git(t, r, "config", "user.email", "tester@example.org")
	commitAll(t, r)
	return r
}

func write(t *testing.T, r *release, name, text string) {
	t.Helper()
	path := filepath.Join(r.root, filepath.FromSlash(name))
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
}

func read(t *testing.T, r *release, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(r.root, filepath.FromSlash(name)))
	require.NoError(t, err)
	return string(text)
}

func git(t *testing.T, r *release, args ...string) string {
	t.Helper()
	text, err := r.git(t.Context(), args...)
	require.NoError(t, err)
	return text
}

func commitAll(t *testing.T, r *release) {
	t.Helper()
	git(t, r, "add", "--all")
	git(t, r, "commit", "--quiet", "--message", "Change")
}

// state returns everything that a release may change in a repository.
func state(t *testing.T, r *release) string {
	t.Helper()
	return git(t, r, "rev-parse", "HEAD") + git(t, r, "tag") + git(t, r, "status", "--porcelain")
}

func TestReleaseWritesVersionsAndTagsEveryPublishedModule(t *testing.T) {
	r := repository(t)
	require.NoError(t, r.run(t.Context()))
	assert.Equal(t, "module example.org/m/lib\n\ngo 1.25.0\n\nrequire example.org/m v0.3.0\n\nreplace example.org/m => ../\n", read(t, r, "lib/go.mod"))
	example := read(t, r, "example/go.mod")
	assert.Contains(t, example, "example.org/m v0.3.0\n\texample.org/m/lib v0.3.0\n\texample.org/more v1.0.0\n")
	assert.Equal(t, "# Changelog\n\n## [Unreleased]\n\n## [0.3.0] - 2026-03-01\n\n### Added\n\n- F.\n\n## [0.2.0] - 2026-01-01\n\n- Old.\n",
		read(t, r, "CHANGELOG.md"))
	assert.Equal(t, "lib/v0.3.0\nv0.3.0", git(t, r, "tag"), "the example gets no tag")
	for tag := range strings.FieldsSeq(git(t, r, "tag")) {
		assert.Equal(t, git(t, r, "rev-parse", "HEAD"), git(t, r, "rev-parse", tag))
	}
	assert.Empty(t, git(t, r, "status", "--porcelain"))
	assert.Equal(t, "Release v0.3.0", git(t, r, "log", "-1", "--format=%s"))
}

func TestDryRunChangesNothing(t *testing.T) {
	r := repository(t)
	r.dry = true
	before := state(t, r)
	require.NoError(t, r.run(t.Context()))
	assert.Equal(t, before, state(t, r))
	printed := r.out.(*strings.Builder).String()
	assert.Contains(t, printed, filepath.Join("lib", "go.mod")+", CHANGELOG.md, commit, and tag v0.3.0, lib/v0.3.0")
	assert.Contains(t, printed, "there is no earlier release")
}

func TestReleaseRefusesAndChangesNothing(t *testing.T) {
	for name, refused := range map[string]struct {
		prepare func(t *testing.T, r *release)
		want    string
	}{
		"a version without v":     {func(_ *testing.T, r *release) { r.version = "0.3.0" }, "want vMAJOR.MINOR.PATCH"},
		"a short version":         {func(_ *testing.T, r *release) { r.version = "v0.3" }, "want vMAJOR.MINOR.PATCH"},
		"no version":              {func(_ *testing.T, r *release) { r.version = "" }, "want vMAJOR.MINOR.PATCH"},
		"a major version":         {func(_ *testing.T, r *release) { r.version = "v2.0.0" }, "do not end in /v2"},
		"a version that is lower": {func(t *testing.T, r *release) { git(t, r, "tag", "v0.10.0") }, "the last release is v0.10.0"},
		"the last version":        {func(t *testing.T, r *release) { git(t, r, "tag", "v0.3.0") }, "want a higher one"},
		"a nested module's tag":   {func(t *testing.T, r *release) { git(t, r, "tag", "lib/v0.3.0") }, "tags exist already: lib/v0.3.0"},
		"a changed file":          {func(t *testing.T, r *release) { write(t, r, "m.go", "package m\n") }, "uncommitted changes:\nM m.go"},
		"a new file":              {func(t *testing.T, r *release) { write(t, r, "new.go", "package m\n") }, "uncommitted changes:\n?? new.go"},
		"a failing check":         {func(_ *testing.T, r *release) { r.check = []string{"false"} }, "the check failed: false"},
		"no changes": {func(t *testing.T, r *release) {
			write(t, r, "CHANGELOG.md", "## [Unreleased]\n\n## [0.2.0] - 2026-01-01\n\n- Old.\n")
			commitAll(t, r)
		}, "nothing is listed under Unreleased"},
		"no heading": {func(t *testing.T, r *release) {
			write(t, r, "CHANGELOG.md", "# Changelog\n")
			commitAll(t, r)
		}, "no heading"},
		"a commit that fails": {func(t *testing.T, r *release) {
			write(t, r, ".git/hooks/pre-commit", "#!/bin/sh\nexit 1\n")
			require.NoError(t, os.Chmod(filepath.Join(r.root, ".git", "hooks", "pre-commit"), 0o755))
		}, "git commit"},
	} {
		t.Run(name, func(t *testing.T) {
			r := repository(t)
			refused.prepare(t, r)
			before := state(t, r)
			require.ErrorContains(t, r.run(t.Context()), refused.want)
			assert.Equal(t, before, state(t, r))
		})
	}
}

func TestChangesOfTheAPIArePrinted(t *testing.T) {
	r := repository(t)
	git(t, r, "tag", "v0.2.0")
	write(t, r, "m.go", "package m\n\nfunc F() {}\n\nfunc G() {}\n")
	write(t, r, "lib/lib.go", "package lib\n\nfunc H() {}\n")
	write(t, r, "fresh/go.mod", "module example.org/m/fresh\n\ngo 1.25.0\n")
	write(t, r, "fresh/fresh.go", "package fresh\n\nfunc F() {}\n")
	commitAll(t, r)
	require.NoError(t, r.run(t.Context()))
	printed := r.out.(*strings.Builder).String()
	assert.Regexp(t, `(?s)API of \. since v0\.2\.0\n.*G: added`, printed)
	assert.Regexp(t, `(?s)API of lib since v0\.2\.0\n.*F: removed`, printed)
	assert.Regexp(t, `API of fresh since v0\.2\.0\nnew module`, printed)
}
