// Package riverguard runs LLM work as jobs of River (github.com/riverqueue/river) on PostgreSQL, in any number of
// processes. It has two parts:
//
// Runner runs the operations of package task as River jobs. It has the methods of task.Runner, so that a service
// changes one line to go from one process to several:
//
//	runner, err := task.NewRunner(guard, store, task.Config{})
//	runner, err := riverguard.NewRunner(ctx, guard, pool, riverguard.Config{})
//
// Middleware is for services that already have River workers. It runs each job under the guard's TaskTimeout, and
// tells River whether to repeat, postpone or cancel a job that failed.
//
// Neither stores the text of an unknown error or a panic in River's tables, because it may quote a prompt, an answer
// or a key.
package riverguard

import (
	"time"

	"github.com/aiguard-go/aiguard"
)

// The defaults of Config and of NewMiddleware.
const (
	DefaultQueue    = "aiguard"
	DefaultPatience = 10 * time.Minute
	DefaultGrace    = 5 * time.Second
)

// margin is the time that River waits longer than a job can take, before it calls the job stuck or rescues it. The
// job's last write needs some of it.
const margin = 5 * time.Second

// taskTimeout returns the guard's limit for a job, or ok false if it has none.
func taskTimeout(g *aiguard.Guard) (limit time.Duration, ok bool) {
	limit = g.Config().TaskTimeout
	return limit, limit != aiguard.Off
}
