//go:build !race

package aiguard_test

const raceEnabled = false
