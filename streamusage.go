package aiguard

import (
	"sync/atomic"

	"github.com/aiguard-go/aiguard/internal/dialect"
	"github.com/aiguard-go/aiguard/internal/jsonscan"
	"github.com/aiguard-go/aiguard/internal/sse"
)

// streamUsage is what a stream has used so far. Any goroutine may load it.
type streamUsage struct {
	noted dialect.Usage
	usage atomic.Pointer[Usage] // noted; nil: none yet

	textBytes atomic.Int64 // for a Budget
	shell     int          // bytes of the last event other than text
}

// note records what the provider has reported.
func (s *streamUsage) note(u dialect.Usage) {
	if u != s.noted {
		s.noted = u
		usage := usageOf(u)
		s.usage.Store(&usage)
	}
}

func (s *streamUsage) load() (u Usage) {
	if p := s.usage.Load(); p != nil {
		u = *p
	}
	return u
}

// count counts the text of an event for a Budget, in case the answer does not report its usage. An event has at least
// one token.
func (s *streamUsage) count(ev *sse.Event, free []jsonscan.Span) {
	if !ev.Like {
		s.shell = len(ev.Data)
		for _, span := range free {
			if span.Some {
				s.shell -= span.End - span.Start - len(`""`)
			}
		}
	}
	s.textBytes.Add(max(int64(len(ev.Data)-s.shell), bytesPerToken))
}
