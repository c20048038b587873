package main

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/aiguard-go/aiguard/internal/modules"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestOutputIsThatOfGoTestAndEachSkipReasonOnce(t *testing.T) {
	const events = `
{"Action":"start","Package":"p"}
{"Action":"output","Package":"p","Test":"TestGood","Output":"=== RUN   TestGood\n"}
{"Action":"pass","Package":"p","Test":"TestGood"}
{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:7: no chromium found: apt-get install chromium\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"--- SKIP: TestA (0.00s)\n"}
{"Action":"skip","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestB","Output":"    b_test.go:70: no chromium found: apt-get install chromium\n"}
{"Action":"skip","Package":"p","Test":"TestB"}
{"Action":"output","Package":"p","Test":"TestBad","Output":"    b_test.go:9: wrong\n"}
{"Action":"output","Package":"p","Test":"TestBad","Output":"--- FAIL: TestBad (0.00s)\n"}
{"Action":"fail","Package":"p","Test":"TestBad"}
{"Action":"output","Package":"p","Test":"TestStuck","Output":"panic: test timed out\n"}
{"Action":"output","Package":"p","Output":"FAIL\tp\t0.003s\n"}
{"Action":"fail","Package":"p"}
{"ImportPath":"q","Action":"build-output","Output":"q.go:1:1: syntax error\n"}
{"Action":"output","Package":"r","Output":"?   \tr\t[no test files]\n"}
{"Action":"output","Package":"s","Output":"PASS\n"}
{"Action":"output","Package":"s","Output":"ok  \ts\t1.2s\n"}
`
	var out strings.Builder
	require.NoError(t, printEvents(&out, strings.NewReader(events)))
	assert.Equal(t, `    b_test.go:9: wrong
--- FAIL: TestBad (0.00s)
FAIL	p	0.003s
q.go:1:1: syntax error
ok  	s	1.2s
panic: test timed out
note: 2 skipped: no chromium found: apt-get install chromium
`, out.String())
}

func TestOutputThatIsNotJSONIsAnError(t *testing.T) {
	require.ErrorContains(t, printEvents(&strings.Builder{}, strings.NewReader("go: no such tool")), "go test -json")
}

func TestSummaryNamesWhatFailed(t *testing.T) {
	var out strings.Builder
	r := runner{out: &out}
	r.part(t.Context(), "good", func() error { return nil })
	r.part(t.Context(), "bad", func() error { return errors.New("exit status 1") })
	require.ErrorContains(t, r.summary(), "failed: bad")
	assert.Regexp(t, `(?m)^good +0 s  ok$`, out.String())
	assert.Regexp(t, `(?m)^bad +0 s  FAILED: exit status 1$`, out.String())
}

func TestMissingModulesAreOneClearLine(t *testing.T) {
	t.Setenv("GOMODCACHE", t.TempDir())
	t.Setenv("GOPROXY", "off")
	t.Setenv("GOFLAGS", "-modcacherw")
	var out strings.Builder
	r := runner{out: &out}
	err := r.test(t.Context(), "../..")
	require.ErrorContains(t, err, "cannot download the required modules")
	assert.NotContains(t, err.Error(), "\n")
	assert.Empty(t, out.String())
}

func TestModulesTestedBesideTheRootAreReportedWhole(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module example\n"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "x_test.go"), []byte("package x\n\nimport \"testing\"\n\nfunc TestX(*testing.T) {}\n"), 0o600))
	var out strings.Builder
	r := runner{out: &out}
	published(t.Context(), &r, []modules.Module{{Dir: dir, Published: true}, {Dir: t.TempDir()}})
	require.NoError(t, r.summary())
	assert.Contains(t, out.String(), "ok  \texample")
	assert.Regexp(t, `(?m)^.*`+regexp.QuoteMeta(filepath.Base(dir))+` +\d+ s  ok$`, out.String())
}
