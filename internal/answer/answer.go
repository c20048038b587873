// Package answer judges the bytes that come back from a provider: is this an answer of the endpoint
// that was asked, is it complete, or is it an error in disguise. It reads nothing and waits for nothing.
package answer

import (
	"strings"

	"github.com/aiguard-go/aiguard/internal/jsonscan"
)

// MaxShape is what an answer may be made of: a decoder turns each object into kilobytes.
var MaxShape = jsonscan.Limits{Containers: 100_000, Depth: 100}

// Endpoint is the family of API an answer belongs to; it decides what an answer looks like.
type Endpoint int8

// The endpoints whose answers are known. Other stands for all the rest.
const (
	Other Endpoint = iota
	Chat
	Completions
	Responses
	Embeddings
	Messages // Anthropic
	Moderations
	Images
	Audio
)

// EndpointOf tells the endpoint a POST to path goes to, under any base URL (OpenAI, Azure deployments,
// proxies). Paths that only look alike, such as /threads/{id}/messages, are Other.
func EndpointOf(path string) Endpoint {
	path = strings.TrimSuffix(path, "/")
	switch {
	case strings.Contains(path, "/threads/"):
		return Other
	case strings.HasSuffix(path, "/chat/completions"):
		return Chat
	case strings.HasSuffix(path, "/completions"):
		return Completions
	case strings.HasSuffix(path, "/responses"):
		return Responses
	case strings.HasSuffix(path, "/embeddings"):
		return Embeddings
	case strings.HasSuffix(path, "/messages"):
		return Messages
	case strings.HasSuffix(path, "/moderations"):
		return Moderations
	case strings.Contains(path, "/images/"):
		return Images
	case strings.Contains(path, "/audio/"):
		return Audio
	}
	return Other
}

// Op names the call for errors, logs and metrics.
func (e Endpoint) Op() string {
	return [...]string{"", "chat.completions", "completions", "responses", "embeddings", "messages",
		"moderations", "images", "audio"}[e]
}

// Inference reports whether a POST creates nothing at the provider, so that a repeat costs tokens at worst.
func (e Endpoint) Inference() bool { return e != Other }

// JSON reports whether an answer that is not a stream must be JSON, whatever the request accepts.
func (e Endpoint) JSON() bool {
	return e != Other && e != Audio
}

// Failure is what a provider says went wrong.
type Failure struct {
	Code, Type, Message, Param string
	InnerCode                  string // Azure's inner error
}
