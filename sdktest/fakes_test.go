package sdktest

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
)

// The SDKs of other APIs use aiguardtest as their provider. They read its answers, streams and errors.
var faked = []string{"anthropic-sdk-go", "genai", "ollama"}

func eachFaked(t *testing.T, test func(t *testing.T, s sdk, fake *aiguardtest.Server)) {
	t.Helper()
	for _, name := range faked {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, sdks[name], aiguardtest.NewServer(t))
		})
	}
}

func TestFakeAnswersAndStreamsAreRead(t *testing.T) {
	eachFaked(t, func(t *testing.T, s sdk, fake *aiguardtest.Server) {
		fake.SetDefault(aiguardtest.TextN("Hello there", 3))
		g := newGuard(t, aiguard.Config{})
		for name, call := range s.calls() {
			for who, c := range map[string]conn{"bare": {http: bare(t), url: fake.URL}, "guarded": {http: g.HTTPClient(), url: fake.URL}} {
				text, err := call(t.Context(), c)
				require.NoError(t, err, "%s %s", who, name)
				require.Equal(t, "Hello there", text, "%s %s", who, name)
			}
		}
		streamed := 0
		for _, r := range fake.Requests() {
			require.Equal(t, "m", r.Model)
			if r.Stream {
				streamed++
			}
		}
		require.Equal(t, 2, streamed)
	})
}

func TestFakeErrorsAreTheSDKsOwn(t *testing.T) {
	faults := map[aiguardtest.Fault]aiguard.Kind{
		aiguardtest.FaultRetryAfterLong: aiguard.ErrRateLimited,
		aiguardtest.FaultPromptTooLong:  aiguard.ErrPromptTooLarge,
		aiguardtest.FaultStatus403:      aiguard.ErrUnauthorized,
		aiguardtest.FaultStatus503:      aiguard.ErrUnavailable,
	}
	statuses := map[aiguardtest.Fault]int{
		aiguardtest.FaultRetryAfterLong: 429, aiguardtest.FaultPromptTooLong: 400, aiguardtest.FaultStatus403: 403, aiguardtest.FaultStatus503: 503,
	}
	eachFaked(t, func(t *testing.T, s sdk, fake *aiguardtest.Server) {
		for fault, kind := range faults {
			fake.Play(fault)
			for name, call := range s.calls() {
				g := newGuard(t, aiguard.Config{}) // a new guard without a paused route
				for who, c := range map[string]conn{"bare": {http: bare(t), url: fake.URL}, "guarded": {http: g.HTTPClient(), url: fake.URL}} {
					_, err := call(t.Context(), c)
					require.ErrorContains(t, err, aiguardtest.ProviderText, "%s %s %s: the SDK reads the message", fault, who, name)
					require.Equal(t, statuses[fault], s.own(err), "%s %s %s: %v", fault, who, name, err)
					require.Equal(t, kind, aiguard.KindOf(err), "%s %s %s: %v", fault, who, name, err)
				}
			}
		}
	})
}

func TestFakeStreamsBreakAsTheSDKSeesThem(t *testing.T) {
	eachFaked(t, func(t *testing.T, s sdk, fake *aiguardtest.Server) {
		for fault, kind := range map[aiguardtest.Fault]aiguard.Kind{
			aiguardtest.FaultStreamError:    aiguard.ErrRateLimited,
			aiguardtest.FaultStreamCut:      aiguard.ErrTruncated,
			aiguardtest.FaultStreamNoFinish: aiguard.ErrTruncated,
			aiguardtest.FaultStreamSilence:  aiguard.ErrTimeout,
		} {
			fake.Play(fault)
			if fault == aiguardtest.FaultStreamError {
				text, err := s.stream(t.Context(), conn{http: bare(t), url: fake.URL})
				require.Equal(t, "Hel", text)
				require.ErrorContains(t, err, aiguardtest.ProviderText)
			}
			g := newGuard(t, aiguard.Config{StreamIdleTimeout: 200 * time.Millisecond})
			text, err := s.stream(t.Context(), conn{http: g.HTTPClient(), url: fake.URL})
			require.Contains(t, []string{"Hel", "Hello!"}, text, fault)
			require.EqualValues(t, 1, g.Stats().Failed, "%s: the guard knows", fault)
			switch {
			case !s.deaf:
				require.Equal(t, kind, aiguard.KindOf(err), "%s: %v", fault, err)
			case fault == aiguardtest.FaultStreamError:
				require.ErrorContains(t, err, aiguardtest.ProviderText, "as without a guard")
			default:
				require.EqualError(t, err, aiguard.UserMessage(&aiguard.Error{Kind: kind}), fault)
			}
		}
	})
}
