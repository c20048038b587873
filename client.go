package aiguard

// Pipeline: Client, Transport or Do → budget → line → route → attempt → retry → result or *Error.
// This file: the entry for go-openai.

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	openai "github.com/sashabaranov/go-openai"

	"github.com/aiguard-go/aiguard/internal/dialect"
	"github.com/aiguard-go/aiguard/internal/errtree"
)

// Client is go-openai's client with limits on every method. It embeds an *openai.Client that sends its requests
// through Guard.Transport.
//
// The methods declared here also know the request. They check its prompt and limit its output tokens. Each failure
// they return is an *Error with the facts, the caller's own error, or go-openai's refusal to send the request. The
// embedded methods are limited in time, concurrency, size and retries, and their failures are wrapped in *url.Error.
// A Client is safe for concurrent use.
type Client struct {
	*openai.Client
	guard  *Guard
	config openai.ClientConfig
	host   string // of the provider
}

// NewClient makes a Guard with New and returns its Client.
func NewClient(oc openai.ClientConfig, cfg Config) (*Client, error) {
	g, err := New(cfg)
	if err != nil {
		return nil, err
	}
	return g.Client(oc), nil
}

// Client returns a client for oc whose calls are limited by g. It respects oc.HTTPClient. If that is an *http.Client,
// its Transport becomes the base (nil: the Guard's own pool), its Jar and Timeout are kept, and redirects are not
// followed. Any other HTTPDoer becomes the base.
func (g *Guard) Client(oc openai.ClientConfig) *Client {
	g.must("Client")
	t := &transport{guard: g}
	hc := &http.Client{Transport: t}
	switch doer := oc.HTTPClient.(type) {
	case nil:
	case *http.Client:
		if doer != nil {
			t.base, hc.Jar, hc.Timeout = doer.Transport, doer.Jar, doer.Timeout
		}
	default:
		t.base = doerTransport{doer}
	}
	bounded := oc
	bounded.HTTPClient = hc
	c := &Client{guard: g, config: oc}
	if u, err := url.Parse(oc.BaseURL); err == nil {
		c.host = u.Host
		if hc.Jar == nil && hc.Timeout == 0 && u.User == nil {
			bounded.HTTPClient = sender{t}
		}
	}
	c.Client = openai.NewClientWithConfig(bounded)
	return c
}

// sender sends go-openai's requests as an http.Client does that has neither cookies nor a Timeout. It does not copy
// their headers for redirects, which the transport never returns.
type sender struct{ *transport }

func (s sender) Do(req *http.Request) (*http.Response, error) {
	resp, err := s.RoundTrip(req)
	if err != nil {
		return nil, &url.Error{Op: req.Method[:1] + strings.ToLower(req.Method[1:]), URL: req.URL.Redacted(), Err: err}
	}
	return resp, nil
}

type doerTransport struct{ openai.HTTPDoer }

func (d doerTransport) RoundTrip(req *http.Request) (*http.Response, error) { return d.Do(req) }

// Format prints only the type, for every verb, because the configuration contains the key.
func (c Client) Format(f fmt.State, verb rune) {
	fmt.Fprintf(f, fmt.FormatString(f, verb), "aiguard.Client")
}

// With returns a client that shares all limits with c and applies call's non-zero fields to its calls. It panics if a
// field of call is out of range.
func (c *Client) With(call Call) *Client { return c.guard.With(call).Client(c.config) }

// Guard returns the Guard that limits c.
func (c *Client) Guard() *Guard { return c.guard }

// CreateChatCompletion is openai.Client.CreateChatCompletion with limits.
func (c *Client) CreateChatCompletion(ctx context.Context, request openai.ChatCompletionRequest) (openai.ChatCompletionResponse, error) {
	k, err := c.chat(ctx, &request, false)
	if err != nil {
		return openai.ChatCompletionResponse{}, err
	}
	response, err := c.Client.CreateChatCompletion(k, request)
	return response, k.failure(err)
}

// CreateChatCompletionStream is openai.Client.CreateChatCompletionStream with limits. It returns at the first event.
// Recv returns later failures. The caller must close the stream.
func (c *Client) CreateChatCompletionStream(ctx context.Context, request openai.ChatCompletionRequest) (*openai.ChatCompletionStream, error) {
	k, err := c.chat(ctx, &request, true)
	if err != nil {
		return nil, err
	}
	stream, err := c.Client.CreateChatCompletionStream(k, request)
	if err != nil {
		return nil, k.failure(err)
	}
	return stream, nil
}

func (c *Client) chat(ctx context.Context, r *openai.ChatCompletionRequest, stream bool) (*known, error) {
	k := known{Context: ctx, op: "chat.completions", Facts: dialect.Facts{Model: r.Model, Stream: stream, Creates: r.Store}}
	s := c.settings(&k)
	capChat(r, s.outputLimit())
	p := prompt{texts: k.texts[:0]}
	p.chat(r)
	return &k, c.check(&k, &s, p)
}

// CreateCompletion is openai.Client.CreateCompletion with limits.
func (c *Client) CreateCompletion(ctx context.Context, request openai.CompletionRequest) (openai.CompletionResponse, error) {
	k, err := c.completion(ctx, &request, false)
	if err != nil {
		return openai.CompletionResponse{}, err
	}
	response, err := c.Client.CreateCompletion(k, request)
	return response, k.failure(err)
}

// CreateCompletionStream is openai.Client.CreateCompletionStream with limits. It returns at the first event, and the
// caller must close the stream.
func (c *Client) CreateCompletionStream(ctx context.Context, request openai.CompletionRequest) (*openai.CompletionStream, error) {
	k, err := c.completion(ctx, &request, true)
	if err != nil {
		return nil, err
	}
	stream, err := c.Client.CreateCompletionStream(k, request)
	if err != nil {
		return nil, k.failure(err)
	}
	return stream, nil
}

func (c *Client) completion(ctx context.Context, r *openai.CompletionRequest, stream bool) (*known, error) {
	k := known{Context: ctx, op: "completions", Facts: dialect.Facts{Model: r.Model, Stream: stream, Creates: r.Store}}
	s := c.settings(&k)
	r.MaxTokens = capped(r.MaxTokens, s.outputLimit())
	p := prompt{texts: k.texts[:0]}
	p.completion(r)
	return &k, c.check(&k, &s, p)
}

// CreateResponse is openai.Client.CreateResponse with limits.
func (c *Client) CreateResponse(ctx context.Context, request openai.CreateResponseRequest) (openai.CreateResponseResponse, error) {
	k, err := c.response(ctx, &request, false)
	if err != nil {
		return openai.CreateResponseResponse{}, err
	}
	response, err := c.Client.CreateResponse(k, request)
	return response, k.failure(err)
}

// CreateResponseStream is openai.Client.CreateResponseStream with limits. It returns at the first event, and the
// caller must close the stream.
func (c *Client) CreateResponseStream(ctx context.Context, request openai.CreateResponseRequest) (*openai.ResponseStream, error) {
	k, err := c.response(ctx, &request, true)
	if err != nil {
		return nil, err
	}
	stream, err := c.Client.CreateResponseStream(k, request)
	if err != nil {
		return nil, k.failure(err)
	}
	return stream, nil
}

func (c *Client) response(ctx context.Context, r *openai.CreateResponseRequest, stream bool) (*known, error) {
	k := known{Context: ctx, op: "responses", Facts: dialect.Facts{Model: r.Model, Stream: stream,
		Forgets: r.Store != nil && !*r.Store || r.ExtraBody["store"] == false,
		Creates: r.Background || r.Conversation != nil || r.Store != nil && *r.Store ||
			r.ExtraBody["background"] == true || r.ExtraBody["conversation"] != nil || r.ExtraBody["store"] == true}}
	s := c.settings(&k)
	capResponse(r, s.outputLimit())
	p := prompt{texts: k.texts[:0]}
	p.response(r)
	return &k, c.check(&k, &s, p)
}

// CreateEmbeddings is openai.Client.CreateEmbeddings with limits.
func (c *Client) CreateEmbeddings(ctx context.Context, conv openai.EmbeddingRequestConverter) (openai.EmbeddingResponse, error) {
	if conv == nil {
		panic("aiguard: CreateEmbeddings: nil request")
	}
	r := conv.Convert()
	k := known{Context: ctx, op: "embeddings", Facts: dialect.Facts{Model: string(r.Model)}}
	s := c.settings(&k)
	if err := c.check(&k, &s, embeddings(&r)...); err != nil {
		return openai.EmbeddingResponse{}, err
	}
	response, err := c.Client.CreateEmbeddings(&k, r)
	return response, k.failure(err)
}

// settings returns the settings of the call for a request, and notes its configuration in k.
func (c *Client) settings(k *known) settings {
	mustContext("Client", k.Context)
	k.live = c.guard.current.Load()
	return c.guard.requestSettings(k.Context, k.live, k.op, k.Model, c.host, "")
}

// check checks the prompts of a request.
func (c *Client) check(k *known, s *settings, prompts ...prompt) error {
	defer clear(k.texts[:]) // a context may be printed, and a prompt must not be
	for i := range prompts {
		if err := s.checkPrompt(&prompts[i]); err != nil {
			refused := *s // a copy, so that the caller's settings stay on its stack
			return c.guard.refuse(k.Context, &refused, err)
		}
	}
	return nil
}

// failure unwraps the transport's error from net/http's *url.Error. Other errors are go-openai's: a request it
// refused to send, or an answer it could not decode.
func (k *known) failure(err error) error {
	if err == nil {
		return nil
	}
	if ue := errtree.Find[*url.Error](err); ue != nil {
		return ue.Err
	}
	if k.answered {
		return &Error{Kind: ErrInvalidResponse, Op: k.op, Model: k.Model, StatusCode: http.StatusOK, Attempts: 1, Err: err}
	}
	return err
}
