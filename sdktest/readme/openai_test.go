package readme

import (
	"context"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"

	"github.com/aiguard-go/aiguard"
)

func openaiGo(ctx context.Context, guard *aiguard.Guard) error {
	client := openai.NewClient(option.WithHTTPClient(guard.HTTPClient()), option.WithMaxRetries(0))
	_, err := client.Chat.Completions.New(ctx, openai.ChatCompletionNewParams{Model: model,
		Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage("Hi")}})
	return err
}
