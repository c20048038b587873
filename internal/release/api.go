package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/mod/modfile"

	"github.com/aiguard-go/aiguard/internal/modules"
)

const apidiff = "golang.org/x/exp/cmd/apidiff@v0.0.0-20261113113407-e3970619a1a4"

// printAPIChanges prints the changes of the exported API of each published module since the last release.
func (r *release) printAPIChanges(ctx context.Context, found []modules.Module, last string) error {
	if last == "" {
		fmt.Fprintln(r.out, "API: there is no earlier release to compare with")
		return nil
	}
	temp, err := os.MkdirTemp("", "release")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temp)
	old := filepath.Join(temp, "old")
	if _, err := r.git(ctx, "clone", "--quiet", "--no-checkout", ".", old); err != nil {
		return err
	}
	then := &release{root: old}
	if _, err := then.git(ctx, "checkout", "--quiet", last); err != nil {
		return err
	}
	for _, m := range found {
		if !m.Published {
			continue
		}
		fmt.Fprintf(r.out, "==> API of %s since %s\n", m.Dir, last)
		text, err := os.ReadFile(filepath.Join(old, m.Dir, "go.mod"))
		if os.IsNotExist(err) {
			fmt.Fprintln(r.out, "new module")
			continue
		} else if err != nil {
			return err
		}
		path, api := modfile.ModulePath(text), filepath.Join(temp, "api")
		if _, err := runAPIDiff(ctx, filepath.Join(old, m.Dir), "-m", "-w", api, path); err != nil {
			return err
		}
		changes, err := runAPIDiff(ctx, filepath.Join(r.root, m.Dir), "-m", api, path)
		if err != nil {
			return err
		}
		if len(changes) == 0 {
			changes = []byte("no changes\n")
		}
		_, _ = r.out.Write(changes)
	}
	return nil
}

func runAPIDiff(ctx context.Context, dir string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "go", append([]string{"run", apidiff}, args...)...)
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	changes, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("apidiff in %s: %w: %s", dir, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return changes, nil
}
