package tokenguard_test

import (
	"fmt"

	openai "github.com/sashabaranov/go-openai"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/tokenguard"
)

func Example() {
	_, err := aiguard.New(aiguard.Config{MaxPromptTokens: 8000, CountTokens: tokenguard.Limit(8000)})
	fmt.Println(err)
	// Output: <nil>
}

func ExampleCount() {
	n, _ := tokenguard.Count("gpt-4", "tiktoken is great!")
	fmt.Println(n)
	// Output: 6
}

func ExampleTrim() {
	chat := []openai.ChatCompletionMessage{
		{Role: "system", Content: "You are terse."},
		{Role: "user", Content: "Who wrote Faust?"},
		{Role: "assistant", Content: "Goethe."},
		{Role: "user", Content: "When?"},
	}
	chat, err := tokenguard.Trim("gpt-4o", 26, chat)
	for _, m := range chat {
		fmt.Println(m.Role+":", m.Content)
	}
	fmt.Println(err)
	// Output:
	// system: You are terse.
	// assistant: Goethe.
	// user: When?
	// <nil>
}
