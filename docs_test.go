package aiguard_test

import (
	"os"
	"regexp"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestEveryFileThatArchitectureNamesExists(t *testing.T) {
	text, err := os.ReadFile("docs/ARCHITECTURE.md")
	require.NoError(t, err)
	names := regexp.MustCompile("`((?:[a-z]+/)*[a-z]+\\.go|internal/[a-z]+)`").FindAllStringSubmatch(string(text), -1)
	require.Greater(t, len(names), 40)
	for _, name := range names {
		_, err := os.Stat(name[1])
		assert.NoError(t, err)
	}
}

// The files on a call's way say at their top which part of it they are.
func TestFilesOfThePipelineCarryItsMap(t *testing.T) {
	for file, room := range pipeline {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		assert.Contains(t, string(text), pipelineMap+"\n// This file: "+room+".\n", file)
	}
}

const pipelineMap = "// Pipeline: Client, Transport or Do → budget → line → route → attempt → retry → result or *Error."

// pipeline is what each file on it does.
var pipeline = map[string]string{
	"transport.go": "the entry for any SDK over HTTP",
	"client.go":    "the entry for go-openai",
	"do.go":        "the entry for a function",
	"call.go":      "one call from entry to result",
	"admission.go": "how a call gets through line and route",
	"limiter.go":   "the line, whose turn it is",
	"route.go":     "the route, whether the provider is open",
	"attempt.go":   "one attempt over HTTP",
	"stream.go":    "the answer of an attempt that is a stream",
	"retry.go":     "whether and when to try again",
	"fallback.go":  "the next alternative after a failure",
	"errors.go":    "the error of a call that failed",
	"report.go":    "what a call tells events and logs",
}
