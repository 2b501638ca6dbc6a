package raftgroup

import (
	"context"
	"fmt"
	"io"
	stdlog "log"
	"log/slog"
	"strings"

	"github.com/hashicorp/go-hclog"
)

// raftLogger hands Raft's log lines to slog. Raft says at Info what happens in
// every election and start of every group; with a thousand groups that is
// noise, so it goes to Debug.
type raftLogger struct {
	logger  *slog.Logger
	implied []any
}

func newRaftLogger(logger *slog.Logger) hclog.Logger {
	return &raftLogger{logger: logger.With("component", "raft")}
}

func (l *raftLogger) Log(level hclog.Level, msg string, args ...any) {
	to := slogLevel(level)
	if l.logger.Enabled(context.Background(), to) {
		l.logger.Log(context.Background(), to, msg, attrs(args)...)
	}
}

func (l *raftLogger) Trace(msg string, args ...any) { l.Log(hclog.Trace, msg, args...) }
func (l *raftLogger) Debug(msg string, args ...any) { l.Log(hclog.Debug, msg, args...) }
func (l *raftLogger) Info(msg string, args ...any)  { l.Log(hclog.Info, msg, args...) }
func (l *raftLogger) Warn(msg string, args ...any)  { l.Log(hclog.Warn, msg, args...) }
func (l *raftLogger) Error(msg string, args ...any) { l.Log(hclog.Error, msg, args...) }

func (l *raftLogger) IsTrace() bool { return l.enabled(hclog.Trace) }
func (l *raftLogger) IsDebug() bool { return l.enabled(hclog.Debug) }
func (l *raftLogger) IsInfo() bool  { return l.enabled(hclog.Info) }
func (l *raftLogger) IsWarn() bool  { return l.enabled(hclog.Warn) }
func (l *raftLogger) IsError() bool { return l.enabled(hclog.Error) }

func (l *raftLogger) ImpliedArgs() []any { return l.implied }

func (l *raftLogger) With(args ...any) hclog.Logger {
	implied := append(append([]any(nil), l.implied...), args...)
	return &raftLogger{logger: l.logger.With(attrs(args)...), implied: implied}
}

func (l *raftLogger) Name() string                   { return "raft" }
func (l *raftLogger) Named(string) hclog.Logger      { return l }
func (l *raftLogger) ResetNamed(string) hclog.Logger { return l }
func (l *raftLogger) SetLevel(hclog.Level)           {} // slog's handler decides
func (l *raftLogger) GetLevel() hclog.Level          { return hclog.NoLevel }
func (l *raftLogger) enabled(level hclog.Level) bool {
	return l.logger.Enabled(context.Background(), slogLevel(level))
}
func (l *raftLogger) StandardLogger(*hclog.StandardLoggerOptions) *stdlog.Logger {
	return slog.NewLogLogger(l.logger.Handler(), slog.LevelDebug)
}

func (l *raftLogger) StandardWriter(o *hclog.StandardLoggerOptions) io.Writer {
	return l.StandardLogger(o).Writer()
}

func slogLevel(level hclog.Level) slog.Level {
	switch level {
	case hclog.Warn:
		return slog.LevelWarn
	case hclog.Error:
		return slog.LevelError
	default:
		return slog.LevelDebug
	}
}

// attrs gives Raft's keys our spelling and formats what hclog formats late.
func attrs(args []any) []any {
	out := make([]any, len(args))
	for i, a := range args {
		switch v := a.(type) {
		case hclog.Format:
			out[i] = formatted(v)
		case string:
			if i%2 == 0 {
				out[i] = attrKey(v)
			} else {
				out[i] = v
			}
		default:
			out[i] = a
		}
	}
	return out
}

func attrKey(key string) string {
	if key == "error" {
		return "err"
	}
	return strings.ReplaceAll(key, "-", "_")
}

func formatted(f hclog.Format) string {
	if len(f) == 0 {
		return ""
	}
	layout, ok := f[0].(string)
	if !ok {
		return fmt.Sprint(f...)
	}
	return fmt.Sprintf(layout, f[1:]...)
}
