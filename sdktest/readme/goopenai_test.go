package readme

import (
	"context"

	"github.com/sashabaranov/go-openai"

	"github.com/aiguard-go/aiguard"
)

func goOpenAI(ctx context.Context, guard *aiguard.Guard) error {
	client := guard.Client(openai.DefaultConfig(key))
	_, err := client.CreateChatCompletion(ctx, openai.ChatCompletionRequest{Model: model,
		Messages: []openai.ChatCompletionMessage{{Role: "user", Content: "Hi"}}})
	return err
}
