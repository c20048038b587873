// Package tokenguard counts the tokens of prompts as OpenAI's models do, for Config.MaxPromptTokens, and trims
// conversations to a number of tokens. The vocabularies are compiled in: nothing is downloaded.
//
//	aiguard.Config{MaxPromptTokens: 8000, CountTokens: tokenguard.Limit(8000)}
//
// Most programs need Limit, and Trim for chats that grow. The counts of texts are exact for the models that Encoding
// knows; those of messages follow OpenAI's published formula, which OpenAI calls an estimate.
//
// # Cost
//
// A program grows by 12 MB. The first count with an encoding builds its tables, once for the process and for good:
// o200k_base takes 0.15 s and 17 MB of heap, cl100k_base 0.05 s and 8 MB, where measured. After that a kilobyte of
// English takes some 0.04 ms, of Chinese 0.1 ms, of text made to be slow 0.5 ms, always in proportion to the length;
// words of up to 64 bytes allocate nothing. Limit, Fits and Trim stop counting where the limit is passed, and don't
// begin where the size in bytes tells.
//
// All functions are safe for concurrent use.
package tokenguard

import (
	"math"
	"unicode/utf8"

	openai "github.com/sashabaranov/go-openai"
)

// What a chat message costs besides its texts, from num_tokens_from_messages in OpenAI's cookbook
// ("How to count tokens with tiktoken").
const (
	perMessage = 3 // the marks around it
	perRole    = 1 // every role is one token
	perName    = 1
	perReply   = 3 // primes the answer, once for a request

	// OpenAI has not published how calls are written; this is what a message takes.
	perToolCall = 3
)

// Count returns how many tokens text is for model: the text alone, without what a message costs around it. For a model
// that Encoding does not know it is the larger of the counts by o200k_base and cl100k_base. Invalid UTF-8 is counted
// as encoding/json sends it. More than 16 KiB of letters, symbols or white space without a break, which no language
// has, are counted in parts and may come out a few tokens off. The error is nil unless a vocabulary is damaged.
//
// It fits Config.CountTokens, but counts without bound and without messages: see Limit.
func Count(model, text string) (int, error) {
	return count(modelOf(model), text, math.MaxInt)
}

// CountMessages returns how many tokens messages are for a chat with model, the priming of the reply included. Images,
// sounds and files are not counted, nor the definitions of tools, which are not part of the messages.
func CountMessages(model string, messages []openai.ChatCompletionMessage) (int, error) {
	m, total := modelOf(model), perReply
	for i := range messages {
		n, err := countMessage(m, &messages[i], math.MaxInt)
		if err != nil {
			return 0, err
		}
		total += n
	}
	return total, nil
}

// Limit returns a counter for Config.CountTokens with a MaxPromptTokens of max. It counts each text of a chat model
// as a message of its own, because Config.CountTokens sees texts only: a conversation comes out as CountMessages has
// it, but for the three tokens that prime the reply, and requests with names, tools or several parts in a message
// come out higher.
//
// aiguard.New refuses a counter that reaches less far than MaxPromptTokens. A text of more than max tokens is not
// counted to its end: the counter then returns some number over max that is no more than the text has. Text that must
// be over the limit, as no token is long enough, is not counted at all.
func Limit(max int) func(model, text string) (int, error) {
	return func(model, text string) (int, error) {
		m := modelOf(model)
		n, err := count(m, text, max)
		if m.chat && err == nil {
			n += perMessage + perRole
		}
		return n, err
	}
}

// Fits reports whether texts, taken together, are at most max tokens for model. It is Count without the cost where the
// sizes in bytes tell: up to max bytes always fit, and no vocabulary is loaded to say so.
func Fits(model string, max int, texts ...string) (bool, error) {
	most := 0
	for _, text := range texts {
		most += atMost(text)
	}
	if most <= max {
		return true, nil
	}
	m, left := modelOf(model), max
	for _, text := range texts {
		n, err := count(m, text, left)
		if left -= n; left < 0 || err != nil {
			return false, err
		}
	}
	return true, nil
}

// atMost is an upper bound of the tokens in text: a token is a byte at least. An invalid byte is sent as the three of
// U+FFFD.
func atMost(text string) int {
	if utf8.ValidString(text) {
		return len(text)
	}
	return 3 * len(text)
}

// count counts up to limit: a result above it says only that there are more.
func count(m model, text string, limit int) (int, error) {
	most := 0
	for _, name := range m.encodings {
		e, err := encodingOf(name)
		if err != nil {
			return 0, err
		}
		most = max(most, e.count(text, limit))
	}
	return most, nil
}

// countMessage is count for a message with what it costs around its texts.
func countMessage(m model, msg *openai.ChatCompletionMessage, limit int) (total int, err error) {
	parts(msg, func(text string, around int) {
		total += around
		if err == nil && total <= limit {
			var n int
			n, err = count(m, text, limit-total)
			total += n
		}
	})
	return total, err
}

// parts calls f with each text of a message and the tokens around it.
func parts(msg *openai.ChatCompletionMessage, f func(text string, around int)) {
	f(msg.Content, perMessage+perRole)
	for i := range msg.MultiContent {
		f(msg.MultiContent[i].Text, 0)
	}
	if msg.Name != "" {
		f(msg.Name, perName)
	}
	f(msg.Refusal, 0)
	f(msg.ReasoningContent, 0)
	if c := msg.FunctionCall; c != nil {
		f(c.Name, perToolCall)
		f(c.Arguments, 0)
	}
	for i := range msg.ToolCalls {
		c := &msg.ToolCalls[i].Function
		f(c.Name, perToolCall)
		f(c.Arguments, 0)
	}
}
