package aiguard

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"

	openai "github.com/sashabaranov/go-openai"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard/internal/dialect"
	"github.com/aiguard-go/aiguard/internal/jsonscan"
)

// chunks are events of chats that go-openai decodes or not.
var chunks = []string{
	`{"choices":[{"index":0,"delta":{"content":"a"}}]}`,
	`{"choices":[{"index":"0","delta":{"content":"a"}}]}`,
	`{"choices":[{"INDEX":"0","delta":{"content":"a"}}]}`,
	`{"choices":[{"\u0069ndex":"0","delta":{"content":"a"}}]}`,
	`{"choices":[{"index":0,"delta":{"content":5}}]}`,
	`{"choices":[{"index":0,"delta":{"content":null,"tool_calls":[{"index":0,"id":"1","type":"function","function":{"name":"f","arguments":""}}]}}]}`,
	`{"choices":[{"index":0,"delta":{"content":null,"tool_calls":{"index":0}}}]}`,
	`{"choices":[{"index":0,"logprobs":{"content":[{"token":"a","logprob":-1.5e-07,"bytes":[97],"top_logprobs":[]}]}}]}`,
	`{"choices":[{"index":0,"logprobs":{"content":[{"token":"a","logprob":-1.5e+999,"bytes":[97.5],"top_logprobs":[]}]}}]}`,
	`{"choices":[{"index":0.0}]}`, `{"choices":[{"index":9223372036854775808}]}`, `{"choices":[{"index":-0}]}`,
	`{"x":{"choices":5},"choices":[]}`, `{"X":{"choices":5},"Choices":[]}`, `{"é":5,"choices":[]}`, `{"\u00e9":5,"choices":[]}`,
	`{"x":[1,{"index":"0"}] , "choices":5}`, `{"choice` + "\u017f" + `":5}`, `{"choices":[{"index":0}],"choices":{}}`,
	`{"created":1e3}`, `{"created":1}`, `{"usage":null}`, `{"usage":{"prompt_tokens":"1"}}`, `{"usage":[]}`, `{"choices":[5]}`, `{"choices":[null]}`,
	`{"choices":"a"}`, `{"choices":true}`, `{"model":{}}`, `null`, `[]`, `5`, `"a"`, `{}`,
}

func check(op string, data []byte) error {
	var s jsonscan.Scanner
	for range 2 { // the second time with tokens
		s.Reset(dialect.MaxShape)
		if _, err := s.Line(data); err != nil {
			return nil // the events that are checked are JSON
		}
	}
	err := decoders[op].check(jsonscan.Read(data))
	if again := decoders[op].check(s.Read(data)); !reflect.DeepEqual(again, err) {
		panic(fmt.Sprintf("%v with tokens, %v without", again, err))
	}
	return err
}

func TestEventCheckAgreesWithTheDecoder(t *testing.T) {
	for _, chunk := range chunks {
		assert.Equal(t, json.Unmarshal([]byte(chunk), new(openai.ChatCompletionStreamResponse)), check("chat.completions", []byte(chunk)), chunk)
	}
}

func TestUsualEventsAreNotDecodedTwice(t *testing.T) {
	for op, events := range map[string][]string{
		"chat.completions": {
			`{"id":"1","object":"chat.completion.chunk","created":1754000000,"model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":"","refusal":null},` +
				`"logprobs":null,"finish_reason":null,"content_filter_results":{"hate":{"filtered":false,"severity":"safe"}}}],"usage":null,"obfuscation":"x","newIn2030":{"a":[1e999]}}`,
			`{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{"}}]},"logprobs":{"content":[{"token":"a","logprob":-0.0001234,"bytes":[97],` +
				`"top_logprobs":[{"token":"a","logprob":-1.25e-05,"bytes":null}]}]}}]}`,
			`{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":1,"total_tokens":10,"prompt_tokens_details":{"cached_tokens":0}}}`,
		},
		"completions": {`{"id":"1","choices":[{"text":"a","index":0,"logprobs":{"tokens":["a"],"token_logprobs":[-0.5],"top_logprobs":[{"a":-0.5}],"text_offset":[0]},"finish_reason":"stop"}]}`},
		"responses": {
			`{"type":"response.output_text.delta","sequence_number":4,"item_id":"msg_1","output_index":0,"content_index":0,"delta":"a","logprobs":[],"obfuscation":"x"}`,
			`{"type":"response.created","sequence_number":0,"response":{"id":"resp_1","object":"response","created_at":1754000000,"status":"in_progress","error":null,"metadata":{"a":"b"},` +
				`"output":[{"type":"message","n":1.5,"content":[null,true]}],"temperature":1.0,"tool_choice":"auto","tools":[]}}`,
		},
	} {
		for _, event := range events {
			c := jsonscan.Read([]byte(event))
			require.True(t, decoders[op].form().fits(&c), event)
			require.NoError(t, decoders[op].decode([]byte(event)), event)
		}
	}
}

// odd has a field of each kind that a form must treat as uncertain.
type odd struct {
	Quoted int             `json:"quoted,string"`
	Own    ownDecoder      `json:"own"`
	Small  int8            `json:"small"`
	Float  float32         `json:"float"`
	Whole  uint            `json:"whole"`
	Keys   map[int]string  `json:"keys"`
	Bytes  []byte          `json:"bytes"`
	Array  [2]int          `json:"array"`
	Raw    json.RawMessage `json:"raw"`
	Any    any             `json:"any"`
	Err    error           `json:"err"`
	Hidden string          `json:"-"`
	Next   *odd            `json:"next"`
	Nested struct{ embedded }
}

type ownDecoder struct{}

func (*ownDecoder) UnmarshalJSON([]byte) error { return assert.AnError }

type embedded struct{ N int }

// Whatever fits the form of a type can be decoded into it.
func FuzzWhatFitsCanBeDecoded(f *testing.F) {
	for _, chunk := range chunks {
		f.Add([]byte(chunk))
	}
	for _, value := range []string{"null", "1", "-1", "12", "1234", "-1.5e-9", "1e38", strings.Repeat("9", 38), strings.Repeat("9", 39), `"1"`, "[1]", "[1,2,3]", `{"N":"x"}`, `{"1":"2"}`, "true"} {
		for _, name := range []string{"quoted", "own", "small", "float", "whole", "keys", "bytes", "array", "raw", "any", "err", "-", "Hidden", "Nested", "n"} {
			f.Add(fmt.Appendf(nil, `{"next":{"%s":%s}}`, name, value))
		}
	}
	f.Add([]byte(`{"type":"x","response":{"output":[{"a":1e999}],"temperature":1e39,"metadata":{"a":[]}},"param":{"a":[1,"b",null]}}`))
	f.Add([]byte(`{"choices":[{"logprobs":{"top_logprobs":[{"a":1e39}],"token_logprobs":[null,-1]}}]}`))
	strange := newDecoder[odd]()
	f.Fuzz(func(t *testing.T, data []byte) {
		if end, err := jsonscan.Check(data, dialect.MaxShape); err != nil || end != len(data) {
			return
		}
		for op, d := range map[string]*decoder{"chat.completions": nil, "completions": nil, "responses": nil, "": strange} {
			if d == nil {
				d = decoders[op]
				_ = check(op, data)
			}
			if c := jsonscan.Read(data); d.form().fits(&c) {
				require.NoError(t, d.decode(data), "%s: %s", op, data)
			}
		}
	})
}
