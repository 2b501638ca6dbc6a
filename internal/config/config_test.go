package config

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite docs/config.md")

func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestDocIsFresh(t *testing.T) {
	var got bytes.Buffer
	if err := WriteDoc(&got); err != nil {
		t.Fatal(err)
	}
	const page = "../../docs/config.md"
	if *update {
		if err := os.WriteFile(page, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(page)
	if err != nil || !bytes.Equal(got.Bytes(), want) {
		t.Errorf("docs/config.md is stale (%v); run: go test ./internal/config -run Doc -update", err)
	}
}

func TestLayersInOrder(t *testing.T) {
	one := write(t, "one.yaml", "node: {rack: file-1, data_dir: /one}\ncluster: {name: c1}\n")
	two := write(t, "two.yaml", "node:\n  rack: file-2\n")
	l, err := Load(Sources{
		Files: []string{one, two},
		Env:   []string{"TIDEMARK_NODE__DATA_DIR=/env", "TIDEMARK_TOPICS__PARTITIONS=3", "PATH=/bin"},
		Set:   []string{"topics.partitions=6"},
	})
	if err != nil {
		t.Fatal(err)
	}
	got := []any{l.Config.Node.Rack, l.Config.Node.DataDir, l.Config.Topics.Partitions, l.Config.Cluster.Name, l.Config.Listeners.GRPC.Address}
	want := []any{"file-2", "/env", int32(6), "c1", "127.0.0.1:9093"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	origins := []string{l.Origin("node.rack"), l.Origin("node.data_dir"), l.Origin("topics.partitions"), l.Origin("log.level")}
	wantOrigins := []string{"file " + two + ":2:9", "env TIDEMARK_NODE__DATA_DIR", "flag --set topics.partitions", "default"}
	if d := cmp.Diff(wantOrigins, origins); d != "" {
		t.Error(d)
	}
	if len(l.Overridden) != 3 {
		t.Errorf("overridden: %q", l.Overridden)
	}
}

func TestEveryProblemAtOnceWithPlaceAndNearestName(t *testing.T) {
	file := write(t, "bad.yaml", "node:\n  data_dri: x\nlisteners:\n  grcp:\n    address: 1\nshutdown_timeout: soon\ntopics: 7\n")
	_, err := Load(Sources{Files: []string{file}, Env: []string{"TIDEMARK_NOD__RACK=x", "TIDEMARK_LISTENER__GRPC__ADDRESS=x"}, Set: []string{"limits.tail_byte=1", "nonsense"}})
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{
		"node.data_dri: unknown key; did you mean node.data_dir? [" + file + ":2:3]",
		"listeners.grcp: unknown key; did you mean listeners.grpc? [" + file + ":4:3]",
		"topics: is a group of keys, not a value [" + file + ":7:9]",
		"shutdown_timeout: got \"soon\", want a duration such as 250ms, 30s or 7d [" + file + ":6:19]",
		"TIDEMARK_NOD__RACK: is no setting; did you mean TIDEMARK_NODE__RACK? [environment]",
		"did you mean TIDEMARK_LISTENERS__GRPC__ADDRESS?",
		"limits.tail_byte: unknown key; did you mean limits.tail_bytes? [--set]",
		"nonsense: want key=value [--set]",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in:\n%v", want, err)
		}
	}
}

func TestBadValues(t *testing.T) {
	for _, c := range []struct{ set, want string }{
		{"listeners.grpc.address=nine", "want host:port"},
		{"listeners.grpc.address=0.0.0.0:9093", "beyond loopback"},
		{"listeners.grpc.address=:9093", "beyond loopback"},
		{"listeners.grpc.advertised=0.0.0.0:9093", "others can dial"},
		{"listeners.grpc.address=", "must not be empty"},
		{"listeners.grpc.tls.mode=mutual", "no TLS yet"},
		{"listeners.grpc.auth=scram-sha-512", "does not authenticate"},
		{"listeners.admin.auth=plain", "does not authenticate"},
		{"listeners.grpc.tls.cert_file=x", "together"},
		{"log.level=loud", "debug or info or warn or error"},
		{"limits.tail_bytes=1KiB", "at least"},
		{"limits.tail_bytes=much", "want a size"},
		{"topics.auto_create=true", "created by name"},
		{"topics.partitions=0", "from 1 to 10000"},
		{"node.id=7", "want auto"},
		{"node.data_dir=", "must not be empty"},
		{"node.rack=${NO_SUCH_VARIABLE_HERE}", "no such variable"},
		{"node.rack=${file:/no/such/file}", "cannot be read"},
		{"node.rack=${open", "no closing brace"},
	} {
		_, err := Load(Sources{Set: []string{c.set}})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.set, err, c.want)
		}
	}
}

func TestSettingsOfLaterListenersAreAccepted(t *testing.T) {
	var set []string
	for _, name := range []string{"kafka", "internal"} {
		at := "listeners." + name + "."
		set = append(set, at+"address=0.0.0.0:9999", at+"advertised=a:1", at+"tls.mode=mutual", at+"tls.cert_file=c", at+"tls.key_file=k",
			at+"tls.ca_file=a", at+"auth=scram-sha-512,plain")
	}
	set = append(set, "listeners.gossip.address=0.0.0.0:7946", "listeners.gossip.encrypt_key_file=k", "node.id=auto", "node.rack=r",
		"cluster.name=prod", "cluster.bootstrap_expect=3", "cluster.join=a:1,b:2,c:3", "log.level=info", "log.format=auto")
	if _, err := Load(Sources{Set: set}); err != nil {
		t.Error(err)
	}
}

func TestKubernetesServiceLinksAreIgnored(t *testing.T) {
	_, err := Load(Sources{Env: []string{
		"TIDEMARK_PORT=tcp://10.0.0.1:9092", "TIDEMARK_SERVICE_HOST=10.0.0.1", "TIDEMARK_SERVICE_PORT=9092",
		"TIDEMARK_SERVICE_PORT_GRPC=9093", "TIDEMARK_PORT_9092_TCP=tcp://10.0.0.1:9092", "TIDEMARK_PORT_9092_TCP_ADDR=10.0.0.1",
		"TIDEMARK_HEADLESS_SERVICE_HOST=10.0.0.2", "TIDEMARK_BROKERS=127.0.0.1:9093",
	}})
	if err != nil {
		t.Error(err)
	}
	if _, err := Load(Sources{Env: []string{"TIDEMARK_LISTENERS__GRPC__PORT=1"}}); err == nil {
		t.Error("a misspelt key was taken for a service link")
	}
}

func TestExpansion(t *testing.T) {
	secret := write(t, "key", "s3cret\n")
	l, err := Load(Sources{
		Set:    []string{"node.rack=a-${ZONE}-$$x", "listeners.gossip.encrypt_key=${file:" + secret + "}"},
		Lookup: func(name string) (string, bool) { return "z1", name == "ZONE" },
	})
	if err != nil {
		t.Fatal(err)
	}
	if l.Config.Node.Rack != "a-z1-$x" || l.Config.Listeners.Gossip.EncryptKey.Reveal() != "s3cret" {
		t.Errorf("%q %q", l.Config.Node.Rack, l.Config.Listeners.Gossip.EncryptKey.Reveal())
	}
	shown, _ := json.Marshal(l.Config.Listeners.Gossip)
	all := fmt.Sprintf("%v %+v %#v %s", l.Config, l.Config, l.Config.Listeners.Gossip.EncryptKey, shown)
	for _, e := range l.Entries() {
		all += e.Value
	}
	if strings.Contains(all, "s3cret") {
		t.Error("the secret is shown")
	}
}

func TestListsFromFileAndFlag(t *testing.T) {
	file := write(t, "l.yaml", "cluster:\n  join: [a:1, b:2]\n")
	for _, src := range []Sources{{Files: []string{file}}, {Set: []string{"cluster.join=a:1, b:2"}}} {
		l, err := Load(src)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff([]string{"a:1", "b:2"}, l.Config.Cluster.Join); d != "" {
			t.Error(d)
		}
	}
}

func TestInitFileIsValidAndChangesNothing(t *testing.T) {
	var b bytes.Buffer
	if err := WriteInit(&b); err != nil {
		t.Fatal(err)
	}
	l, err := Load(Sources{Files: []string{write(t, "init.yaml", b.String())}})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(Default(), l.Config, cmp.AllowUnexported(Secret{})); d != "" {
		t.Error(d)
	}
}

func TestFilesThatAreNoSettings(t *testing.T) {
	for name, text := range map[string]string{
		"is not YAML": "a: [", "want keys and values": "just text\n", "is given twice": "node: {rack: a, rack: b}\n",
		"want one value": "node: {rack: [a]}\n", "want a value, got a group": "node: {rack: {a: b}}\n",
	} {
		if _, err := Load(Sources{Files: []string{write(t, "x.yaml", text)}}); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%q: %v, want %q", text, err, name)
		}
	}
	if _, err := Load(Sources{Files: []string{"/no/such.yaml"}}); err == nil || !strings.Contains(err.Error(), "cannot be read") {
		t.Error(err)
	}
}

func TestDurationsAndSizes(t *testing.T) {
	for s, want := range map[string]time.Duration{"250ms": 250 * time.Millisecond, "7d": 168 * time.Hour, "1.5d": 36 * time.Hour, "2w": 336 * time.Hour, "-15m": -15 * time.Minute} {
		if got, err := ParseDuration(s); err != nil || got != want {
			t.Errorf("%s: %v %v", s, got, err)
		}
	}
	for s, want := range map[string]int64{"64MiB": 64 << 20, "1GB": 1e9, "1.5KiB": 1536, "7": 7, "10 kB": 10_000, "5B": 5} {
		if got, err := ParseSize(s); err != nil || got != want {
			t.Errorf("%s: %v %v", s, got, err)
		}
	}
	for _, s := range []string{"", "d", "1y", "MiB", "-1", "NaN", "1e99d", "99999999TB"} {
		_, derr := ParseDuration(s)
		_, serr := ParseSize(s)
		if derr == nil || serr == nil {
			t.Errorf("%q: duration %v, size %v", s, derr, serr)
		}
	}
}

func FuzzFile(f *testing.F) {
	f.Add("node: {rack: a}\n")
	f.Add("a: &x [*x]\n")
	f.Fuzz(func(t *testing.T, text string) {
		path := filepath.Join(t.TempDir(), "f.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, _ = Load(Sources{Files: []string{path}})
	})
}
