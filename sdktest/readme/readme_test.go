package readme

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
)

// The lines of the table use these names.
const key, model, region, project = "KEY", "m", "us-east5", "p"

var base = &url.URL{Scheme: "http", Host: "127.0.0.1:11434"}

// row is a row of the table: the file that contains its line, and a call with the line's client.
type row struct {
	file string
	call func(context.Context, *aiguard.Guard) error
}

var rows = map[string]row{
	"go-openai":                 {"goopenai_test.go", goOpenAI},
	"openai-go":                 {"openai_test.go", openaiGo},
	"anthropic-sdk-go":          {"anthropic_test.go", anthropicSDK},
	"anthropic-sdk-go, Bedrock": {"anthropic_test.go", anthropicBedrock},
	"anthropic-sdk-go, Vertex":  {"anthropic_test.go", anthropicVertex},
	"genai":                     {"genai_test.go", gemini},
	"ollama":                    {"ollama_test.go", ollama},
	"langchaingo":               {"langchaingo_test.go", langchainOpenAI},
	"langchaingo, Anthropic":    {"langchaingo_test.go", langchainAnthropic},
	"eino-ext":                  {"eino_test.go", einoExt},
}

// TestTableOfSDKsIsCompiled fails if the file of a row does not contain the row's line unchanged.
func TestTableOfSDKsIsCompiled(t *testing.T) {
	readme, err := os.ReadFile(filepath.Join("..", "..", "README.md"))
	require.NoError(t, err)
	_, table, ok := strings.Cut(string(readme), "\n| SDK | line of code |\n|---|---|\n")
	require.True(t, ok, "README.md has no table of SDKs")
	table, _, _ = strings.Cut(table, "\n\n")
	found := 0
	for line := range strings.Lines(table) {
		cells := strings.Split(strings.TrimSpace(line), " | ")
		require.Len(t, cells, 2, line)
		name := strings.TrimPrefix(cells[0], "| ")
		row, ok := rows[name]
		require.True(t, ok, "no file is assigned to the row %q", name)
		source, err := os.ReadFile(row.file)
		require.NoError(t, err)
		code := strings.TrimSuffix(strings.TrimPrefix(cells[1], "`"), "` |")
		require.Contains(t, string(source), "\t"+code+"\n", name)
		found++
	}
	require.Len(t, rows, found, "rows that README.md lacks")
}

// TestEveryLinePutsItsSDKUnderTheGuard makes a call with a closed guard. A call that bypasses the guard would fail with
// a different error or succeed.
func TestEveryLinePutsItsSDKUnderTheGuard(t *testing.T) {
	for name, value := range map[string]string{
		"OPENAI_API_KEY": key, "ANTHROPIC_API_KEY": key, "GOOGLE_API_KEY": key, "OPENAI_MODEL": model,
		"AWS_REGION": region, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "s",
		"AWS_CONFIG_FILE": os.DevNull, "AWS_SHARED_CREDENTIALS_FILE": os.DevNull,
		"GOOGLE_APPLICATION_CREDENTIALS": googleAccount(t),
	} {
		t.Setenv(name, value)
	}
	for name, row := range rows {
		t.Run(name, func(t *testing.T) {
			guard, err := aiguard.New(aiguard.Config{})
			require.NoError(t, err)
			require.NoError(t, guard.Close())
			require.Error(t, row.call(t.Context(), guard))
			require.EqualValues(t, 1, guard.Stats().Refused)
		})
	}
}

// googleAccount writes the key file of a service account that gets its tokens from a test server. It returns the file's
// path.
func googleAccount(t *testing.T) string {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"access_token":"t","token_type":"Bearer","expires_in":3600}`)
	}))
	t.Cleanup(srv.Close)
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	der, err := x509.MarshalPKCS8PrivateKey(private)
	require.NoError(t, err)
	account, err := json.Marshal(map[string]string{
		"type": "service_account", "client_email": "test@example.com", "token_uri": srv.URL,
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
	})
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "account.json")
	require.NoError(t, os.WriteFile(path, account, 0o600))
	return path
}
