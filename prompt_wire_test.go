package aiguard_test

import (
	"encoding/json"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"time"

	openai "github.com/sashabaranov/go-openai"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
	"github.com/aiguard-go/aiguard/internal/linear"
)

// generator makes requests with texts of every kind in every field.
type generator struct{ *rand.Rand }

func (g generator) text() string {
	pieces := []string{"a", "word ", "é", "中文", "😀", "\n", "\t", `"`, `\`, "<b>&", "\u2028", "\x00", "/", " "}
	var b strings.Builder
	for range g.IntN(8) {
		b.WriteString(pieces[g.IntN(len(pieces))])
	}
	return b.String()
}

func (g generator) maybe() bool { return g.IntN(2) == 0 }

func (g generator) value(depth int) any {
	switch n := g.IntN(7); {
	case n == 0 && depth < 4:
		m := map[string]any{}
		for range g.IntN(4) {
			m[g.text()] = g.value(depth + 1)
		}
		if g.maybe() {
			m["type"] = []any{"input_image", "text", "object", 7}[g.IntN(4)]
		}
		if g.maybe() {
			m["data"] = g.value(depth + 1)
		}
		return m
	case n == 1 && depth < 4:
		list := []any{}
		for range g.IntN(4) {
			list = append(list, g.value(depth+1))
		}
		return list
	case n == 2:
		return g.Float64()
	case n == 3:
		return g.maybe()
	case n == 4:
		return nil
	}
	return g.text()
}

func (g generator) schema() any {
	if g.maybe() {
		b, _ := json.MarshalIndent(g.value(0), " ", "\t")
		return json.RawMessage(b)
	}
	return g.value(0)
}

func (g generator) tools() (tools []openai.Tool) {
	for range g.IntN(3) {
		f := openai.FunctionDefinition{Name: g.text(), Description: g.text(), Parameters: g.schema()}
		tool := openai.Tool{Type: "function", Function: &f}
		if g.maybe() {
			tool = openai.NewResponseFunctionTool(f)
		}
		tools = append(tools, tool)
	}
	return tools
}

func (g generator) chat() any {
	r := openai.ChatCompletionRequest{Model: g.text(), User: g.text(), Tools: g.tools(), Metadata: map[string]string{"k": g.text()}, Stop: []string{g.text()}}
	for range 1 + g.IntN(3) {
		m := openai.ChatCompletionMessage{Role: "user", Name: g.text(), Refusal: g.text(), ReasoningContent: g.text()}
		if g.maybe() {
			m.Content = g.text()
		} else {
			m.MultiContent = []openai.ChatMessagePart{{Type: "text", Text: g.text()}, {Type: "image_url", ImageURL: &openai.ChatMessageImageURL{URL: g.text()}}}
		}
		if g.maybe() {
			m.FunctionCall = &openai.FunctionCall{Name: g.text(), Arguments: g.text()}
			m.ToolCalls = []openai.ToolCall{{ID: g.text(), Function: openai.FunctionCall{Name: g.text(), Arguments: g.text()}}}
		}
		r.Messages = append(r.Messages, m)
	}
	if g.maybe() {
		r.Functions = []openai.FunctionDefinition{{Name: g.text(), Parameters: g.schema()}}
		b, _ := json.Marshal(g.schema())
		r.ResponseFormat = &openai.ChatCompletionResponseFormat{JSONSchema: &openai.ChatCompletionResponseFormatJSONSchema{Name: g.text(), Description: g.text(), Schema: json.RawMessage(b)}}
		r.Prediction = &openai.Prediction{Content: g.text()}
		r.GuidedChoice = []string{g.text(), g.text()}
	}
	return r
}

func (g generator) completion() any {
	return openai.CompletionRequest{Model: g.text(), Suffix: g.text(), Prompt: []any{g.text(), []string{g.text(), g.text()}, []any{g.text(), g.text()}, []int{1, 2, 3}, [][]int{{1}, {2, 3}}}[g.IntN(5)]}
}

func (g generator) response() any {
	r := openai.CreateResponseRequest{Model: g.text(), Instructions: g.text(), Input: []any{g.text(), g.value(0), []string{g.text()}, []int{4, 5}}[g.IntN(4)], User: g.text()}
	r.Tools = append(r.Tools, g.tools()...)
	if g.maybe() {
		r.ExtraBody = map[string]any{"x": g.value(0), "y": g.text(), "include": []string{g.text()}}
	}
	return r
}

func (g generator) embeddings() any {
	var inputs []string
	for range g.IntN(4) {
		inputs = append(inputs, []string{"", "data:image/png;base64,QUJD"}[g.IntN(2)]+g.text())
	}
	return openai.EmbeddingRequest{Model: openai.EmbeddingModel(g.text()), User: g.text(),
		Input: []any{g.text(), inputs, []int{1, 2, 3}, [][]int{{1, 2}, {3}}, []any{g.text(), map[string]any{"text": g.text()}}}[g.IntN(5)]}
}

// Client counts before it encodes, Transport in what was encoded: for every request at every limit they agree.
func TestClientAndTransportCountTheSame(t *testing.T) {
	for name, tc := range map[string]struct {
		path  string
		make  func(generator) any
		reply string
		call  func(t *testing.T, c *aiguard.Client, r any) error
	}{
		"chat": {"/chat/completions", generator.chat, goodAnswer, func(t *testing.T, c *aiguard.Client, r any) error {
			_, err := c.CreateChatCompletion(t.Context(), r.(openai.ChatCompletionRequest))
			return err
		}},
		"completions": {"/completions", generator.completion, goodAnswer, func(t *testing.T, c *aiguard.Client, r any) error {
			_, err := c.CreateCompletion(t.Context(), r.(openai.CompletionRequest))
			return err
		}},
		"responses": {"/responses", generator.response, `{"id":"r","status":"completed","output":[]}`, func(t *testing.T, c *aiguard.Client, r any) error {
			_, err := c.CreateResponse(t.Context(), r.(openai.CreateResponseRequest))
			return err
		}},
		"embeddings": {"/embeddings", generator.embeddings, `{"data":[{}]}`, func(t *testing.T, c *aiguard.Client, r any) error {
			_, err := c.CreateEmbeddings(t.Context(), r.(openai.EmbeddingRequest))
			return err
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var body []byte
			base := roundTripper(func(req *http.Request) (*http.Response, error) {
				body, _ = io.ReadAll(req.Body)
				return &http.Response{StatusCode: 200, Request: req, Header: http.Header{"Content-Type": {"application/json"}}, ContentLength: -1,
					Body: io.NopCloser(strings.NewReader(tc.reply))}, nil
			})
			oc := openai.DefaultConfig("k")
			oc.HTTPClient = &http.Client{Transport: base}
			g := generator{rand.New(rand.NewPCG(7, 8))}
			guard := func(limit int) *aiguard.Guard {
				return newGuard(t, aiguard.Config{MaxPromptChars: limit, Retry: aiguard.Retry{MaxAttempts: 1}})
			}
			free := guard(aiguard.Off).Client(oc)
			limits := map[int]*aiguard.Guard{}
			refused := 0
			for range 300 {
				r := tc.make(g)
				if err := tc.call(t, free, r); err != nil && aiguard.KindOf(err) == "" {
					continue // go-openai does not send it
				}
				sent := string(body)
				for limit := 1; limit < 400; limit += 1 + limit/8 {
					if limits[limit] == nil {
						limits[limit] = guard(limit)
					}
					byClient := tc.call(t, limits[limit].Client(oc), r)
					req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://provider/v1"+tc.path, strings.NewReader(sent))
					require.NoError(t, err)
					req.Header.Set("Content-Type", "application/json")
					resp, byTransport := limits[limit].Transport(base).RoundTrip(req)
					if byTransport == nil {
						resp.Body.Close()
					}
					require.Equal(t, aiguard.KindOf(byClient), aiguard.KindOf(byTransport), "limit %d: %s\nClient: %v\nTransport: %v", limit, sent, byClient, byTransport)
					if byTransport != nil {
						refused++
						facts(t, byTransport, aiguard.ErrPromptTooLarge)
					}
				}
			}
			require.Greater(t, refused, 100)
		})
	}
}

// dialectRequests has a text in each field that a model reads, for every dialect.
var dialectRequests = map[string]struct {
	path string
	body func(text string) string
}{
	"Anthropic, message":       {"/v1/messages", func(s string) string { return `{"model":"m","messages":[{"role":"user","content":"` + s + `"}]}` }},
	"Anthropic, block":         {"/v1/messages", func(s string) string { return `{"messages":[{"content":[{"type":"text","text":"` + s + `"}]}]}` }},
	"Anthropic, system":        {"/v1/messages", func(s string) string { return `{"system":"` + s + `","messages":[]}` }},
	"Anthropic, system blocks": {"/v1/messages", func(s string) string { return `{"system":[{"type":"text","text":"` + s + `"}]}` }},
	"Anthropic, thinking": {"/v1/messages", func(s string) string {
		return `{"messages":[{"content":[{"type":"thinking","thinking":"` + s + `"}]}]}`
	}},
	"Anthropic, tool":   {"/v1/messages", func(s string) string { return `{"tools":[{"name":"n","description":"` + s + `"}]}` }},
	"Anthropic, schema": {"/v1/messages", func(s string) string { return `{"tools":[{"name":"n","input_schema":{"description":"` + s + `"}}]}` }},
	"Anthropic, tool use": {"/v1/messages", func(s string) string {
		return `{"messages":[{"content":[{"type":"tool_use","input":{"a":"` + s + `"}}]}]}`
	}},
	"Anthropic, tool result": {"/v1/messages", func(s string) string {
		return `{"messages":[{"content":[{"type":"tool_result","content":[{"type":"text","text":"` + s + `"}]}]}]}`
	}},
	"Anthropic, plain document": {"/v1/messages", func(s string) string {
		return `{"messages":[{"content":[{"type":"document","source":{"type":"text","media_type":"text/plain","data":"` + s + `"}}]}]}`
	}},
	"Anthropic, fetched page": {"/v1/messages", func(s string) string {
		return `{"messages":[{"content":[{"type":"web_fetch_tool_result","content":{"type":"web_fetch_result","content":{"type":"document","source":{"type":"text","data":"` + s + `"}}}}]}]}`
	}},
	"Anthropic, output of a command": {"/v1/messages", func(s string) string {
		return `{"messages":[{"content":[{"type":"bash_code_execution_tool_result","content":{"type":"bash_code_execution_result","stdout":"` + s + `"}}]}]}`
	}},
	"Converse, document": {"/model/m/converse", func(s string) string {
		return `{"messages":[{"content":[{"document":{"format":"txt","name":"n","source":{"text":"` + s + `"}}}]}]}`
	}},
	"Converse, search result": {"/model/m/converse", func(s string) string {
		return `{"messages":[{"content":[{"toolResult":{"content":[{"searchResult":{"content":[{"text":"` + s + `"}]}}]}}]}]}`
	}},
	"chat, reasoning of OpenRouter": {"/v1/chat/completions", func(s string) string {
		return `{"messages":[{"role":"assistant","reasoning_details":[{"type":"reasoning.text","text":"` + s + `"}]}]}`
	}},
	"chat, thinking of Mistral": {"/v1/chat/completions", func(s string) string {
		return `{"messages":[{"content":[{"type":"thinking","thinking":[{"type":"text","text":"` + s + `"}]}]}]}`
	}},
	"chat, agents of Mistral": {"/v1/agents/completions", func(s string) string { return `{"agent_id":"a","messages":[{"content":"` + s + `"}]}` }},
	"Anthropic, on Vertex":    {"/v1/projects/p/locations/l/publishers/anthropic/models/m:rawPredict", func(s string) string { return `{"messages":[{"content":"` + s + `"}]}` }},
	"Gemini, part":            {"/v1beta/models/m:generateContent", func(s string) string { return `{"contents":[{"parts":[{"text":"` + s + `"}]}]}` }},
	"Gemini, single content":  {"/v1beta/models/m:generateContent", func(s string) string { return `{"contents":{"parts":{"text":"` + s + `"}}}` }},
	"Gemini, tuned model":     {"/v1beta/tunedModels/m:generateContent", func(s string) string { return `{"contents":[{"parts":[{"text":"` + s + `"}]}]}` }},
	"Gemini, endpoint":        {"/v1/projects/p/locations/l/endpoints/1:streamGenerateContent", func(s string) string { return `{"contents":[{"parts":[{"text":"` + s + `"}]}]}` }},
	"Gemini, system":          {"/v1beta/models/m:generateContent", func(s string) string { return `{"systemInstruction":{"parts":[{"text":"` + s + `"}]}}` }},
	"Gemini, function": {"/v1beta/models/m:generateContent", func(s string) string {
		return `{"tools":[{"functionDeclarations":[{"name":"n","description":"` + s + `"}]}]}`
	}},
	"Gemini, function response": {"/v1beta/models/m:generateContent", func(s string) string {
		return `{"contents":[{"parts":[{"functionResponse":{"name":"n","response":{"a":"` + s + `"}}}]}]}`
	}},
	"Gemini, schema": {"/v1beta/models/m:generateContent", func(s string) string { return `{"generationConfig":{"responseSchema":{"description":"` + s + `"}}}` }},
	"Gemini, embed":  {"/v1beta/models/m:embedContent", func(s string) string { return `{"content":{"parts":[{"text":"` + s + `"}]}}` }},
	"Gemini, embed a batch": {"/v1beta/models/m:batchEmbedContents", func(s string) string {
		return `{"requests":[{"content":{"parts":[{"text":"a"}]}},{"content":{"parts":[{"text":"` + s + `"}]}}]}`
	}},
	"Converse":         {"/model/m/converse", func(s string) string { return `{"messages":[{"content":[{"text":"` + s + `"}]}]}` }},
	"Converse, system": {"/model/m/converse", func(s string) string { return `{"system":[{"text":"` + s + `"}]}` }},
	"Converse, tool result": {"/model/m/converse-stream", func(s string) string {
		return `{"messages":[{"content":[{"toolResult":{"content":[{"text":"` + s + `"}]}}]}]}`
	}},
	"Converse, tool":   {"/model/m/converse", func(s string) string { return `{"toolConfig":{"tools":[{"toolSpec":{"description":"` + s + `"}}]}}` }},
	"Bedrock, Claude":  {"/model/anthropic.claude/invoke", func(s string) string { return `{"messages":[{"content":"` + s + `"}]}` }},
	"Bedrock, another": {"/model/amazon.titan/invoke", func(s string) string { return `{"inputText":"` + s + `"}` }},
	"Cohere":           {"/v2/chat", func(s string) string { return `{"messages":[{"role":"user","content":"` + s + `"}]}` }},
	"Cohere, document": {"/v2/chat", func(s string) string { return `{"documents":[{"data":{"text":"` + s + `"}}]}` }},
	"Cohere, embed":    {"/v2/embed", func(s string) string { return `{"texts":["a","` + s + `"]}` }},
	"Ollama, chat":     {"/api/chat", func(s string) string { return `{"stream":false,"messages":[{"content":"` + s + `"}]}` }},
	"Ollama, generate": {"/api/generate", func(s string) string { return `{"stream":false,"prompt":"` + s + `"}` }},
	"Ollama, system":   {"/api/generate", func(s string) string { return `{"stream":false,"system":"` + s + `"}` }},
	"Ollama, embed":    {"/api/embed", func(s string) string { return `{"input":["a","` + s + `"]}` }},
	"chat":             {"/v1/chat/completions", func(s string) string { return `{"messages":[{"content":"` + s + `"}]}` }},
	"chat, tool": {"/v1/chat/completions", func(s string) string {
		return `{"tools":[{"type":"function","function":{"parameters":{"a":"` + s + `"}}}]}`
	}},
	"responses, items": {"/v1/responses", func(s string) string {
		return `{"input":[{"role":"user","content":[{"type":"input_text","text":"` + s + `"}]}]}`
	}},
	"embeddings": {"/v1/embeddings", func(s string) string { return `{"input":["a","` + s + `"]}` }},
	"images":     {"/v1/images/generations", func(s string) string { return `{"prompt":"` + s + `"}` }},
	"speech":     {"/v1/audio/speech", func(s string) string { return `{"input":"` + s + `"}` }},
}

func TestOverlongTextInAnyFieldOfAnyDialectIsRefusedBeforeItIsSent(t *testing.T) {
	for name, r := range dialectRequests {
		t.Run(name, func(t *testing.T) {
			inVirtualTime(t, aiguard.Config{MaxPromptChars: 100, Retry: aiguard.Retry{MaxAttempts: 1}}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
				base := srv.Transport()
				defer base.CloseIdleConnections()
				host, _ := strings.CutSuffix(srv.URL, "/v1")
				send := func(body string, header ...string) error {
					req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, host+r.path, strings.NewReader(body))
					require.NoError(t, err)
					req.Header.Set("Content-Type", "application/json")
					resp, err := c.Guard().Transport(base).RoundTrip(req)
					if err == nil {
						resp.Body.Close()
					}
					return err
				}
				e := facts(t, send(r.body(strings.Repeat("中", 101))), aiguard.ErrPromptTooLarge)
				require.Equal(t, "prompt", e.Phase)
				require.EqualValues(t, 100, e.Max)
				require.Greater(t, e.Size, e.Max)
				require.NotEmpty(t, e.Op)
				require.Zero(t, srv.Count(), "nothing was sent")
				require.EqualValues(t, 1, c.Guard().Stats().Refused)
				require.NotErrorIs(t, send(r.body(strings.Repeat("中", 40))), aiguard.ErrPromptTooLarge)
				require.Equal(t, 1, srv.Count())
			})
		})
	}
}

func TestEachInputOfAnEmbeddingsRequestIsAPromptOfItsOwn(t *testing.T) {
	srv := aiguardtest.NewServer(t)
	c := newClient(t, srv, aiguard.Config{})
	texts := make([]string, 100)
	for i := range texts {
		texts[i] = strings.Repeat("x", 1000)
	}
	_, err := c.CreateEmbeddings(t.Context(), openai.EmbeddingRequest{Model: "m", Input: texts})
	require.NoError(t, err)
	body, err := json.Marshal(map[string]any{"model": "m", "input": texts})
	require.NoError(t, err)
	base := srv.Transport()
	t.Cleanup(base.CloseIdleConnections)
	hc := &http.Client{Transport: c.Guard().Transport(base)}
	resp, err := hc.Post(srv.URL+"/embeddings", "application/json", strings.NewReader(string(body)))
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	texts[99] = strings.Repeat("x", 20_001)
	_, err = c.CreateEmbeddings(t.Context(), openai.EmbeddingRequest{Model: "m", Input: texts})
	facts(t, err, aiguard.ErrPromptTooLarge)
}

func TestTokensAreCountedInTransport(t *testing.T) {
	var texts []string
	inVirtualTime(t, aiguard.Config{MaxPromptTokens: 20, CountTokens: func(model, text string) (int, error) {
		texts = append(texts, model+":"+text)
		return len(text), nil
	}}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		base := srv.Transport()
		defer base.CloseIdleConnections()
		hc := &http.Client{Transport: c.Guard().Transport(base)}
		texts = nil                                                                                                                                                                // of New, which tries the counter
		_, err := hc.Post(srv.URL+"/chat/completions", "application/json", strings.NewReader(`{"messages":[{"content":"line\none"},{"content":"0123456789abcdef"}],"model":"m"}`)) //nolint:bodyclose // fails
		e := facts(t, err, aiguard.ErrPromptTooLarge)
		require.Equal(t, "prompt_tokens", e.Phase)
		require.EqualValues(t, 24, e.Size)
		require.Equal(t, []string{"m:line\none", "m:0123456789abcdef"}, texts)
		require.Zero(t, srv.Count())
		resp, err := hc.Post(srv.URL+"/embeddings", "application/json", strings.NewReader(`{"model":"m","input":["0123456789abc","0123456789abc"]}`))
		require.NoError(t, err, "each input is a prompt of its own")
		require.NoError(t, resp.Body.Close())
	})
}

func TestOutputLimitIsLoweredInTheBodyOfEveryDialect(t *testing.T) {
	for _, tc := range []struct{ path, body, want string }{
		{"/v1/chat/completions", `{"model":"gpt-4o","messages":[]}`, `{"max_tokens":100,"model":"gpt-4o","messages":[]}`},
		{"/v1/chat/completions", `{"model":"gpt-5","messages":[]}`, `{"max_completion_tokens":100,"model":"gpt-5","messages":[]}`},
		{"/v1/chat/completions", `{"model":"gpt-5","max_completion_tokens":5000}`, `{"model":"gpt-5","max_completion_tokens":100}`},
		{"/v1/chat/completions", `{"model":"m","max_tokens":7}`, `{"model":"m","max_tokens":7}`},
		{"/v1/chat/completions", `{"model":"m","max_tokens":-1}`, `{"model":"m","max_tokens":100}`},
		{"/v1/chat/completions", `{"model":"m","max_tokens":null}`, `{"model":"m","max_tokens":100}`},
		{"/v1/chat/completions", `{"model":"m","max_tokens": 1e9 }`, `{"model":"m","max_tokens": 100 }`},
		{"/v1/chat/completions", `{"max_tokens":5,"max_tokens":5000}`, `{"max_tokens":5,"max_tokens":100}`},
		{"/v1/completions", `{"prompt":"x"}`, `{"max_tokens":100,"prompt":"x"}`},
		{"/v1/responses", `{"input":"x"}`, `{"max_output_tokens":100,"input":"x"}`},
		{"/v1/responses", `{"input":"x","max_output_tokens":101}`, `{"input":"x","max_output_tokens":100}`},
		{"/v1/messages", `{"max_tokens":4096,"messages":[]}`, `{"max_tokens":100,"messages":[]}`},
		{"/v1/messages", `{"max_tokens":0,"messages":[]}`, `{"max_tokens":0,"messages":[]}`}, // fills the prompt cache
		{"/v1/messages", `{"max_tokens":null,"messages":[]}`, `{"max_tokens":100,"messages":[]}`},
		{"/v1/chat/completions", `{"max_tokens":0,"messages":[]}`, `{"max_tokens":100,"messages":[]}`},
		{"/v1/messages", ` { } `, ` {"max_tokens":100 } `},
		{"/v1beta/models/g:generateContent", `{"contents":[]}`, `{"generationConfig":{"maxOutputTokens":100},"contents":[]}`},
		{"/v1beta/models/g:generateContent", `{"generationConfig":{"temperature":0}}`, `{"generationConfig":{"maxOutputTokens":100,"temperature":0}}`},
		{"/v1beta/models/g:generateContent", `{"generationConfig":{}}`, `{"generationConfig":{"maxOutputTokens":100}}`},
		{"/v1beta/models/g:generateContent", `{"generation_config":{"max_output_tokens":5000}}`, `{"generation_config":{"max_output_tokens":100}}`},
		{"/model/m/converse", `{"messages":[]}`, `{"inferenceConfig":{"maxTokens":100},"messages":[]}`},
		{"/model/anthropic.x/invoke", `{"max_tokens":5000}`, `{"max_tokens":100}`},
		{"/v2/chat", `{"max_tokens":5000}`, `{"max_tokens":100}`},
		{"/api/chat", `{"stream":false,"messages":[]}`, `{"options":{"num_predict":100},"stream":false,"messages":[]}`},
		{"/api/generate", `{"stream":false,"options":{"num_predict":-1}}`, `{"stream":false,"options":{"num_predict":100}}`},
		{"/v1/embeddings", `{"input":"x"}`, `{"input":"x"}`},
		{"/v1/anything", `{"max_tokens":5000}`, `{"max_tokens":5000}`},
	} {
		for _, unread := range []bool{false, true} {
			inVirtualTime(t, aiguard.Config{MaxOutputTokens: 100, Retry: aiguard.Retry{BaseDelay: time.Millisecond}}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
				srv.SetDefault(aiguardtest.Drop())
				base := srv.Transport()
				defer base.CloseIdleConnections()
				host, _ := strings.CutSuffix(srv.URL, "/v1")
				var body io.Reader = strings.NewReader(tc.body)
				if unread {
					body = io.MultiReader(body)
				}
				req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, host+tc.path, body)
				require.NoError(t, err)
				req.Header.Set("Content-Type", "application/json")
				before, length := req.Body, req.ContentLength
				_, _ = c.Guard().Transport(base).RoundTrip(req) //nolint:bodyclose // fails
				require.NotEmpty(t, srv.Requests())
				for _, r := range srv.Requests() {
					require.Equal(t, tc.want, string(r.Body), "%s %s", tc.path, tc.body)
				}
				require.Equal(t, before, req.Body, "the caller's request is left as it is")
				require.Equal(t, length, req.ContentLength)
			})
		}
	}
}

func TestLimitsOfAModelHoldInTransport(t *testing.T) {
	srv := aiguardtest.NewServer(t)
	g := newGuard(t, aiguard.Config{MaxPromptChars: 10, MaxOutputTokens: 100, Models: map[string]aiguard.Call{"big": {MaxPromptChars: 1000, MaxOutputTokens: 500}}})
	base := srv.Transport()
	t.Cleanup(base.CloseIdleConnections)
	hc := &http.Client{Transport: g.Transport(base)}
	text := strings.Repeat("x", 500)
	resp, err := hc.Post(srv.URL+"/chat/completions", "application/json", strings.NewReader(`{"messages":[{"role":"user","content":"`+text+`"}],"max_tokens":9999,"model":"big"}`))
	require.NoError(t, err, "named at the end")
	require.NoError(t, resp.Body.Close())
	require.Contains(t, string(srv.Requests()[0].Body), `"max_tokens":500`)
	_, err = hc.Post(srv.URL+"/chat/completions", "application/json", strings.NewReader(`{"messages":[{"role":"user","content":"`+text+`"}],"model":"small"}`)) //nolint:bodyclose // fails
	require.EqualValues(t, 10, facts(t, err, aiguard.ErrPromptTooLarge).Max)
	ctx := aiguard.WithCall(t.Context(), aiguard.Call{MaxPromptChars: 600})
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, srv.URL+"/chat/completions", strings.NewReader(`{"messages":[{"role":"user","content":"`+text+`"}],"model":"small"}`))
	require.NoError(t, err)
	resp, err = hc.Do(req)
	require.NoError(t, err, "the context's")
	require.NoError(t, resp.Body.Close())
}

// A signature covers the body: a limit that would have to be lowered is a mistake that only the caller can mend.
func TestOutputLimitOfASignedRequestIsNotTouched(t *testing.T) {
	inVirtualTime(t, aiguard.Config{MaxOutputTokens: 100}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		base := srv.Transport()
		defer base.CloseIdleConnections()
		send := func(body string) error {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, strings.TrimSuffix(srv.URL, "/v1")+"/model/m/converse", strings.NewReader(body))
			require.NoError(t, err)
			req.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential=x")
			resp, err := c.Guard().Transport(base).RoundTrip(req)
			if err == nil {
				resp.Body.Close()
			}
			return err
		}
		e := facts(t, send(`{"inferenceConfig":{"maxTokens":5000}}`), aiguard.ErrMisconfigured)
		require.EqualValues(t, 100, e.Max)
		require.Contains(t, e.Error(), "100 tokens")
		require.Zero(t, srv.Count())
		srv.SetDefault(aiguardtest.JSON(200, `{"output":{},"stopReason":"end_turn"}`))
		require.NoError(t, send(`{"inferenceConfig":{"maxTokens":50}}`))
	})
}

// A full queue looks at the beginning of a body alone, where the model is.
func TestCallsThatFindTheQueueFullAreRefusedUnread(t *testing.T) {
	inVirtualTime(t, aiguard.Config{MaxConcurrent: 1, MaxQueue: 1}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.SetDefault(aiguardtest.Hang())
		base := srv.Transport()
		defer base.CloseIdleConnections()
		for range 2 {
			go func() { _, _ = chat(t.Context(), c) }()
		}
		time.Sleep(time.Second)
		require.EqualValues(t, 1, c.Guard().Stats().Waiting)
		long := `{"model":"` + chatRequest.Model + `","messages":[{"role":"user","content":"` + strings.Repeat("x", 1<<20) + `"}]}`
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, srv.URL+"/chat/completions", strings.NewReader(long))
		require.NoError(t, err)
		rest := strings.NewReader(long)
		req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(io.MultiReader(rest)), nil }
		_, err = c.Guard().Transport(base).RoundTrip(req) //nolint:bodyclose // fails
		facts(t, err, aiguard.ErrOverloaded)
		require.GreaterOrEqual(t, rest.Len(), len(long)-4<<10)
		time.Sleep(5 * time.Minute)
	})
}

func TestReadingARequestIsLinear(t *testing.T) {
	const limit = 20 * time.Second // quadratic work takes minutes
	g := newGuard(t, aiguard.Config{MaxRequestBytes: aiguard.Off, Retry: aiguard.Retry{MaxAttempts: 1}})
	c := g.Client(openai.DefaultConfig("k"))
	base := roundTripper(func(req *http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: 200, Request: req, Header: http.Header{}, Body: io.NopCloser(strings.NewReader("{}")), ContentLength: -1}, nil
	})
	deep := func(n int, open, end string) string { return strings.Repeat(open, n) + `"x"` + strings.Repeat(end, n) }
	for name, input := range map[string]string{
		"arrays":               deep(200_000, "[", "]"),
		"objects":              deep(100_000, `{"a":`, "}"),
		"data":                 deep(100_000, `{"data":`, "}"),
		"data, typed behind":   deep(60_000, `{"data":`, `,"type":"x"}`),
		"data, image behind":   deep(60_000, `{"data":`, `,"type":"image"}`),
		"data, image in front": deep(60_000, `{"type":"image","b":`, "}"),
		"many data":            "[" + strings.Repeat(`{"data":"x"},`, 100_000) + `"x"]`,
	} {
		for _, path := range []string{"/v1/responses", "/v1/chat/completions", "/v1/messages", "/v1/embeddings", "/api/chat", "/model/m/invoke", "/v1beta/models/g:generateContent"} {
			body := `{"model":"m","input":` + input + `,"messages":[{"content":` + input + `}],"contents":[{"parts":[{"functionCall":{"args":` + input + `}}]}]}`
			t.Run(name+path, func(t *testing.T) {
				linear.Within(t, limit, func() {
					req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://provider.example"+path, strings.NewReader(body))
					require.NoError(t, err)
					if resp, err := g.Transport(base).RoundTrip(req); err == nil {
						resp.Body.Close()
					}
				})
			})
		}
		t.Run(name+" in ExtraBody", func(t *testing.T) {
			linear.Within(t, limit, func() {
				_, err := c.CreateResponse(t.Context(), openai.CreateResponseRequest{Model: "m", Input: "x", ExtraBody: map[string]any{"x": json.RawMessage(input)}})
				require.Error(t, err)
			})
		})
	}
}
