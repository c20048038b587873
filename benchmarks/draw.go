package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/aiguard-go/aiguard/benchmarks/cost"
)

// redraw draws the picture from an existing report, without measuring.
func redraw(results, file string) error {
	text, err := os.ReadFile(results)
	if err != nil {
		return err
	}
	r, err := readReport(string(text))
	if err != nil {
		return fmt.Errorf("%s: %w", results, err)
	}
	return drawCost(file, r)
}

// readReport returns the medians in the report's table of all contenders.
func readReport(text string) (cost.Results, error) {
	_, table, ok := strings.Cut(text, "## All contenders\n")
	if !ok {
		return nil, errors.New("no table of all contenders")
	}
	table, _, _ = strings.Cut(table, "\n## ")
	rows := map[string]cost.Row{}
	for _, row := range cost.Rows {
		rows[row.Work] = row
	}
	r := cost.Results{}
	var row cost.Row
	for line := range strings.Lines(table) {
		cells := strings.Split(line, "|")
		if len(cells) < 4 || strings.HasPrefix(cells[1], "--") || strings.TrimSpace(cells[1]) == "work" {
			continue
		}
		if work := strings.TrimSpace(cells[1]); work != "" {
			row = rows[work] // the zero Row if the row is no longer measured
		}
		if row.Unit != cost.SecPerOp && row.Unit != cost.SecPerEvent {
			continue
		}
		v, err := parseSeconds(strings.TrimSpace(cells[3]))
		if err != nil {
			return nil, err
		}
		r.Add(row.Bench, strings.TrimSpace(cells[2]), row.Unit, v)
	}
	return r, nil
}

// parseSeconds parses what cost.Quantity returns for seconds.
func parseSeconds(quantity string) (float64, error) {
	number, unit, _ := strings.Cut(quantity, " ")
	v, err := strconv.ParseFloat(number, 64)
	scale, ok := map[string]float64{"ns": 1e-9, "µs": 1e-6, "ms": 1e-3, "s": 1}[unit]
	if err != nil || !ok {
		return 0, fmt.Errorf("median %q: want a number and ns, µs, ms or s", quantity)
	}
	return v * scale, nil
}
