package browser

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/httpguard"
)

// failures returns the errors that the error page supports.
func failures() map[string]error {
	return map[string]error{
		"503-overloaded": &aiguard.Error{Kind: aiguard.ErrOverloaded, Phase: "queue", RetryAfter: 12 * time.Second},
		"503-closed":     &aiguard.Error{Kind: aiguard.ErrClosed},
		"504":            &aiguard.Error{Kind: aiguard.ErrTimeout, Phase: "task", Limit: 55 * time.Second},
		"413":            &http.MaxBytesError{Limit: 1 << 20},
		"429":            &aiguard.Error{Kind: aiguard.ErrRateLimited, RetryAfter: 90 * time.Second},
		"502":            &aiguard.Error{Kind: aiguard.ErrInvalidResponse},
	}
}

// failing serves the error page for each failure under the failure's name.
func failing(t *testing.T) (address string) {
	t.Helper()
	needChromium(t)
	mux := http.NewServeMux()
	for name, err := range failures() {
		mux.HandleFunc("/"+name, func(w http.ResponseWriter, r *http.Request) { httpguard.Error(w, r, err) })
	}
	mux.HandleFunc("/short", func(w http.ResponseWriter, r *http.Request) {
		httpguard.Error(w, r, &aiguard.Error{Kind: aiguard.ErrOverloaded, RetryAfter: 8 * time.Second})
	})
	mux.HandleFunc("GET /form", func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write([]byte(`<!doctype html><title>form</title><link rel="icon" href="data:,"><form method="post" action="/503-closed"><button>Send</button></form>`))
	})
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	return srv.URL
}

func TestErrorPagesAreReadable(t *testing.T) {
	t.Parallel()
	address := failing(t)
	for name, err := range failures() {
		b := open(t, address+"/"+name)
		b.see("h1", "")
		if aiguard.KindOf(err) != "" {
			b.see("main", aiguard.UserMessage(err))
		}
		b.see("footer", "Request id:")
		tries := 1
		if name == "413" {
			tries = 0 // a repeat of the same request would be too large again
		}
		require.Equal(t, tries, b.count("#again"), name)
		b.shoot("page-" + name)
	}
}

func TestCountdownEnablesTryAgain(t *testing.T) {
	t.Parallel()
	b := open(t, failing(t)+"/short")
	// A busy browser may be asked less than once a second, so the page notes its texts.
	eval[chromedp.Void](b, `{
		const wait = document.querySelector("#wait");
		window.said = [];
		new MutationObserver(() => said.push(wait.innerText)).observe(wait, { childList: true });
	}`)
	require.True(t, eval[bool](b, `document.querySelector("#again").ariaDisabled === "true" && !document.querySelector("#again").href`),
		"a repeat would be rejected again")
	b.see("#now", "You can try again now.")
	require.Subset(t, eval[[]string](b, "said"), []string{"in 2 seconds", "in 1 second"})
	require.False(t, eval[bool](b, `document.getElementById("waiting").checkVisibility()`))
	b.do(chromedp.KeyEvent(kb.Tab), chromedp.KeyEvent(kb.Enter))
	b.until(`/^in \d+ seconds$/.test(document.querySelector("#wait")?.innerText)`) // the second request is rejected too
}

func TestPageWorksWithoutJavaScript(t *testing.T) {
	t.Parallel()
	address := failing(t)
	b := open(t, address+"/503-overloaded")
	disableScripts := func(disabled bool) {
		_, err := chromedp.Call(b.ctx, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: disabled})
		require.NoError(t, err)
	}
	disableScripts(true)
	b.do(chromedp.Reload())
	b.see("#wait", "in about 12 seconds")
	b.see("main", "Please try again in 12 seconds.")
	require.Equal(t, 1, b.count(".actions a[href]"), "the link works without scripts")
	disableScripts(false) // the checks are scripts; the page's own scripts no longer run
	b.shoot("page-503-overloaded-without-javascript")
}

func TestPageOfAFormLeadsBackToIt(t *testing.T) {
	t.Parallel()
	b := open(t, failing(t)+"/form")
	b.click("button")
	b.see("h1", "We will be right back")
	require.Zero(t, b.count(".actions a"), "no link, because a repeat would send the form again")
	b.click("#back")
	b.see("form button", "Send")
}
