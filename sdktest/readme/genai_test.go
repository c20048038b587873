package readme

import (
	"context"

	"google.golang.org/genai"

	"github.com/aiguard-go/aiguard"
)

func gemini(ctx context.Context, guard *aiguard.Guard) error {
	client, err := genai.NewClient(ctx, &genai.ClientConfig{HTTPClient: guard.HTTPClient()})
	if err != nil {
		return err
	}
	_, err = client.Models.GenerateContent(ctx, model, genai.Text("Hi"), nil)
	return err
}
