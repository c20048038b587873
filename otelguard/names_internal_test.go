package otelguard

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// What names.go calls an instrument is in testdata/metrics.txt, which another test compares with what is recorded.
func TestEveryInstrumentIsRecorded(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "names.go", nil, 0)
	require.NoError(t, err)
	pinned, err := os.ReadFile("testdata/metrics.txt")
	require.NoError(t, err)
	found := 0
	ast.Inspect(file, func(n ast.Node) bool {
		lit, ok := n.(*ast.CompositeLit)
		if !ok {
			return true
		}
		if typ, ok := lit.Type.(*ast.Ident); ok && typ.Name == "instrument" {
			name, err := strconv.Unquote(lit.Elts[0].(*ast.BasicLit).Value)
			require.NoError(t, err)
			require.Contains(t, string(pinned), name+" [")
			found++
		}
		return true
	})
	require.Equal(t, strings.Count(string(pinned), " ["), found+strings.Count(string(pinned), "histogram ["))
}

func TestProvidersAreNamedByTheirHost(t *testing.T) {
	for host, want := range map[string]string{
		"api.openai.com": "openai", "my.openai.azure.com": "azure.ai.openai", "api.anthropic.com": "anthropic",
		"generativelanguage.googleapis.com": "gcp.gemini", "us-central1-aiplatform.googleapis.com": "gcp.vertex_ai",
		"bedrock-runtime.eu-west-1.amazonaws.com": "aws.bedrock", "api.x.ai": "x_ai", "notapi.x.ai.example": "openai", "evilapi.openai.com.example": "openai",
		"localhost": "openai",
	} {
		require.Equal(t, want, providerOf(host, "chat.completions"), host)
	}
	require.Equal(t, "anthropic", providerOf("localhost", "messages"))
	for host, want := range map[string]struct {
		address string
		port    int
	}{"api.openai.com": {"api.openai.com", 443}, "localhost:8080": {"localhost", 8080}, "[::1]:80": {"::1", 80}} {
		address, port := splitHost(host)
		require.Equal(t, want.address, address)
		require.Equal(t, want.port, port)
	}
}
