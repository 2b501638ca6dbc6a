// Package httpapi is the admin door: health, metrics and profiles over plain HTTP.
//
// /livez and /readyz rest on facts of this process alone, so that trouble
// elsewhere never takes all brokers out of service at once; what depends on
// others is /healthz. Profiles are served on loopback only. Nothing here
// changes anything.
package httpapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Deps is what the door shows. Nil fields show nothing.
type Deps struct {
	// Live: the process works. A failure means: restart it.
	Live []Check
	// Ready: clients may come here.
	Ready []Check
	// Health: the cluster as this broker sees it.
	Health []Check
	// Startup: recovery is over; until then a failure tells how far it is.
	Startup []Check

	Gatherer prometheus.Gatherer
	Logger   *slog.Logger
}

// maxScrapes bounds how many scrapes run at once.
const maxScrapes = 4

// API serves the admin listener. It is safe for concurrent use.
type API struct {
	deps   Deps
	server *http.Server
}

// New returns the door, closed.
func New(deps Deps) *API {
	if deps.Logger == nil {
		deps.Logger = slog.New(slog.DiscardHandler)
	}
	a := &API{deps: deps}
	a.server = &http.Server{
		Handler:           a.Handler(),
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(deps.Logger.Handler(), slog.LevelDebug),
	}
	return a
}

// Handler answers all paths of the door.
func (a *API) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", checks("livez", a.deps.Live))
	mux.HandleFunc("GET /readyz", checks("readyz", a.deps.Ready))
	mux.HandleFunc("GET /healthz", checks("healthz", a.deps.Health))
	mux.HandleFunc("GET /startupz", checks("startupz", a.deps.Startup))
	if a.deps.Gatherer != nil {
		mux.Handle("GET /metrics", promhttp.HandlerFor(a.deps.Gatherer, promhttp.HandlerOpts{
			ErrorLog:            slog.NewLogLogger(a.deps.Logger.Handler(), slog.LevelWarn),
			ErrorHandling:       promhttp.ContinueOnError, // one bad collector must not hide all others
			MaxRequestsInFlight: maxScrapes,
			Timeout:             30 * time.Second,
		}))
	}
	mux.Handle("/debug/pprof/", onLoopback(profiles()))
	mux.HandleFunc("GET /{$}", index)
	return mux
}

func index(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	fmt.Fprint(w, "tidemark\n\n/livez    the process works\n/readyz   clients may come (?verbose, ?exclude=check)\n/healthz  the cluster, as this broker sees it\n/startupz recovery is over\n/metrics  for Prometheus\n/debug/pprof/  profiles, on loopback only\n")
}

// Serve accepts connections until Stop; it returns nil after Stop.
func (a *API) Serve(l net.Listener) error {
	if err := a.server.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve HTTP on %v: %w", l.Addr(), err)
	}
	return nil
}

// Stop lets requests end until ctx is done, then cuts them off.
func (a *API) Stop(ctx context.Context) error {
	if err := a.server.Shutdown(ctx); err != nil {
		return errors.Join(fmt.Errorf("stop HTTP: %w", err), a.server.Close())
	}
	return nil
}
