// Package browser tests the web pages of this repository in a headless Chromium, at the widths of a phone and of a
// desktop, in light and dark mode. It saves screenshots in screenshots/.
package browser

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const screenshots = "screenshots"

var (
	chromium context.Context // the browser that all tests share; nil: not installed
	temp     string          // a folder that is deleted after the tests
)

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	_ = flag.Set("test.parallel", "4") // the tests mostly wait
	path := findChromium()
	if path == "" {
		return m.Run()
	}
	var err error
	if temp, err = os.MkdirTemp("", "browser"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(temp)
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.UserDataDir(filepath.Join(temp, "profile")),
		chromedp.NoSandbox, chromedp.DisableGPU)
	for _, flag := range []string{"disable-quic", "disable-component-update"} {
		options = append(options, chromedp.Flag(flag, true))
	}
	ctx, stop := chromedp.NewExecAllocator(context.Background(), options...)
	defer stop()
	ctx, closeBrowser := chromedp.NewContext(ctx)
	defer closeBrowser()
	if err := chromedp.Do(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "chromium does not start:", err)
		return 1
	}
	chromium = ctx
	return m.Run()
}

func findChromium() string {
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	return ""
}

func needChromium(t *testing.T) {
	t.Helper()
	if chromium == nil {
		t.Skip("no chromium found: apt-get install chromium")
	}
}

// tab is a page in the browser, used by one test.
type tab struct {
	t    *testing.T
	ctx  context.Context
	host string

	mu         sync.Mutex
	complaints []string // errors that the browser reported about the page
}

// open opens a page of a server. At the end of the test it checks that the browser reported no errors and requested no
// other host.
func open(t *testing.T, address string) *tab {
	t.Helper()
	u, err := url.Parse(address)
	require.NoError(t, err)
	ctx, closeTab := chromedp.NewContext(chromium)
	t.Cleanup(closeTab)
	b := &tab{t: t, host: u.Host}
	require.NoError(t, chromedp.Listen(ctx, b.listen))
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	t.Cleanup(cancel)
	b.ctx = ctx
	b.do(chromedp.Navigate(address))
	t.Cleanup(func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		assert.Empty(t, b.complaints)
	})
	return b
}

func (b *tab) listen(event any) {
	switch e := event.(type) {
	case *runtime.EventExceptionThrown:
		b.complain("exception: " + e.ExceptionDetails.Text)
	case *runtime.EventConsoleAPICalled:
		b.complain("console: " + string(e.Type))
	case *log.EventEntryAdded:
		// Some tests expect an answer with an error status. Everything else is an error of the page.
		if e.Entry.Source != log.EntrySourceNetwork || !strings.Contains(e.Entry.Text, "status of") {
			b.complain(string(e.Entry.Source) + ": " + e.Entry.Text + " " + e.Entry.URL)
		}
	case *network.EventRequestWillBeSent:
		if u, err := url.Parse(e.Request.URL); err != nil || u.Host != b.host {
			b.complain("request to elsewhere: " + e.Request.URL)
		}
	}
}

func (b *tab) complain(what string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.complaints = append(b.complaints, what)
}

func (b *tab) do(actions ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	require.NoError(b.t, chromedp.Do(b.ctx, actions...))
}

func (b *tab) click(selector string) {
	b.t.Helper()
	b.do(chromedp.Click(chromedp.CSS(selector), chromedp.NodeVisible))
}

// eval returns the value of a JavaScript expression in the page.
func eval[T any](b *tab, format string, args ...any) T {
	b.t.Helper()
	v, err := chromedp.Run(b.ctx, chromedp.Evaluate[T](fmt.Sprintf(format, args...)))
	require.NoError(b.t, err)
	return v
}

// until waits until a JavaScript expression in the page is true.
func (b *tab) until(format string, args ...any) {
	b.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !eval[bool](b, format, args...); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			require.Fail(b.t, "not seen", "want %s; the page says:\n%s", fmt.Sprintf(format, args...), b.text("body"))
		}
	}
}

// see waits until an element contains a text.
func (b *tab) see(selector, want string) {
	b.t.Helper()
	b.until("(document.querySelector(%q)?.innerText ?? '').includes(%q)", selector, want)
}

func (b *tab) text(selector string) string {
	b.t.Helper()
	return eval[string](b, "document.querySelector(%q)?.innerText ?? ''", selector)
}

func (b *tab) count(selector string) int {
	b.t.Helper()
	return eval[int](b, "document.querySelectorAll(%q).length", selector)
}

// emulate sets the width and the colour scheme of the page.
func (b *tab) emulate(width, height int64, scheme string) {
	b.t.Helper()
	b.do(chromedp.EmulateViewport(width, height))
	_, err := chromedp.Call(b.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
	})
	require.NoError(b.t, err)
}

// shoot takes a screenshot at each width and in each colour scheme. It checks that the page fits the width and is
// accessible.
func (b *tab) shoot(name string) {
	b.t.Helper()
	require.NoError(b.t, os.MkdirAll(screenshots, 0o755))
	for _, width := range []struct {
		name          string
		width, height int64
	}{{"phone", 380, 800}, {"desktop", 1280, 900}} {
		for _, scheme := range []string{"light", "dark"} {
			b.emulate(width.width, width.height, scheme)
			require.LessOrEqual(b.t, eval[int64](b, "document.documentElement.scrollWidth"), width.width,
				"%s is wider than a %s", name, width.name)
			b.accessible(name)
			picture, err := chromedp.Call(b.ctx, page.CaptureScreenshot, page.CaptureScreenshotParams{
				CaptureBeyondViewport: new(true), OptimizeForSpeed: new(true),
			})
			require.NoError(b.t, err)
			file := filepath.Join(screenshots, strings.Join([]string{name, width.name, scheme}, "-")+".png")
			require.NoError(b.t, os.WriteFile(file, picture.Data, 0o644))
		}
	}
}

var errNoAxe = errors.New("axe-core is not installed: run `npm ci` in browser/")

// axe is the source of axe-core, which checks the WCAG rules.
var axe = sync.OnceValues(func() (string, error) {
	source, err := os.ReadFile("node_modules/axe-core/axe.min.js")
	if errors.Is(err, os.ErrNotExist) {
		err = errNoAxe
	}
	return string(source), err
})

// accessible checks that axe-core finds no violation in the page. If axe-core is missing, TestAxeIsInstalled reports
// it.
func (b *tab) accessible(name string) {
	b.t.Helper()
	source, err := axe()
	if errors.Is(err, errNoAxe) {
		return
	}
	require.NoError(b.t, err)
	if !eval[bool](b, `typeof axe !== "undefined"`) {
		eval[chromedp.Void](b, "%s", source+"; void 0")
	}
	found, err := chromedp.Run(b.ctx, chromedp.Evaluate[[]string](`axe.run().then(results => results.violations.flatMap(v =>
		v.nodes.map(node => v.id + ": " + v.help + ": " + node.html)))`, chromedp.EvalAwaitPromise))
	require.NoError(b.t, err)
	assert.Empty(b.t, found, name)
}

func TestAxeIsInstalled(t *testing.T) {
	needChromium(t)
	_, err := axe()
	if errors.Is(err, errNoAxe) && os.Getenv("CI") == "" {
		t.Skip(err)
	}
	require.NoError(t, err)
}
