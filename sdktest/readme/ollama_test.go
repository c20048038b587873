package readme

import (
	"context"

	"github.com/ollama/ollama/api"

	"github.com/aiguard-go/aiguard"
)

func ollama(ctx context.Context, guard *aiguard.Guard) error {
	client := api.NewClient(base, guard.HTTPClient())
	return client.Chat(ctx, &api.ChatRequest{Model: model, Messages: []api.Message{{Role: "user", Content: "Hi"}}},
		func(api.ChatResponse) error { return nil })
}
