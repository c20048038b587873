// Release releases every module of this repository with one version:
//
//	make release VERSION=v0.3.0          # from a clean tree
//	make release VERSION=v0.3.0 DRY=1    # prints the plan, changes nothing
//
// It writes the version into the nested modules' go.mod files and into CHANGELOG.md, commits the changes, and tags the
// commit: v0.3.0 for the root module, sqlstore/v0.3.0 for the module in sqlstore, and so on. It pushes nothing.
//
// Before any change it runs the checks and prints the changes of the exported API since the last release. A dry run
// does both too. Release rejects a version that is not above the last one, a tree with uncommitted changes, a failing
// check and an empty Unreleased section.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"time"
)

func main() {
	version := flag.String("version", "", "the `version` to release, such as v0.3.0")
	dry := flag.Bool("dry", false, "change nothing")
	check := flag.String("check", "make lint test-all", "the `command` that must succeed in the root of the repository")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := (&release{
		root: "../..", version: *version, dry: *dry, check: strings.Fields(*check), date: time.Now(), out: os.Stdout,
	}).run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "release:", err)
		os.Exit(1)
	}
}
