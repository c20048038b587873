package redisguard_test

import (
	"fmt"
	"log"
	"log/slog"
	"net/http"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
	"github.com/aiguard-go/aiguard/redisguard"
)

// This program shares one limit of calls in flight, and what is known of the provider, between all processes that run
// it. It has no server here, so it goes on with its share of the limit, which is all of it.
func Example() {
	provider := aiguardtest.Start() // a fake provider
	defer provider.Close()

	rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", ContextTimeoutEnabled: true})
	defer rdb.Close()
	limiter, err := redisguard.New(rdb, redisguard.Config{Key: "example", Limit: 20, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		log.Fatal(err)
	}
	defer limiter.Close()
	guard, err := aiguard.New(aiguard.Config{Limiter: limiter})
	if err != nil {
		log.Fatal(err)
	}
	defer guard.Close()
	routes, err := redisguard.ShareRoutes(rdb, guard, redisguard.RoutesConfig{Key: "example", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		log.Fatal(err)
	}
	defer routes.Close()

	resp, err := guard.HTTPClient().Post(provider.URL+"/chat/completions", "application/json",
		strings.NewReader(`{"model":"m","messages":[{"role":"user","content":"Say hello."}]}`))
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	fmt.Println(resp.StatusCode == http.StatusOK, limiter.Stats().Members)
	// Output: true 1
}

// All processes with this Key send at most 500 requests and 200,000 tokens a minute for each model.
func ExampleNewPace() {
	rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:6379", ContextTimeoutEnabled: true})
	defer rdb.Close()
	pace, err := redisguard.NewPace(rdb, redisguard.PaceConfig{Key: "openai", RequestsPerMinute: 500, TokensPerMinute: 200_000})
	if err != nil {
		log.Fatal(err)
	}
	defer pace.Close()
	guard, err := aiguard.New(aiguard.Config{Budget: pace})
	if err != nil {
		log.Fatal(err)
	}
	defer guard.Close()
	fmt.Println("ready")
	// Output: ready
}
