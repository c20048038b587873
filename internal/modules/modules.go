// Package modules finds the Go modules of this repository and determines which of them users import.
package modules

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Module is a folder with a go.mod.
type Module struct {
	Dir       string // relative to the root of the repository, with slashes; "." is the root module
	Published bool   // users import it, so a release tags it
}

// Tag returns the name of the module's tag in a release: v1.2.3 for the root module, dir/v1.2.3 for a nested one.
func (m Module) Tag(version string) string {
	if m.Dir == "." {
		return version
	}
	return m.Dir + "/" + version
}

// Find returns the modules under root, sorted by folder. A module is published if the package in its folder is not main
// and exports a name: modules of examples, benchmarks and tests have no such package.
func Find(root string) ([]Module, error) {
	var found []Module
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := entry.Name()
		if entry.IsDir() && path != root && (name == "node_modules" || name == "testdata" || strings.HasPrefix(name, ".")) {
			return fs.SkipDir
		}
		if entry.IsDir() || name != "go.mod" {
			return nil
		}
		dir := filepath.Dir(path)
		published, err := exportsNames(dir)
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(root, dir)
		if err != nil {
			return err
		}
		found = append(found, Module{Dir: filepath.ToSlash(relative), Published: published})
		return nil
	})
	if err == nil && len(found) == 0 {
		err = fmt.Errorf("modules: no go.mod under %s", root)
	}
	slices.SortFunc(found, func(a, b Module) int { return strings.Compare(a.Dir, b.Dir) })
	return found, err
}

// exportsNames reports whether the folder has a package to import, tests aside.
func exportsNames(dir string) (bool, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false, err
	}
	for _, entry := range entries {
		name := entry.Name()
		if entry.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(dir, name), nil, parser.SkipObjectResolution)
		if err != nil {
			return false, err
		}
		if file.Name.Name != "main" && ast.FileExports(file) {
			return true, nil
		}
	}
	return false, nil
}
