package tokenguard

import (
	"slices"

	openai "github.com/sashabaranov/go-openai"

	"github.com/aiguard-go/aiguard"
)

// Trim drops the oldest messages until the rest is at most max tokens for a chat with model, as CountMessages counts.
// It never drops a system or developer message or the last message of the user, and never half of a tool call: the
// assistant's message and the results that answer it stay or go together. The order stays.
//
// The error is an *aiguard.Error of kind ErrPromptTooLarge if what may not be dropped is too large by itself: Size is
// its tokens, or fewer where the count stopped because they are more than max by far. Leave room in max for the
// definitions of tools, for images and, where the context is shared, for the answer.
//
// messages is not changed; where nothing is dropped it is what Trim returns. Tokens are counted from the newest message
// back to the first that does not fit, and not at all where the sizes in bytes show that everything does.
func Trim(model string, max int, messages []openai.ChatCompletionMessage) ([]openai.ChatCompletionMessage, error) {
	if atMostIn(messages) <= max {
		return slices.Clip(messages), nil
	}
	units, m := unitsOf(messages), modelOf(model)
	left := max - perReply
	keep := make([]bool, len(messages))
	for k, unit := range units { // the first may not be dropped, then from the newest to the oldest
		size, err := unitSize(m, messages, unit, left)
		if err != nil {
			return nil, err
		}
		if size > left && k == 0 {
			return nil, &aiguard.Error{Kind: aiguard.ErrPromptTooLarge, Op: "chat.completions", Model: model,
				Phase: "prompt_tokens", Size: int64(perReply + size), Max: int64(max)}
		}
		if size > left {
			break
		}
		left -= size
		for _, i := range unit {
			keep[i] = true
		}
	}
	kept := make([]openai.ChatCompletionMessage, 0, len(messages))
	for i := range messages {
		if keep[i] {
			kept = append(kept, messages[i])
		}
	}
	return kept, nil
}

// unitSize counts the messages of a unit. Over limit it stops, and returns a number between limit and what they have.
func unitSize(m model, messages []openai.ChatCompletionMessage, unit []int, limit int) (int, error) {
	size := 0
	for _, i := range unit {
		n, err := countMessage(m, &messages[i], limit-size)
		if size += n; err != nil || size > limit {
			return size, err
		}
	}
	return size, nil
}

// unitsOf groups messages, by their indexes, into what is dropped or kept as one: first what is always kept, then the
// others from the newest to the oldest. A call and its results are as old as the call.
func unitsOf(messages []openai.ChatCompletionMessage) [][]int {
	question := -1 // the user's last
	for i, msg := range slices.Backward(messages) {
		if msg.Role == openai.ChatMessageRoleUser {
			question = i
			break
		}
	}
	units := [][]int{nil}
	calls := map[string]int{} // the unit of each call, by its id; of those with the same id the latest
	function := -1            // the unit of a call in the older form, which has no id
	for i := range messages {
		msg := &messages[i]
		unit, answers := 0, false
		switch {
		case msg.Role == openai.ChatMessageRoleSystem, msg.Role == openai.ChatMessageRoleDeveloper, i == question:
			units[0] = append(units[0], i)
			continue
		case msg.Role == openai.ChatMessageRoleTool:
			unit, answers = calls[msg.ToolCallID], calls[msg.ToolCallID] > 0
		case msg.Role == openai.ChatMessageRoleFunction:
			unit, answers = function, function > 0
		}
		if answers {
			units[unit] = append(units[unit], i)
			continue
		}
		for _, call := range msg.ToolCalls {
			calls[call.ID] = len(units)
		}
		if msg.FunctionCall != nil {
			function = len(units)
		}
		units = append(units, []int{i})
	}
	slices.Reverse(units[1:])
	return units
}

// atMostIn is an upper bound of the tokens in messages.
func atMostIn(messages []openai.ChatCompletionMessage) int {
	most := perReply
	for i := range messages {
		parts(&messages[i], func(text string, around int) { most += atMost(text) + around })
	}
	return most
}
