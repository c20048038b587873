// Package cost measures what a guard costs, beside what others cost. Rows is what is measured and what is to be reached;
// this package's tests hold one benchmark for each row, with a sub-benchmark for each contender; Results reads what they
// print and judges it.
package cost
