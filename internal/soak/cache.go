package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"

	openai "github.com/sashabaranov/go-openai"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/cacheguard"
)

// questions is the number of different questions. It is small, so that requests are coalesced and cached.
const questions = 40

// cached asks one of the questions through the cache. The client may have a short Timeout.
func (s *soak) cached(ctx context.Context, rng *rand.Rand) {
	question := int64(rng.IntN(questions))
	o := &order{soak: s, id: -1 - question}
	// The guard accepts a stream in reply to a plain request, but go-openai cannot decode one.
	if f := requestFaultNames[rng.IntN(len(requestFaultNames))]; rng.IntN(3) == 0 && !strings.HasPrefix(f, "stream/") {
		o.fault = f
	}
	o.req = request(fmt.Sprintf("%s#%d", o.fault, question%modelsAFault), fmt.Sprintf("soak:%d;", o.id))
	ctx = cacheguard.WithPolicy(ctx, cacheguard.Policy{Sampled: true})
	oc := clientConfig(s.main.URL, nil)
	hasty := rng.IntN(8) == 0
	client := &http.Client{Transport: s.cache}
	if hasty {
		client.Timeout = ms(1 + rng.IntN(300))
	}
	oc.HTTPClient = client
	began := time.Now()
	resp, err := openai.NewClientWithConfig(oc).CreateChatCompletion(ctx, o.req)
	s.took("cached "+o.req.Model, began, config.TotalTimeout)
	switch kind := aiguard.KindOf(err); {
	case err == nil:
		text := ""
		if len(resp.Choices) > 0 {
			text = resp.Choices[0].Message.Content
		}
		o.judge(ctx, "cached", text, nil)
		s.count("ok through the cache")
	case kind == "" && ctx.Err() == nil && !(hasty && errors.Is(err, context.DeadlineExceeded)):
		s.failf("cached, fault %q: the error has no kind and is not the caller's: %T %v", o.fault, err, err)
	case kind == "":
		s.count("left by caller")
	default:
		s.count(string(kind))
	}
}
