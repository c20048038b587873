package readme

import (
	"context"

	"github.com/tmc/langchaingo/llms"
	"github.com/tmc/langchaingo/llms/anthropic"
	"github.com/tmc/langchaingo/llms/openai"

	"github.com/aiguard-go/aiguard"
)

func langchainOpenAI(ctx context.Context, guard *aiguard.Guard) error {
	llm, err := openai.New(openai.WithHTTPClient(guard.HTTPClient()))
	if err != nil {
		return err
	}
	_, err = llms.GenerateFromSinglePrompt(ctx, llm, "Hi")
	return err
}

func langchainAnthropic(ctx context.Context, guard *aiguard.Guard) error {
	llm, err := anthropic.New(anthropic.WithHTTPClient(guard.HTTPClient()))
	if err != nil {
		return err
	}
	_, err = llms.GenerateFromSinglePrompt(ctx, llm, "Hi")
	return err
}
