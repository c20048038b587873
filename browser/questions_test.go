package browser

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/stretchr/testify/require"
)

// program builds examples/questions once.
var program = sync.OnceValues(func() (path string, err error) {
	path = filepath.Join(temp, "questions")
	build := exec.Command("go", "build", "-o", path, "./examples/questions")
	build.Dir, build.Stderr = "..", os.Stderr
	build.Env = append(build.Environ(), "GOWORK=off")
	return path, build.Run()
})

// serve runs the program with a fake provider until the test ends, and returns its address. It fails the test if the
// program exits with an error.
func serve(t *testing.T, flags ...string) (address string) {
	t.Helper()
	path, err := program()
	require.NoError(t, err)
	cmd := exec.Command(path, append([]string{"-drain-delay", "0s"}, flags...)...)
	cmd.Env = append(cmd.Environ(), "OPENAI_API_KEY=")
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
		require.NoError(t, cmd.Wait())
	})
	line, err := bufio.NewReader(stdout).ReadString('\n')
	require.NoError(t, err)
	address, ok := strings.CutPrefix(strings.TrimSpace(line), "listening on ")
	require.True(t, ok, line)
	return address
}

// questions opens the page on a service with one slot and one place in the queue. A slow answer takes a hundred times
// the pace.
func questions(t *testing.T, flags ...string) *tab {
	t.Helper()
	t.Parallel()
	needChromium(t)
	return open(t, serve(t, append([]string{"-pace", "60ms", "-call-timeout", "20s", "-max-concurrent", "1", "-max-queue", "1"}, flags...)...)+"/")
}

const (
	askQuestions = `form[data-path="/questions"]`
	askFeedback  = `form[data-path="/feedback"]`
	newest       = `#list > li:first-child`
)

func (b *tab) fault(name string) {
	b.t.Helper()
	eval[string](b, `document.getElementById("fault").value = %q`, name)
}

func TestQuestionsAndFeedbackSucceed(t *testing.T) {
	b := questions(t)
	b.shoot("start")
	b.do(chromedp.SetValue(chromedp.CSS("#topic"), `<b>Tides</b> & "currents"`), chromedp.SendKeys(chromedp.CSS("#topic"), kb.Enter))
	b.see(newest+" .status", "Done")
	b.see(newest+" h3", `1. Questions: <b>Tides</b> & "currents"`)
	require.Equal(t, 5, b.count(newest+" .result ol li"))
	b.see(newest+" .result", `<b>Tides</b> & "currents"`)
	require.Zero(t, b.count(newest+" b"), "the user's text is not HTML")

	b.click(askFeedback + " button")
	b.see(newest+" h3", "2. Feedback: Why are there two high tides a day?")
	b.see(newest+" .result", "Score: 4 of 5")
	b.see(newest+" .result", "To improve")
	require.Empty(t, b.text(newest+" .message"))
	b.shoot("success")
}

func TestProgressIsShown(t *testing.T) {
	b := questions(t)
	b.fault("slow")
	b.click(askQuestions + " button")
	b.see(newest+" .note", "The AI service is writing")
	b.until(`document.querySelector("progress").value >= 20`)
	require.Equal(t, "Running", b.text(newest+" .status"))
	b.shoot("progress")
	b.see(newest+" .status", "Done")
}

func TestFailuresHaveFriendlyMessages(t *testing.T) {
	b := questions(t, "-call-timeout", "3s")
	for _, failure := range []struct{ fault, message string }{
		{"timeout", "The AI service took too long to answer. Please try again in a moment."},
		{"outage", "The AI service is temporarily unavailable. Please try again in a moment."},
		{"ratelimit", "The AI service is receiving too many requests. Please try again in a second."},
		{"truncated", "The AI service's answer was cut short. Please try again."},
	} {
		b.fault(failure.fault)
		b.click(askQuestions + " button")
		b.see(newest+" .message", failure.message)
		b.see(newest+" .status", "Failed")
		require.Empty(t, b.text(newest+" .result"))
	}
	b.shoot("failure")
	b.fault("")
	b.click(askQuestions + " button")
	b.see(newest+" .status", "Done")
}

func TestOverloadShowsAMessage(t *testing.T) {
	b := questions(t)
	b.fault("slow")
	b.click(askQuestions + " button") // runs
	b.see(newest+" h3", "Questions")
	b.click(askFeedback + " button") // waits
	b.see(newest+" h3", "Feedback")
	b.click(askQuestions + " button") // is rejected
	b.see(askQuestions+" .message", "We are handling many requests right now. Please try again in a second.")
	require.Equal(t, 2, b.count("#list > li"))
	b.shoot("overload")
	b.see(newest+" .status", "Done")
	b.fault("")
	b.click(askQuestions + " button")
	b.see(newest+" h3", "Questions")
	b.see(newest+" .status", "Done")
	require.Empty(t, b.text(askQuestions+" .message"), "the message disappears")
}

func TestCancelEndsAnOperation(t *testing.T) {
	b := questions(t, "-pace", "150ms") // on a busy machine a click may take seconds
	b.fault("slow")
	b.click(askQuestions + " button")
	b.see(newest+" .status", "Running")
	b.click(newest + " .cancel")
	b.see(newest+" .status", "Cancelled")
	b.see(newest+" .message", "This was cancelled.")
	require.True(t, eval[bool](b, `document.activeElement.matches("%s .retry")`, newest), "the focus stays in the card")
	b.shoot("cancelled")
}

func TestEveryOperationShowsItsStatus(t *testing.T) {
	t.Parallel()
	needChromium(t)
	b := open(t, serve(t, "-call-timeout", "1m", "-max-concurrent", "8")+"/")
	b.fault("timeout")
	for n := range 8 { // a browser opens at most six connections
		b.click(askQuestions + " button")
		b.until(`document.querySelectorAll("#list > li").length === %d`, n+1)
	}
	b.until(`document.querySelectorAll("#list > .running").length === 8`)
	titles := eval[[]string](b, `[...document.querySelectorAll("#list h3")].map(title => title.textContent)`)
	slices.Sort(titles)
	require.Len(t, slices.Compact(titles), 8, "no two cards have the same title")
	eval[chromedp.Void](b, `document.querySelectorAll(".cancel").forEach(button => button.click())`)
	b.until(`document.querySelectorAll("#list > .cancelled").length === 8`)
}

func TestCardsHaveTimeAndDuration(t *testing.T) {
	b := questions(t)
	b.fault("slow")
	b.click(askQuestions + " button")
	b.until(`/^, for \d/.test(document.querySelector("%s .took")?.textContent)`, newest)
	b.see(newest+" .status", "Done")
	b.until(`/^, took \d+(\.\d)? s$/.test(document.querySelector("%s .took")?.textContent)`, newest)
	require.True(t, eval[bool](b, `Math.abs(new Date(document.querySelector("%s .asked").dateTime) - Date.now()) < 60000`, newest))
}

func TestFailedOperationIsRetriedFromItsCard(t *testing.T) {
	b := questions(t)
	b.do(chromedp.SetValue(chromedp.CSS("#topic"), "Volcanoes"))
	b.fault("outage")
	b.click(askQuestions + " button")
	b.see(newest+" .status", "Failed")
	b.fault("")
	b.do(chromedp.SetValue(chromedp.CSS("#topic"), "Something else"))
	b.click(newest + " .retry")
	b.see(newest+" h3", "2. Questions: Volcanoes")
	b.see(newest+" .status", "Done")
	require.Equal(t, 2, b.count("#list > li"))
	require.False(t, eval[bool](b, `document.querySelector("%s .retry").checkVisibility()`, newest), "only a failed operation has a retry button")
	b.shoot("retried")
}

func TestResultIsInViewOnAPhone(t *testing.T) {
	b := questions(t, "-pace", "150ms") // on a busy machine a click may take seconds
	b.emulate(380, 667, "light")
	inView := func(selector string) {
		b.until(`(box => box && box.top >= 0 && box.bottom <= innerHeight)(document.querySelector(%q)?.getBoundingClientRect())`, selector)
	}
	for _, form := range []string{askQuestions, askFeedback} {
		b.fault("")
		b.click(form + " button")
		b.see(newest+" .status", "Done")
		inView(newest + " .head")
		inView(newest + " .result :first-child")
		b.fault("outage")
		b.click(form + " button")
		b.see(newest+" .status", "Failed")
		inView(newest + " .message")
		inView(newest + " .retry")
	}
	b.fault("slow")
	b.click(askQuestions + " button") // runs
	b.see(newest+" .status", "Running")
	inView(newest + " progress")
	inView(newest + " .cancel")
	b.click(askQuestions + " button") // waits
	b.see(newest+" .status", "Waiting")
	b.click(askQuestions + " button") // is rejected
	b.see(askQuestions+" .message", "We are handling many requests")
	inView(askQuestions + " .message")
}

func TestPageIsUsedByKeyboardAlone(t *testing.T) {
	b := questions(t)
	focused := func(selector string) {
		b.t.Helper()
		b.until(`document.activeElement.matches("%s")`, selector)
		require.True(t, eval[bool](b, `document.activeElement.matches(":focus-visible")`), "the focus is visible on %s", selector)
	}
	press := func(keys ...string) {
		for _, key := range keys {
			b.do(chromedp.KeyEvent(key))
		}
	}
	b.see("#live-text", "slots in use") // the strip, once visible, is the first stop of the Tab key
	press(kb.Tab)
	focused("#live a")
	press(kb.Tab)
	focused("#fault")
	for range b.count("#fault option") {
		if eval[string](b, `document.getElementById("fault").value`) == "slow" {
			break
		}
		press(kb.ArrowDown)
	}
	press(kb.Tab)
	focused("#topic")
	press("Stars", kb.Enter)
	focused(newest)
	b.see(newest+" .status", "Running")
	press(kb.Tab)
	focused(newest + " .cancel")
	press(kb.Enter)
	b.see(newest+" .status", "Cancelled")
	focused(newest + " .retry")
	press(" ")
	b.see(newest+" h3", "2. Questions: Stars")
	focused(newest)
	b.see(newest+" .status", "Done")
	focused(newest)
}

func TestBordersOfControlsHaveContrast(t *testing.T) {
	b := questions(t)
	b.fault("slow")
	b.click(askQuestions + " button")
	b.see(newest+" .status", "Running")
	for _, scheme := range []string{"light", "dark"} {
		b.emulate(1280, 900, scheme)
		weak := eval[[]string](b, `(() => {
			const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
			const luminance = color => {
				canvas.fillStyle = color;
				canvas.fillRect(0, 0, 1, 1);
				return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map(v => v / 255)
					.map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
					.reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
			};
			const behind = e => {
				for (; e; e = e.parentElement) {
					const color = getComputedStyle(e).backgroundColor;
					if (color !== "rgba(0, 0, 0, 0)") return color;
				}
			};
			return [...document.querySelectorAll("input, textarea, select, .cancel, .card")].map(e => {
				const [low, high] = [luminance(getComputedStyle(e).borderTopColor), luminance(behind(e.parentElement))].sort((x, y) => x - y);
				return [(high + 0.05) / (low + 0.05), e.id || e.className];
			}).filter(([ratio]) => ratio < 3).map(([ratio, name]) => name + ": " + ratio.toFixed(2));
		})()`)
		require.Empty(t, weak, scheme)
	}
}

func TestStripShowsWhatTheGuardIsDoing(t *testing.T) {
	b := questions(t)
	b.see("#live-text", "0 of 1 slots in use, 0 waiting")
	b.fault("slow")
	b.click(askQuestions + " button")
	b.see("#live-text", "1 of 1 slots in use")
	b.shoot("strip")
	b.see(newest+" .status", "Done")
	b.see("#live-text", "0 of 1 slots in use")
}
