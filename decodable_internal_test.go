package aiguard

import (
	"encoding/json"
	"fmt"
	"testing"

	openai "github.com/sashabaranov/go-openai"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestChunkCheckAgreesWithTheDecoder(t *testing.T) {
	var d decodable
	for range 2 { // the second time the shapes are known
		for _, chunk := range []string{
			`{"choices":[{"index":0,"delta":{"content":"a"}}]}`,
			`{"choices":[{"index":"0","delta":{"content":"a"}}]}`,
			`{"choices":[{"INDEX":"0","delta":{"content":"a"}}]}`,
			`{"choices":[{"\u0069ndex":"0","delta":{"content":"a"}}]}`,
			`{"choices":[{"index":0,"delta":{"content":5}}]}`,
			`{"x":{"choices":5},"choices":[]}`,
			`{"x":[1,{"index":"0"}] , "choices":5}`,
			`{"created":1e3}`, `{"created":1}`, `{"usage":null}`, `{"usage":{"prompt_tokens":"1"}}`,
		} {
			want := json.Unmarshal([]byte(chunk), new(openai.ChatCompletionStreamResponse))
			assert.Equal(t, want, d.check("chat.completions", []byte(chunk)), chunk)
		}
	}
}

func TestMembersThatGoOpenAIDoesNotKnowAreNotDecodedAgain(t *testing.T) {
	var d decodable
	for i := range 200 {
		require.NoError(t, d.check("chat.completions", fmt.Appendf(nil, `{"id":"1","x%d":{"y":[1,2]},"choices":[{"index":0,"z%d":1,"delta":{}}]}`, i, i)))
	}
	assert.Len(t, d.shapes, 1)
}
