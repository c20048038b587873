// Package cost measures the cost of a guard and of other libraries. Rows lists the measurements and their targets. The
// package's tests have one benchmark for each row, with a sub-benchmark for each contender. Results reads their output
// and judges it.
package cost
