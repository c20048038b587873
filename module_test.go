package aiguard_test

import (
	"encoding/json"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const modulePath = "github.com/aiguard-go/aiguard"

// goTool runs the go command in the root module, as users see it: without a go.work around it.
func goTool(t *testing.T, args ...string) []byte {
	t.Helper()
	cmd := exec.Command("go", args...)
	cmd.Env = append(cmd.Environ(), "GOWORK=off")
	out, err := cmd.Output()
	if exit, ok := err.(*exec.ExitError); ok {
		require.NoError(t, err, "go %s: %s", strings.Join(args, " "), exit.Stderr)
	}
	require.NoError(t, err)
	return out
}

func TestRootModuleRequiresGoOpenAIAndTestifyAlone(t *testing.T) {
	var mod struct {
		Require []struct {
			Path     string
			Indirect bool
		}
		Replace []any
	}
	require.NoError(t, json.Unmarshal(goTool(t, "mod", "edit", "-json"), &mod))
	var direct []string
	for _, r := range mod.Require {
		if !r.Indirect {
			direct = append(direct, r.Path)
		}
	}
	assert.ElementsMatch(t, []string{
		"github.com/sashabaranov/go-openai",
		"github.com/stretchr/testify",
	}, direct, "everyone who imports the guard downloads, audits and updates each requirement of its module: "+
		"what needs another one goes into a nested module with its own go.mod")
	assert.Empty(t, mod.Replace, "a replace does not reach those who import the module")
}

// listed is a package as `go list` tells of it.
type listed struct {
	ImportPath string
	Name       string
	Standard   bool
	Deps       []string
	Module     *struct{ Path string }
}

// packages lists the packages of the root module, and all they import, by path.
func packages(t *testing.T) map[string]listed {
	all := map[string]listed{}
	dec := json.NewDecoder(strings.NewReader(string(goTool(t, "list", "-deps", "-json=ImportPath,Name,Standard,Deps,Module", "./..."))))
	for dec.More() {
		var p listed
		require.NoError(t, dec.Decode(&p))
		all[p.ImportPath] = p
	}
	require.Contains(t, all, modulePath)
	require.Contains(t, all, modulePath+"/aiguardtest")
	require.Contains(t, all, modulePath+"/internal/dialect")
	return all
}

// Users can import every package that is not internal. Its Deps include all internal packages that are linked with it.
func TestNothingThatShipsLinksTestify(t *testing.T) {
	for path, p := range packages(t) {
		if p.Module == nil || p.Module.Path != modulePath || strings.Contains(path, "/internal/") {
			continue
		}
		for _, dep := range p.Deps {
			for _, part := range []string{"testify", "yaml"} {
				assert.NotContains(t, dep, part, "%s would link it into our users' programs", path)
			}
			assert.NotEqual(t, "testing", dep, "%s would add test flags to our users' programs", path)
		}
	}
}

func TestGuardImportsGoOpenAIAlone(t *testing.T) {
	all := packages(t)
	modules := map[string]bool{}
	for _, dep := range all[modulePath].Deps {
		if m := all[dep].Module; m != nil {
			modules[m.Path] = true
		}
	}
	assert.Equal(t, map[string]bool{modulePath: true, "github.com/sashabaranov/go-openai": true}, modules)
}

func TestPackagesBesideTheGuardNeedTheStandardLibraryAlone(t *testing.T) {
	checked := 0
	all := packages(t)
	guard := map[string]bool{modulePath: true} // what comes with the root package
	for _, dep := range all[modulePath].Deps {
		guard[dep] = true
	}
	for path, p := range all {
		over := path == modulePath+"/httpguard" || path == modulePath+"/task" || path == modulePath+"/internal/operation" ||
			path == modulePath+"/internal/typednil" // the guard
		if path != modulePath+"/aiguardtest" && !strings.HasPrefix(path, modulePath+"/internal/") && !over {
			continue
		}
		if p.Name == "main" {
			continue // a tool of ours: nobody imports it
		}
		checked++
		for _, dep := range p.Deps {
			own := strings.HasPrefix(dep, modulePath+"/internal/") || over && guard[dep]
			assert.True(t, all[dep].Standard || own, "%s imports %s", path, dep)
		}
	}
	assert.GreaterOrEqual(t, checked, 5, "the walk finds the packages")
}
