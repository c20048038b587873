package readme

import (
	"context"

	"github.com/cloudwego/eino-ext/components/model/openai"
	"github.com/cloudwego/eino/schema"

	"github.com/aiguard-go/aiguard"
)

func einoExt(ctx context.Context, guard *aiguard.Guard) error {
	chat, err := openai.NewChatModel(ctx, &openai.ChatModelConfig{APIKey: key, Model: model, HTTPClient: guard.HTTPClient()})
	if err != nil {
		return err
	}
	_, err = chat.Generate(ctx, []*schema.Message{schema.UserMessage("Hi")})
	return err
}
