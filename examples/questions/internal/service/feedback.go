package service

import (
	"context"
	"errors"
	"fmt"

	"github.com/aiguard-go/aiguard"
)

const maxScore = 5

// feedback is the model's answer and the operation's result.
type feedback struct {
	Score        int      `json:"score"`
	Strengths    []string `json:"strengths"`
	Improvements []string `json:"improvements"`
	Summary      string   `json:"summary"`
}

func (f feedback) check() error {
	var score error
	if f.Score < 1 || f.Score > maxScore {
		score = fmt.Errorf("score is %d; want 1 to %d", f.Score, maxScore)
	}
	return errors.Join(score,
		checkItems("strengths", f.Strengths, 1, 5),
		checkItems("improvements", f.Improvements, 1, 5),
		checkItems("summary", []string{f.Summary}, 1, 1))
}

// feedbackOperation rates an answer to a question.
func feedbackOperation() operation {
	return operation{
		name:   "feedback",
		fields: []field{{"question", 2000}, {"answer", 8000}},
		run: func(ctx context.Context, client *aiguard.Client, model string, texts map[string]string) (any, error) {
			return ask[feedback](ctx, client, prompt{op: "feedback", model: model, texts: texts, usual: 400,
				task: fmt.Sprintf("You help a learner. Say how good the answer to the question is, in the answer's language, kindly and "+
					`exactly. Answer with JSON alone: {"score": 1 to %d, "strengths": ["…"], "improvements": ["…"], "summary": "…"}, `+
					"with one to five short texts in each list.", maxScore)})
		},
	}
}
