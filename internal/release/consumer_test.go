package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/mod/modfile"
	"golang.org/x/mod/module"
	"golang.org/x/mod/zip"

	"github.com/aiguard-go/aiguard/internal/modules"
)

// TestUsersCanBuildWhatIsReleased releases a clone of the repository and serves its tags as a module proxy. Outside the
// clone and with an empty module cache, it builds a program for each module that users import. It tests the committed
// files.
func TestUsersCanBuildWhatIsReleased(t *testing.T) {
	const version = "v0.999.0"
	r := &release{root: filepath.Join(t.TempDir(), "clone"), version: version, check: []string{"true"}, date: releaseDay, out: &strings.Builder{}}
	clone(t, r.root)
	write(t, r, "CHANGELOG.md", strings.Replace(read(t, r, "CHANGELOG.md"), "## [Unreleased]\n", "## [Unreleased]\n\n- A change.\n", 1))
	commitAll(t, r)
	require.NoError(t, r.run(t.Context()))

	found, err := modules.Find(r.root)
	require.NoError(t, err)
	found = slices.DeleteFunc(found, func(m modules.Module) bool { return !m.Published })
	require.NotEmpty(t, found)
	proxy := t.TempDir()
	for _, m := range found {
		serve(t, r, proxy, m)
	}
	root := modulePath(t, r, ".")
	cache := filepath.Join(t.TempDir(), "cache")
	env := []string{"GOPROXY=file://" + filepath.ToSlash(proxy) + "," + goEnv(t, "GOPROXY"), "GONOSUMDB=" + root,
		"GOMODCACHE=" + cache, "GOFLAGS=-mod=mod -trimpath -modcacherw", "GOWORK=off"}
	for _, m := range found {
		t.Run(m.Dir, func(t *testing.T) {
			path := modulePath(t, r, m.Dir)
			goCommand(t, filepath.Join(r.root, m.Dir), []string{"GOFLAGS=-mod=readonly"}, "list", "-deps", "./...") // works in the clone

			user := t.TempDir()
			goCommand(t, user, env, "mod", "init", "example.org/user")
			goCommand(t, user, env, "get", path+"@"+version)
			program := "package main\n\nimport (\n"
			for _, pkg := range importable(t, filepath.Join(r.root, m.Dir)) {
				program += fmt.Sprintf("\t_ %q\n", pkg)
			}
			require.Contains(t, program, path)
			require.NoError(t, os.WriteFile(filepath.Join(user, "main.go"), []byte(program+")\n\nfunc main() {}\n"), 0o644))
			goCommand(t, user, env, "build", "-o", os.DevNull, ".")
			require.Equal(t, version, goCommand(t, user, env, "list", "-m", "-f", "{{.Version}}{{with .Replace}} replaced{{end}}", root))
		})
	}
}

// clone clones this repository into dir.
func clone(t *testing.T, dir string) {
	t.Helper()
	here := &release{root: "../.."}
	if _, err := here.git(t.Context(), "rev-parse", "HEAD"); err != nil {
		t.Skip("the test requires a git clone of the repository: ", err)
	}
	git(t, here, "clone", "--quiet", ".", dir)
	there := &release{root: dir}
	git(t, there, "config", "user.name", "Tester")
	git(t, there, "config", "user.email", "tester@example.org")
}

// serve adds the module at its tag to the proxy in a folder: https://go.dev/ref/mod#goproxy-protocol.
func serve(t *testing.T, r *release, proxy string, m modules.Module) {
	t.Helper()
	at := module.Version{Path: modulePath(t, r, m.Dir), Version: r.version}
	escaped, err := module.EscapePath(at.Path)
	require.NoError(t, err)
	dir := filepath.Join(proxy, filepath.FromSlash(escaped), "@v")
	require.NoError(t, os.MkdirAll(dir, 0o755))
	put := func(name, text string) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	put("list", at.Version+"\n")
	info, err := json.Marshal(map[string]any{"Version": at.Version, "Time": r.date.Format(time.RFC3339)})
	require.NoError(t, err)
	put(at.Version+".info", string(info))
	put(at.Version+".mod", git(t, r, "show", m.Tag(r.version)+":"+strings.TrimPrefix(m.Dir+"/go.mod", "./"))+"\n")
	archive, err := os.Create(filepath.Join(dir, at.Version+".zip"))
	require.NoError(t, err)
	require.NoError(t, zip.CreateFromVCS(archive, at, r.root, m.Tag(r.version), strings.TrimPrefix(m.Dir, ".")))
	require.NoError(t, archive.Close())
}

func modulePath(t *testing.T, r *release, dir string) string {
	t.Helper()
	return modfile.ModulePath([]byte(read(t, r, dir+"/go.mod")))
}

// importable returns the packages of the module in dir that users may import.
func importable(t *testing.T, dir string) (all []string) {
	t.Helper()
	for line := range strings.Lines(goCommand(t, dir, nil, "list", "-f", "{{.Name}} {{.ImportPath}}", "./...")) {
		name, path, _ := strings.Cut(strings.TrimSpace(line), " ")
		if name != "main" && !strings.Contains(path, "/internal/") {
			all = append(all, path)
		}
	}
	return all
}

func goEnv(t *testing.T, name string) string {
	t.Helper()
	return goCommand(t, ".", nil, "env", name)
}

// goCommand runs the go command in dir and returns its output. env overrides the test's environment.
func goCommand(t *testing.T, dir string, env []string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", args...)
	cmd.Dir = dir
	cmd.Env = append(cmd.Environ(), env...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	text, err := cmd.Output()
	require.NoError(t, err, "go %s: %s", strings.Join(args, " "), stderr.String())
	return strings.TrimSpace(string(text))
}
