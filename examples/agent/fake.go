package main

import (
	"fmt"
	"time"

	"github.com/aiguard-go/aiguard/aiguardtest"
)

// startFake starts a provider whose model asks for tools for ever.
func startFake() *aiguardtest.Server {
	fake := aiguardtest.Start()
	fake.Handle(func(r *aiguardtest.Request) aiguardtest.Reply {
		calls := []string{
			toolCall(r.Number, 0, "search", `{"query":"Rome"}`),
			toolCall(r.Number, 1, "read", `{"page":"rome.html"}`),
			toolCall(r.Number, 2, "read", `{"page":"slow.html"}`),
		}
		body := fmt.Sprintf(`{"object":"chat.completion","model":%q,"choices":[{"index":0,"finish_reason":"tool_calls",`+
			`"message":{"role":"assistant","content":null,"tool_calls":[%s]}}],"usage":{"prompt_tokens":%d,"completion_tokens":60}}`,
			r.Model, calls[r.Number%len(calls)], len(r.Body)/4)
		return aiguardtest.After(20*time.Millisecond, aiguardtest.JSON(200, body))
	})
	return fake
}

func toolCall(step, i int, name, arguments string) string {
	return fmt.Sprintf(`{"id":"call_%d_%d","type":"function","function":{"name":%q,"arguments":%q}}`, step, i, name, arguments)
}
