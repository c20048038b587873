package readme

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// piece defines what a piece of the README's code needs to compile. A piece begins with a comment.
type piece struct {
	module  string // folder of the module; "": the root
	imports []string
	given   string // declarations before the piece
	used    string // variables that the piece declares but does not use
}

const (
	aiguardImport = "github.com/aiguard-go/aiguard"
	guardGiven    = "var guard *aiguard.Guard\n"
)

var pieces = map[string]piece{
	"Tenants": {
		imports: []string{"context", aiguardImport},
		given: guardGiven + "var ctx context.Context\nvar account string\n" +
			"var ask func(context.Context, string) (string, error)\nvar large, small, canned func(context.Context) (string, error)\n",
		used: "text, err",
	},
	"The": {},
	"httpguard:": {
		imports: []string{"net/http", aiguardImport, aiguardImport + "/httpguard"},
		given:   guardGiven + "var mux *http.ServeMux\nvar ask http.Handler\n",
		used:    "err",
	},
	"task:": {
		module:  "sqlstore",
		imports: []string{"context", "net/http", aiguardImport, aiguardImport + "/sqlstore", aiguardImport + "/task"},
		given:   guardGiven + "var ctx context.Context\nvar mux *http.ServeMux\nvar report func(context.Context) (string, error)\n",
		used:    "op, err",
	},
	"riverguard:": {
		module:  "riverguard",
		imports: []string{"context", "github.com/jackc/pgx/v5/pgxpool", aiguardImport, aiguardImport + "/riverguard"},
		given:   guardGiven + "var ctx context.Context\nvar pool *pgxpool.Pool\n",
		used:    "runner, err",
	},
	"budget:": {
		imports: []string{"context", "time", aiguardImport + "/budget"},
		given:   "var ctx context.Context\n",
		used:    "limits, ctx",
	},
	"redisguard:": {
		module:  "redisguard",
		imports: []string{"github.com/redis/go-redis/v9", aiguardImport, aiguardImport + "/redisguard"},
		given:   guardGiven + "var rdb redis.UniversalClient\n",
		used:    "guard, err",
	},
	"cacheguard:": {
		module:  "cacheguard",
		imports: []string{"net/http", aiguardImport, aiguardImport + "/cacheguard"},
		given:   guardGiven,
		used:    "sdk, err",
	},
	"tokenguard:": {
		module:  "tokenguard",
		imports: []string{"github.com/sashabaranov/go-openai", aiguardImport, aiguardImport + "/tokenguard"},
		given:   "var chat []openai.ChatCompletionMessage\nvar err error\n",
		used:    "cfg, chat, err",
	},
	"otelguard:": {
		module:  "otelguard",
		imports: []string{aiguardImport, aiguardImport + "/otelguard"},
		given:   guardGiven,
		used:    "guard, err",
	},
	"aiguardtest:": {
		imports: []string{"testing", aiguardImport + "/aiguardtest"},
		given:   "var t *testing.T\n",
	},
}

// TestReadmeCodeCompiles builds the README's program and each piece of code with its declarations.
func TestReadmeCodeCompiles(t *testing.T) {
	text, err := os.ReadFile("../../README.md")
	require.NoError(t, err)
	blocks := regexp.MustCompile("(?s)```go\n(.*?)```").FindAllStringSubmatch(string(text), -1)
	seen := map[string]bool{}
	for _, block := range blocks {
		if strings.HasPrefix(block[1], "package main") {
			compile(t, "", block[1])
			continue
		}
		for name, code := range piecesOf(t, block[1]) {
			seen[name] = true
			p := pieces[name]
			compile(t, p.module, p.program(code))
		}
	}
	for name, p := range pieces {
		assert.True(t, seen[name] || p.imports == nil, "no code in the README begins with %q", name)
	}
}

// piecesOf splits a block of code at its blank lines. A piece without an entry of its own continues the previous one.
func piecesOf(t *testing.T, block string) map[string]string {
	found := map[string]string{}
	last := ""
	for _, code := range strings.Split(strings.TrimSpace(block), "\n\n") {
		name := strings.Fields(strings.TrimPrefix(code, "// "))[0]
		p, ok := pieces[name]
		require.True(t, ok, "the README has code that begins with %q: add it to pieces", name)
		if p.imports == nil {
			found[last] += "\n" + code
			continue
		}
		found[name], last = code, name
	}
	return found
}

func (p *piece) program(code string) string {
	var b strings.Builder
	b.WriteString("package main\n\nimport (\n")
	for _, path := range p.imports {
		if strings.HasSuffix(path, "/go-openai") {
			b.WriteString("openai ")
		}
		fmt.Fprintf(&b, "%q\n", path)
	}
	fmt.Fprintf(&b, ")\n\n%sfunc main() {\n%s\n", p.given, code)
	for _, v := range strings.FieldsFunc(p.used, func(r rune) bool { return r == ',' || r == ' ' }) {
		fmt.Fprintf(&b, "_ = %s\n", v)
	}
	b.WriteString("}\n")
	return b.String()
}

// compile type-checks a program in a module.
func compile(t *testing.T, module, program string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "main.go")
	require.NoError(t, os.WriteFile(file, []byte(program), 0o600))
	cmd := exec.Command("go", "vet", file)
	cmd.Dir = filepath.Join("..", "..", module)
	cmd.Env = append(cmd.Environ(), "GOWORK=off", "GOFLAGS=-mod=readonly")
	out, err := cmd.CombinedOutput()
	assert.NoError(t, err, "%s\n%s", out, program)
}
