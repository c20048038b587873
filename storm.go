package aiguard

import (
	"context"
	"log/slog"
)

// stormKey is what similar lines of the log have in common. They share a limit, so that a storm of failures does not
// become a storm of lines.
type stormKey struct {
	event       EventType
	kind        Kind
	phase       string
	host, model string
}

// mayLog reports whether a line about e may be written now.
func (h *history) mayLog(ctx context.Context, level slog.Level, t EventType, msg string, e *Error) bool {
	coarse := stormKey{event: t, kind: e.Kind, phase: e.Phase}
	key := coarse
	key.host, key.model = short(e.Host), short(e.Model)
	logger := h.cfg.Logger
	return h.storm.Allow(key, coarse, func(key stormKey, suppressed int) {
		logger.LogAttrs(context.WithoutCancel(ctx), level, "aiguard: similar lines suppressed", slog.String("line", msg),
			slog.String("kind", short(string(key.kind))), slog.String("phase", short(key.phase)), slog.String("host", key.host),
			slog.String("model", key.model), slog.Int("suppressed", suppressed))
	})
}
