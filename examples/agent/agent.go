package main

import (
	"context"
	"fmt"
	"io"

	openai "github.com/sashabaranov/go-openai"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/budget"
)

// agent answers questions with the help of tools.
type agent struct {
	client  *aiguard.Client
	toolbox toolbox
	out     io.Writer
}

// ask lets the model call tools until it answers. The loop has no bound of its own: the run of ctx ends it.
func (a *agent) ask(ctx context.Context, question string) (string, error) {
	r := openai.ChatCompletionRequest{
		Model:     model,
		MaxTokens: 200, // what is reserved for each step
		Tools:     definitions,
		Messages:  []openai.ChatCompletionMessage{{Role: openai.ChatMessageRoleUser, Content: question}},
	}
	for step := 1; ; step++ {
		before := budget.Spent(ctx).Cost
		resp, err := a.client.CreateChatCompletion(ctx, r)
		if err != nil {
			return "", err
		}
		after := budget.Spent(ctx).Cost
		message := resp.Choices[0].Message
		fmt.Fprintf(a.out, "step %d: cost %v, %v in all\n", step, after-before, after)
		if len(message.ToolCalls) == 0 {
			return message.Content, nil
		}
		r.Messages = append(r.Messages, message)
		for _, call := range message.ToolCalls {
			result := a.toolbox.call(ctx, call.Function)
			fmt.Fprintf(a.out, "\t%s: %d bytes\n", call.Function.Name, len(result))
			r.Messages = append(r.Messages, openai.ChatCompletionMessage{Role: openai.ChatMessageRoleTool, ToolCallID: call.ID, Content: result})
		}
	}
}
