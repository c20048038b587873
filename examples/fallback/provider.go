package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	openai "github.com/sashabaranov/go-openai"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
)

// otherProvider falls back from OpenAI to Azure, and from Azure to a self-hosted server such as vLLM, Ollama or
// llama.cpp. Each provider has its own guard, because each has its own capacity. One guard would be enough for pauses
// and outages, which a guard tracks per host and model.
func otherProvider(ctx context.Context, p *providers, out io.Writer) error {
	azure := openai.DefaultAzureConfig("key", strings.TrimSuffix(p.azure.URL, "/v1")) // https://NAME.openai.azure.com
	azure.AzureModelMapperFunc = func(model string) string { return "our-" + model }  // the deployment's name
	clients := make([]*aiguard.Client, 0, 3)
	for _, oc := range []openai.ClientConfig{config(p.openai), azure, config(p.local)} {
		client, err := aiguard.NewClient(oc, aiguard.Config{Retry: quick})
		if err != nil {
			return err
		}
		defer client.Guard().Close()
		clients = append(clients, client)
	}
	p.azure.SetDefault(aiguardtest.Text("Rome, says Azure."))
	p.local.SetDefault(aiguardtest.Text("Rome, says our own server."))

	const question = "What is the capital of Italy?"
	for _, outage := range []struct {
		what string
		down *aiguardtest.Server
	}{{"OpenAI", p.openai}, {"Azure too", p.azure}} {
		outage.down.SetDefault(down())
		fmt.Fprintf(out, "down: %s\n", outage.what)
		answer, err := aiguard.Fallback(ctx,
			ask(clients[0], "gpt-4o", question), ask(clients[1], "gpt-4o", question), ask(clients[2], "llama3", question))
		report(out, answer, err)
		fmt.Fprintf(out, "requests: %d to OpenAI, %d to Azure, %d to our own\n",
			p.openai.Count(), p.azure.Count(), p.local.Count())
	}
	return nil
}
