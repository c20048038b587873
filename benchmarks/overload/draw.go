package main

import (
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// redraw draws the picture from an existing report, without simulating.
func redraw(text, file string) error {
	written, err := os.ReadFile(text)
	if err != nil {
		return err
	}
	r, err := readReport(string(written))
	if err != nil {
		return fmt.Errorf("%s: %w", text, err)
	}
	return drawChart(file, r)
}

// readReport returns the figures in the table of the main scenario, which has one seed.
func readReport(text string) (*report, error) {
	_, section, ok := strings.Cut(text, "## "+fits.name+"\n")
	if !ok {
		return nil, fmt.Errorf("no section %q", fits.name)
	}
	section, _, _ = strings.Cut(section, "\n## ")
	r := &report{results: map[key][]result{}}
	var names []string
	for line := range strings.Lines(section) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		switch {
		case !strings.HasPrefix(line, "|") || strings.HasPrefix(line, "|-"):
		case names == nil:
			names = cells
		default:
			if err := r.readRow(names, cells); err != nil {
				return nil, err
			}
		}
	}
	for _, c := range fits.clients {
		for _, load := range fits.loads {
			if r.results[key{fits.name, c.name, load}] == nil {
				return nil, fmt.Errorf("%s: no row of %s at load %g", fits.name, c.name, load)
			}
		}
	}
	return r, nil
}

// readRow reads the columns that the picture shows.
func (r *report) readRow(names, cells []string) error {
	cell := func(name string) string {
		if i := slices.Index(names, name); i >= 0 && i < len(cells) {
			return cells[i]
		}
		return ""
	}
	load, err := strconv.ParseFloat(cell("load"), 64)
	if err != nil {
		return fmt.Errorf("load: %w", err)
	}
	var one result
	if one.calm.goodput, err = strconv.ParseFloat(strings.TrimSuffix(cell(goodput.name), "%"), 64); err != nil {
		return fmt.Errorf("%s: %w", goodput.name, err)
	}
	one.calm.goodput /= 100
	if one.outage.requestsPerAnswer, err = strconv.ParseFloat(cell(inOutage.name), 64); err != nil {
		if cell(inOutage.name) != ratio(math.Inf(1)) {
			return fmt.Errorf("%s: %w", inOutage.name, err)
		}
		one.outage.requestsPerAnswer = math.Inf(1)
	}
	one.calm.p50 = never
	if written := cell(p50.name); written != seconds(math.Inf(1)) {
		if one.calm.p50, err = time.ParseDuration(written); err != nil {
			return fmt.Errorf("%s: %w", p50.name, err)
		}
	}
	at := key{fits.name, cell("client"), load}
	r.results[at] = append(r.results[at], one)
	return nil
}
