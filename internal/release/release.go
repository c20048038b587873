package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/semver"

	"github.com/aiguard-go/aiguard/internal/modules"
)

type release struct {
	root    string // root folder of the repository
	version string
	dry     bool
	check   []string // command that runs the checks
	date    time.Time
	out     io.Writer
}

func (r *release) run(ctx context.Context) error {
	last, err := r.lastVersion(ctx)
	if err != nil {
		return err
	}
	if err := checkVersion(r.version, last); err != nil {
		return err
	}
	status, err := r.git(ctx, "status", "--porcelain")
	if err != nil {
		return err
	}
	if status != "" {
		return fmt.Errorf("the tree has uncommitted changes:\n%s", status)
	}
	found, err := modules.Find(r.root)
	if err != nil {
		return err
	}
	var tags []string
	for _, m := range found {
		if m.Published {
			tags = append(tags, m.Tag(r.version))
		}
	}
	if existing, err := r.git(ctx, append([]string{"tag", "--list"}, tags...)...); err != nil {
		return err
	} else if existing != "" {
		return fmt.Errorf("tags exist already: %s", strings.Join(strings.Fields(existing), ", "))
	}
	files, err := r.edits(found)
	if err != nil {
		return err
	}
	if err := r.printAPIChanges(ctx, found, last); err != nil {
		return err
	}
	if err := r.runCheck(ctx); err != nil {
		return err
	}
	if r.dry {
		fmt.Fprintf(r.out, "dry run: would write %s, commit, and tag %s\n", paths(files), strings.Join(tags, ", "))
		return nil
	}
	if err := r.commit(ctx, files, tags); err != nil {
		_, restoreErr := r.git(context.WithoutCancel(ctx), "restore", "--staged", "--worktree", ".")
		return errors.Join(err, restoreErr)
	}
	fmt.Fprintf(r.out, "released %s; publish it with\n  git push --atomic origin HEAD %s\n", r.version, strings.Join(tags, " "))
	return nil
}

// checkVersion returns an error unless version is higher than last. last is "" for the first release.
func checkVersion(version, last string) error {
	if !semver.IsValid(version) || semver.Canonical(version) != version {
		return fmt.Errorf("version %q: want vMAJOR.MINOR.PATCH, such as v0.3.0", version)
	}
	if major := semver.Major(version); major != "v0" && major != "v1" {
		return fmt.Errorf("version %s: the module paths do not end in /%s", version, major)
	}
	if last != "" && semver.Compare(version, last) <= 0 {
		return fmt.Errorf("version %s: the last release is %s; want a higher one", version, last)
	}
	return nil
}

// lastVersion returns the highest version among the tags of the root module, or "".
func (r *release) lastVersion(ctx context.Context) (string, error) {
	tags, err := r.git(ctx, "tag", "--list", "v*")
	if err != nil {
		return "", err
	}
	versions := slices.DeleteFunc(strings.Fields(tags), func(tag string) bool { return !semver.IsValid(tag) })
	if len(versions) == 0 {
		return "", nil
	}
	return slices.MaxFunc(versions, semver.Compare), nil
}

func (r *release) runCheck(ctx context.Context) error {
	fmt.Fprintln(r.out, "==>", strings.Join(r.check, " "))
	cmd := exec.CommandContext(ctx, r.check[0], r.check[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = r.root, r.out, r.out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("the check failed: %s: %w", strings.Join(r.check, " "), err)
	}
	return nil
}

// commit writes the files, commits them, and sets all tags or none.
func (r *release) commit(ctx context.Context, files []edit, tags []string) error {
	for _, f := range files {
		if err := os.WriteFile(filepath.Join(r.root, f.path), f.text, 0o644); err != nil {
			return err
		}
	}
	if _, err := r.git(ctx, "commit", "--all", "--message", "Release "+r.version); err != nil {
		return err
	}
	var create bytes.Buffer
	for _, tag := range tags {
		fmt.Fprintf(&create, "create refs/tags/%s HEAD\n", tag)
	}
	cmd := exec.CommandContext(ctx, "git", "update-ref", "--stdin")
	cmd.Dir, cmd.Stdin = r.root, &create
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("the release is committed but has no tags: %w: %s", err, bytes.TrimSpace(text))
	}
	return nil
}

// git runs a git command and returns its output.
func (r *release) git(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Dir = r.root
	text, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, bytes.TrimSpace(exit.Stderr))
		}
		return "", fmt.Errorf("git %s: %w", args[0], err)
	}
	return strings.TrimSpace(string(text)), nil
}

func paths(files []edit) string {
	var all []string
	for _, f := range files {
		all = append(all, f.path)
	}
	return strings.Join(all, ", ")
}
