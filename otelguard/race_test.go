//go:build race

package otelguard_test

const raceEnabled = true
