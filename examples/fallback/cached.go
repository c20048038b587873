package main

import (
	"container/list"
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
)

// lastAnswers keeps the answers to the latest questions, at most size of them. It is safe for concurrent use. The
// module cacheguard does the same for whole responses and any SDK.
type lastAnswers struct {
	size int

	mu      sync.Mutex
	entries map[string]*list.Element // by question
	order   *list.List               // of oldAnswer, latest first
}

type oldAnswer struct {
	question, text string
	at             time.Time
}

func newLastAnswers(size int) *lastAnswers {
	return &lastAnswers{size: size, entries: map[string]*list.Element{}, order: list.New()}
}

// put returns an alternative that calls ask and stores the answer.
func (l *lastAnswers) put(question string, ask func(context.Context) (string, error)) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		text, err := ask(ctx)
		if err != nil {
			return "", err
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		if e, ok := l.entries[question]; ok {
			l.order.Remove(e)
		}
		l.entries[question] = l.order.PushFront(oldAnswer{question, text, time.Now()})
		if l.order.Len() > l.size {
			delete(l.entries, l.order.Remove(l.order.Back()).(oldAnswer).question)
		}
		return text, nil
	}
}

// get returns an alternative that repeats the stored answer. It marks the answer as old for the user.
func (l *lastAnswers) get(question string) func(context.Context) (string, error) {
	return func(context.Context) (string, error) {
		l.mu.Lock()
		defer l.mu.Unlock()
		e, ok := l.entries[question]
		if !ok {
			return "", aiguard.ErrUnavailable
		}
		old := e.Value.(oldAnswer)
		return fmt.Sprintf("%s [from %s; the AI service cannot be reached now]", old.text, old.at.Format("15:04")), nil
	}
}

func cachedAnswer(ctx context.Context, p *providers, out io.Writer) error {
	client, err := aiguard.NewClient(config(p.openai), aiguard.Config{Retry: quick})
	if err != nil {
		return err
	}
	defer client.Guard().Close()
	answers := newLastAnswers(1000)
	show := func(question string) {
		answer, err := aiguard.Fallback(ctx, answers.put(question, ask(client, "gpt-4o", question)), answers.get(question))
		report(out, answer, err)
	}
	p.openai.Enqueue(aiguardtest.Text("Sunny, 24 degrees."))
	p.openai.SetDefault(down())
	show("What is the weather in Rome?")
	show("What is the weather in Rome?")
	show("What is the weather in Oslo?")
	return nil
}
