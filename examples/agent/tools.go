package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	openai "github.com/sashabaranov/go-openai"

	"github.com/aiguard-go/aiguard"
)

// maxResult is how much of a tool's result the model gets. Each further step pays for it again.
const maxResult = 2000 // bytes

var definitions = []openai.Tool{
	define("search", "Find pages.", "query"),
	define("read", "Read a page.", "page"),
}

func define(name, description, parameter string) openai.Tool {
	return openai.Tool{Type: openai.ToolTypeFunction, Function: &openai.FunctionDefinition{
		Name: name, Description: description,
		Parameters: json.RawMessage(fmt.Sprintf(`{"type":"object","properties":{%q:{"type":"string"}},"required":[%q]}`, parameter, parameter)),
	}}
}

// toolbox calls tools under a guard, which bounds their time and how many run at once.
type toolbox struct{ guard *aiguard.Guard }

// call returns what the model gets to read, be it a failure.
func (t toolbox) call(ctx context.Context, f openai.FunctionCall) string {
	result, err := aiguard.Do(ctx, t.guard.With(aiguard.Call{Op: "tool"}), func(ctx context.Context) (string, error) {
		var arguments struct{ Query, Page string }
		if err := json.Unmarshal([]byte(f.Arguments), &arguments); err != nil {
			return "", fmt.Errorf("the arguments are not JSON: %w", err)
		}
		switch f.Name {
		case "search":
			return search(ctx, arguments.Query)
		case "read":
			return read(ctx, arguments.Page)
		}
		return "", fmt.Errorf("there is no tool %q", f.Name)
	})
	switch {
	case aiguard.KindOf(err) == aiguard.ErrTimeout:
		return "The tool took too long."
	case err != nil:
		return "The tool failed: " + err.Error()
	case len(result) > maxResult:
		return strings.ToValidUTF8(result[:maxResult], "") + " [cut]"
	}
	return result
}

// search and read stand for what a service has.

func search(_ context.Context, query string) (string, error) {
	return "Pages about " + query + ": rome.html, slow.html", nil
}

func read(ctx context.Context, page string) (string, error) {
	if page == "slow.html" { // from a server that does not answer
		<-ctx.Done()
		return "", ctx.Err()
	}
	return strings.Repeat("Rome was not built in a day. ", 1000), nil
}
