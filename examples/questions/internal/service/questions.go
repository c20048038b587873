package service

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/aiguard-go/aiguard"
)

const WantQuestions = 5

// questions is the model's answer and the operation's result.
type questions struct {
	Questions []string `json:"questions"`
}

func (q questions) check() error {
	if err := checkItems("questions", q.Questions, WantQuestions, WantQuestions); err != nil {
		return err
	}
	if len(slices.Compact(slices.Sorted(slices.Values(q.Questions)))) < WantQuestions {
		return errors.New("a question occurs twice")
	}
	return nil
}

// questionsOperation writes questions about a topic.
func questionsOperation() operation {
	return operation{
		name:   "questions",
		fields: []field{{"topic", 200}},
		run: func(ctx context.Context, client *aiguard.Client, model string, texts map[string]string) (any, error) {
			return ask[questions](ctx, client, prompt{op: "questions", model: model, texts: texts, usual: 350,
				task: fmt.Sprintf("Write %d different open questions for learners about the topic that the user names, from easy to "+
					`hard, in the topic's language. Answer with JSON alone: {"questions": ["…"]}`, WantQuestions)})
		},
	}
}
