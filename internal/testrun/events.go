package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
)

// event is one line of go test -json, as cmd/test2json documents it.
type event struct {
	Action, Package, Test, Output string
}

// printEvents prints what go test prints without -v. It prints each reason for skipped tests once.
func printEvents(out io.Writer, events io.Reader) error {
	type test struct{ pkg, name string }
	said := map[test][]string{} // output of tests that have not ended
	skipped := map[string]int{}
	var reasons []string // in order
	decoder := json.NewDecoder(events)
	for {
		var e event
		if err := decoder.Decode(&e); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return fmt.Errorf("read the output of go test -json: %w", err)
		}
		of := test{e.Package, e.Test}
		switch e.Action {
		case "build-output":
			_, _ = io.WriteString(out, e.Output)
		case "output":
			if e.Test != "" {
				said[of] = append(said[of], e.Output)
			} else if e.Output != "PASS\n" && !strings.Contains(e.Output, "[no test files]") {
				_, _ = io.WriteString(out, e.Output)
			}
		case "skip":
			if reason := skipReason(said[of]); e.Test != "" && reason != "" {
				if skipped[reason] == 0 {
					reasons = append(reasons, reason)
				}
				skipped[reason]++
			}
			delete(said, of)
		case "pass":
			delete(said, of)
		case "fail":
			_, _ = io.WriteString(out, strings.Join(said[of], ""))
			delete(said, of)
		}
	}
	for _, left := range said { // output of tests that a panic or a timeout ended
		_, _ = io.WriteString(out, strings.Join(left, ""))
	}
	for _, reason := range reasons {
		fmt.Fprintf(out, "note: %d skipped: %s\n", skipped[reason], reason)
	}
	return nil
}

var place = regexp.MustCompile(`^\s+\S+\.go:\d+: `)

// skipReason returns the message of a skipped test on one line.
func skipReason(said []string) string {
	for i, line := range said {
		if at := place.FindString(line); at != "" {
			reason := line[len(at):]
			for _, more := range said[i+1:] {
				if strings.HasPrefix(more, "---") || strings.HasPrefix(strings.TrimSpace(more), "--- ") {
					break
				}
				reason += more
			}
			return strings.Join(strings.Fields(reason), " ")
		}
	}
	return ""
}
