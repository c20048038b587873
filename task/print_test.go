package task_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard/task"
)

func TestPrintingShowsNoInputOrResult(t *testing.T) {
	const secret = "SECRET"
	op := task.Operation{ID: "1", Name: "answer", Status: task.Failed, ErrorCode: task.KindInternal, ProgressNote: secret,
		Input: json.RawMessage(`"` + secret + `"`), Result: json.RawMessage(`"` + secret + `"`)}
	check := func(form, text string) {
		require.NotContains(t, text, secret, form)
		require.NotContains(t, text, "83 69 67 82 69 84", form) // its bytes in decimal
		require.Contains(t, text, "answer", form)
	}
	for _, v := range []any{op, &op} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%d"} {
			check(verb, fmt.Sprintf(verb, v))
		}
		var out bytes.Buffer
		slog.New(slog.NewTextHandler(&out, nil)).Info("m", "operation", v)
		slog.New(slog.NewJSONHandler(&out, nil)).Info("m", "operation", v)
		check("slog", out.String())
	}
	op.Result = nil
	b, err := json.Marshal(op) // JSON is for clients and includes Result
	require.NoError(t, err)
	require.NotContains(t, string(b), `"`+secret+`"}`)
	require.NotContains(t, string(b), `"input"`)
	require.NotContains(t, op.Err().Error(), secret)
}
