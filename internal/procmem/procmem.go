// Package procmem reads how much of the machine's memory a process has.
package procmem

import (
	"os"
	"strconv"
	"strings"
)

// Of returns, in kB, the resident memory (VmRSS) of the process with this id, or of "self", and the most that it has ever
// been (VmHWM). Only Linux tells: elsewhere, and of a process that is gone, err is not nil and both are 0.
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
