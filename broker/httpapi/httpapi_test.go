package httpapi_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	. "github.com/tidemarkhq/tidemark/broker/httpapi"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func ok(name string) Check { return Check{name, func(context.Context) error { return nil }} }
func bad(name, why string) Check {
	return Check{name, func(context.Context) error { return errors.New(why) }}
}

// serve starts the door on loopback and returns its address.
func serve(t *testing.T, deps Deps) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a := New(deps)
	done := make(chan error, 1)
	go func() { done <- a.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		http.DefaultClient.CloseIdleConnections()
		if err := a.Stop(ctx); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return "http://" + l.Addr().String()
}

func get(t *testing.T, url, host string) (int, string) {
	t.Helper()
	req, err := http.NewRequest("GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if host != "" {
		req.Host = host
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestChecks(t *testing.T) {
	base := serve(t, Deps{
		Live:    []Check{ok("disk")},
		Ready:   []Check{ok("recovered"), bad("draining", "the broker\nis stopping")},
		Health:  []Check{bad("leaders", "2 partitions have no leader")},
		Startup: []Check{bad("recovery", "40 of 100 logs")},
	})
	for _, tt := range []struct {
		path, body string
		status     int
	}{
		{"/livez", "ok\n", 200},
		{"/livez?verbose", "[+]disk ok\nok\n", 200},
		{"/readyz", "[+]recovered ok\n[-]draining failed: the broker is stopping\nreadyz check failed\n", 503},
		{"/readyz?exclude=draining", "ok\n", 200},
		{"/readyz?verbose&exclude=draining", "[+]recovered ok\n[+]draining excluded\nok\n", 200},
		{"/healthz", "[-]leaders failed: 2 partitions have no leader\nhealthz check failed\n", 503},
		{"/startupz", "[-]recovery failed: 40 of 100 logs\nstartupz check failed\n", 503},
	} {
		if status, body := get(t, base+tt.path, ""); status != tt.status || body != tt.body {
			t.Errorf("%s: %d %q, want %d %q", tt.path, status, body, tt.status, tt.body)
		}
	}
}

func TestMetricsComeFromTheGatherer(t *testing.T) {
	reg := prometheus.NewRegistry()
	c := prometheus.NewCounter(prometheus.CounterOpts{Name: "tidemark_test_total", Help: "For this test."})
	reg.MustRegister(c)
	c.Add(3)
	base := serve(t, Deps{Gatherer: reg})
	if status, body := get(t, base+"/metrics", ""); status != 200 || !strings.Contains(body, "\ntidemark_test_total 3\n") {
		t.Errorf("%d %s", status, body)
	}
	if status, _ := get(t, serve(t, Deps{})+"/metrics", ""); status != 404 {
		t.Errorf("without a gatherer: %d", status)
	}
}

func TestProfilesAreForLoopbackOnly(t *testing.T) {
	base := serve(t, Deps{})
	if status, body := get(t, base+"/debug/pprof/goroutine?debug=1", ""); status != 200 || !strings.Contains(body, "goroutine profile") {
		t.Errorf("on loopback: %d", status)
	}
	if status, _ := get(t, base+"/debug/pprof/", "localhost:9644"); status != 200 {
		t.Errorf("as localhost: %d", status)
	}
	if status, _ := get(t, base+"/debug/pprof/", "rebound.example:9644"); status != 404 {
		t.Errorf("under a foreign name: %d", status)
	}

	h := New(Deps{}).Handler()
	for _, tt := range []struct {
		local, remote string
		want          int
	}{
		{"127.0.0.1:9644", "127.0.0.1:5", 200},
		{"[::1]:9644", "[::1]:5", 200},
		{"10.0.0.1:9644", "10.0.0.1:5", 404},
		{"127.0.0.1:9644", "10.0.0.1:5", 404},
		{"10.0.0.1:9644", "127.0.0.1:5", 404},
	} {
		local, err := net.ResolveTCPAddr("tcp", tt.local)
		if err != nil {
			t.Fatal(err)
		}
		req := httptest.NewRequest("GET", "/debug/pprof/cmdline", nil)
		req.Host, req.RemoteAddr = "127.0.0.1:9644", tt.remote
		w := httptest.NewRecorder()
		h.ServeHTTP(w, req.WithContext(context.WithValue(req.Context(), http.LocalAddrContextKey, net.Addr(local))))
		if w.Code != tt.want {
			t.Errorf("%s from %s: %d, want %d", tt.local, tt.remote, w.Code, tt.want)
		}
	}
}

func TestOtherPathsAndMethodsAreRefused(t *testing.T) {
	base := serve(t, Deps{Live: []Check{ok("disk")}})
	if status, body := get(t, base+"/", ""); status != 200 || !strings.Contains(body, "/readyz") {
		t.Errorf("index: %d %s", status, body)
	}
	if status, _ := get(t, base+"/nothing", ""); status != 404 {
		t.Errorf("unknown path: %d", status)
	}
	resp, err := http.Post(base+"/livez", "text/plain", strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d", resp.StatusCode)
	}
}
