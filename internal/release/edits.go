package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/mod/modfile"

	"github.com/aiguard-go/aiguard/internal/modules"
)

// edit is a file with its text in the release.
type edit struct {
	path string // relative to the root of the repository
	text []byte
}

// edits returns the files that the release changes.
func (r *release) edits(found []modules.Module) ([]edit, error) {
	rootMod, err := os.ReadFile(filepath.Join(r.root, "go.mod"))
	if err != nil {
		return nil, err
	}
	prefix := modfile.ModulePath(rootMod)
	var files []edit
	for _, m := range found {
		path := filepath.Join(filepath.FromSlash(m.Dir), "go.mod")
		text, err := os.ReadFile(filepath.Join(r.root, path))
		if err != nil {
			return nil, err
		}
		changed, err := requireVersion(path, text, prefix, r.version)
		if err != nil {
			return nil, err
		}
		if string(changed) != string(text) {
			files = append(files, edit{path, changed})
		}
	}
	const changelog = "CHANGELOG.md"
	text, err := os.ReadFile(filepath.Join(r.root, changelog))
	if err != nil {
		return nil, err
	}
	changed, err := closeUnreleased(string(text), r.version, r.date)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", changelog, err)
	}
	return append(files, edit{changelog, []byte(changed)}), nil
}

// requireVersion sets the version of every required module whose path begins with prefix. A replace stays, because it
// serves the clone and has no effect on users of the module.
func requireVersion(path string, text []byte, prefix, version string) ([]byte, error) {
	file, err := modfile.Parse(path, text, nil)
	if err != nil {
		return nil, err
	}
	for _, required := range file.Require {
		if name := required.Mod.Path; name == prefix || strings.HasPrefix(name, prefix+"/") {
			if err := file.AddRequire(name, version); err != nil {
				return nil, err
			}
		}
	}
	return file.Format()
}

// closeUnreleased inserts a heading for the version above the unreleased changes.
func closeUnreleased(text, version string, date time.Time) (string, error) {
	const heading = "## [Unreleased]\n"
	before, after, ok := strings.Cut(text, heading)
	if !ok {
		return "", errors.New(`no heading "## [Unreleased]"`)
	}
	unreleased, _, _ := strings.Cut(after, "\n## ")
	if strings.TrimSpace(unreleased) == "" {
		return "", errors.New("nothing is listed under Unreleased")
	}
	return fmt.Sprintf("%s%s\n## [%s] - %s\n%s", before, heading, strings.TrimPrefix(version, "v"), date.Format(time.DateOnly), after), nil
}
