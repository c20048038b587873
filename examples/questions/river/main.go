// River is the example questions with the engine river: any number of these processes share a PostgreSQL database and
// its operations. Every process can start, run, read and cancel each of them.
//
//	go run . -engine river -database postgres://localhost/questions -addr 127.0.0.1:8080
//	go run . -engine river -database postgres://localhost/questions -addr 127.0.0.1:8081
//
// It has the page, the flags and the engine memory of ../, whose module must not depend on River.
package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/examples/questions/internal/service"
	"github.com/aiguard-go/aiguard/riverguard"
	"github.com/aiguard-go/aiguard/task"
)

func main() {
	service.Main(map[string]service.Open{"memory": service.Memory, "river": river})
}

// river opens an engine that shares its operations with other processes. A rate limited operation fails at once,
// because a user waits for it.
func river(ctx context.Context, g *aiguard.Guard, database string) (task.Engine, func() error, error) {
	if database == "" {
		return nil, nil, errors.New("-database is missing; the engine river needs one, such as postgres://localhost/questions")
	}
	pool, err := pgxpool.New(ctx, database)
	if err != nil {
		return nil, nil, fmt.Errorf("-database: %w", err)
	}
	engine, err := riverguard.NewRunner(ctx, g, pool, riverguard.Config{Queue: "questions", Patience: aiguard.Off})
	if err != nil {
		pool.Close()
		return nil, nil, err
	}
	return engine, func() error { pool.Close(); return nil }, nil
}
