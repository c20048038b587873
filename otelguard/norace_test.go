//go:build !race

package otelguard_test

const raceEnabled = false
