// Package procmem reads the memory use of a process.
package procmem

import (
	"os"
	"strconv"
	"strings"
)

// Of returns the current resident memory (VmRSS) and its peak (VmHWM), in kB, of the process with this id, or of
// "self". It works only on Linux. Elsewhere, and for a process that has ended, it returns an error and zeros.
func Of(process string) (resident, peak int, err error) {
	status, err := os.ReadFile("/proc/" + process + "/status")
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		kB, _ := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(value), " kB"))
		switch name {
		case "VmRSS":
			resident = kB
		case "VmHWM":
			peak = kB
		}
	}
	return resident, peak, err
}
