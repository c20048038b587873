package readme

import (
	"context"

	"github.com/anthropics/anthropic-sdk-go"
	"github.com/anthropics/anthropic-sdk-go/bedrock"
	"github.com/anthropics/anthropic-sdk-go/option"
	"github.com/anthropics/anthropic-sdk-go/vertex"

	"github.com/aiguard-go/aiguard"
)

func anthropicSDK(ctx context.Context, guard *aiguard.Guard) error {
	client := anthropic.NewClient(option.WithHTTPClient(guard.HTTPClient()), option.WithMaxRetries(0))
	return message(ctx, client)
}

func anthropicBedrock(ctx context.Context, guard *aiguard.Guard) error {
	client := anthropic.NewClient(option.WithHTTPClient(guard.HTTPClient()), option.WithMaxRetries(0), bedrock.WithLoadDefaultConfig(ctx))
	return message(ctx, client)
}

func anthropicVertex(ctx context.Context, guard *aiguard.Guard) error {
	client := anthropic.NewClient(option.WithHTTPClient(guard.HTTPClient()), option.WithMaxRetries(0), vertex.WithGoogleAuth(ctx, region, project))
	return message(ctx, client)
}

func message(ctx context.Context, client anthropic.Client) error {
	_, err := client.Messages.New(ctx, anthropic.MessageNewParams{Model: model, MaxTokens: 16,
		Messages: []anthropic.MessageParam{anthropic.NewUserMessage(anthropic.NewTextBlock("Hi"))}})
	return err
}
