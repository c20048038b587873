package tokenguard

import (
	"slices"

	openai "github.com/sashabaranov/go-openai"

	"github.com/aiguard-go/aiguard"
)

// Trim drops the oldest messages until the rest has at most max tokens for a chat with model, counted as in
// CountMessages. It always keeps system messages, developer messages and the last user message. It keeps or drops a
// tool call together with its results. The order of the messages stays.
//
// If the messages that Trim must keep exceed max, it returns an *aiguard.Error of kind ErrPromptTooLarge. Its Size is
// their count, or less if counting stopped early. Leave room in max for the definitions of tools, for images and, if
// the context window is shared, for the answer.
//
// Trim does not modify messages. If nothing is dropped, Trim returns messages itself. It counts from the newest
// message back to the first that does not fit. It does not count at all if the sizes in bytes show that everything
// fits.
func Trim(model string, max int, messages []openai.ChatCompletionMessage) ([]openai.ChatCompletionMessage, error) {
	if atMostIn(messages) <= max {
		return slices.Clip(messages), nil
	}
	units, m := unitsOf(messages), modelOf(model)
	left := max - perReply
	keep := make([]bool, len(messages))
	for k, unit := range units { // the first unit must be kept; the others go from newest to oldest
		size, err := unitSize(m, messages, unit, left)
		if err != nil {
			return nil, err
		}
		if size > left && k == 0 {
			return nil, &aiguard.Error{Kind: aiguard.ErrPromptTooLarge, Op: "chat.completions", Model: model,
				Phase: aiguard.PhasePromptTokens, Size: int64(perReply + size), Max: int64(max)}
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

// unitSize counts the messages of a unit. It stops above limit and then returns a number between limit and the real
// count.
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

// unitsOf groups messages, by index, into units that are kept or dropped together. The first unit is always kept. The
// others go from newest to oldest. A tool call and its results count as old as the call.
func unitsOf(messages []openai.ChatCompletionMessage) [][]int {
	question := -1 // last user message
	for i, msg := range slices.Backward(messages) {
		if msg.Role == openai.ChatMessageRoleUser {
			question = i
			break
		}
	}
	units := [][]int{nil}
	calls := map[string]int{} // unit of each call by ID; the latest of duplicate IDs
	function := -1            // unit of a call in the older form without an ID
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

// atMostIn returns an upper bound of the tokens in messages.
func atMostIn(messages []openai.ChatCompletionMessage) int {
	most := perReply
	for i := range messages {
		parts(&messages[i], func(text string, around int) { most += atMost(text) + around })
	}
	return most
}
