package group

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/tidemarkhq/tidemark/proto/errs"
	"github.com/tidemarkhq/tidemark/proto/record"
)

var update = flag.Bool("update", false, "rewrite the expected output of the scripts in testdata")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestScripts runs every script in testdata against a coordinator in virtual
// time. A script is paragraphs of commands, each followed by ---- and what they
// print; -update rewrites the latter.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("scripts: %v, %d found", err, len(files))
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { runScript(t, file) })
		})
	}
}

func runScript(t *testing.T, file string) {
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, Config{BrokerID: 1})
	defer w.stop()
	var got bytes.Buffer
	expected := false
	for line := range strings.Lines(string(want)) {
		line = strings.TrimRight(line, "\n")
		switch {
		case expected && line != "":
			continue // what was printed before
		case strings.HasPrefix(line, "----"):
			fmt.Fprintf(&got, "----\n%s", w.printed())
			expected = true
			continue
		case line == "":
			expected = false
		case !strings.HasPrefix(line, "#"):
			w.exec(line)
		}
		fmt.Fprintln(&got, line)
	}
	w.checkReplicas()
	if *update {
		if err := os.WriteFile(file, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Errorf("%s differs; run with -update and look at the diff. Got:\n%s", file, got.String())
	}
}

// world is a coordinator with one state group in memory, and clients.
type world struct {
	t      *testing.T
	c      *Coordinator
	sg     *memoryGroup
	topics *fakeTopics
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	out     []string
	natives map[string]*nativeClient
	classes map[string]*classicClient
	cuts    map[string]context.CancelFunc
}

type nativeClient struct {
	id, instance, group string
	epoch               int32
	work                []Assignment
	topics              []string
	regex               string
}

type classicClient struct {
	name, id, instance, group string
	generation                int32
}

func newWorld(t *testing.T, cfg Config) *world {
	w := &world{
		t: t, topics: &fakeTopics{all: map[string]Topic{}}, sg: &memoryGroup{term: 1, leading: true},
		natives: map[string]*nativeClient{}, classes: map[string]*classicClient{}, cuts: map[string]context.CancelFunc{},
	}
	w.ctx, w.cancel = context.WithCancel(t.Context())
	c, err := New(cfg, 1, Deps{Metadata: w.topics, Partitions: fakePartitions{}})
	if err != nil {
		t.Fatal(err)
	}
	w.c = c
	w.sg.sm = c.StateMachine(0)
	c.Attach(0, w.sg)
	c.Start()
	return w
}

func (w *world) stop() {
	w.c.Stop()
	w.cancel()
	w.wg.Wait()
}

func (w *world) shard() *shard { return w.c.shards[0] }

func (w *world) say(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.out = append(w.out, fmt.Sprintf(format, args...))
}

// printed is what was said since the last time.
func (w *world) printed() string {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	s := strings.Join(w.out, "\n")
	w.out = nil
	if s != "" {
		s += "\n"
	}
	return s
}

// settle sorts what several clients said at once.
func (w *world) settle(from int) {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	slices.Sort(w.out[from:])
}

// args of a command: words, and key=value pairs.
type args struct {
	words []string
	named map[string]string
}

func (a args) word(i int) string {
	if i < len(a.words) {
		return a.words[i]
	}
	return ""
}

func (a args) str(key, def string) string {
	if v, ok := a.named[key]; ok {
		return v
	}
	return def
}

func (a args) dur(key string) time.Duration {
	d, err := time.ParseDuration(a.str(key, "0s"))
	if err != nil {
		panic(err)
	}
	return d
}

func (a args) num(key string, def int32) int32 {
	n, err := strconv.Atoi(a.str(key, strconv.Itoa(int(def))))
	if err != nil {
		panic(err)
	}
	return int32(n)
}

func (a args) list(key string) []string {
	if a.named[key] == "" {
		return nil
	}
	return strings.Split(a.named[key], ",")
}

func parse(line string) (string, args) {
	f := strings.Fields(line)
	a := args{named: map[string]string{}}
	for _, w := range f[1:] {
		if k, v, ok := strings.Cut(w, "="); ok {
			a.named[k] = v
		} else {
			a.words = append(a.words, w)
		}
	}
	return f[0], a
}

func (w *world) exec(line string) {
	name, a := parse(line)
	w.mu.Lock()
	from := len(w.out)
	w.mu.Unlock()
	switch name {
	case "topic":
		n, _ := strconv.Atoi(a.word(1))
		w.topics.set(a.word(0), int32(n))
		w.c.TopicsChanged()
	case "untopic":
		w.topics.remove(a.word(0))
		w.c.TopicsChanged()
	case "advance":
		d, err := time.ParseDuration(a.word(0))
		if err != nil {
			w.t.Fatal(err)
		}
		<-time.After(d)
	case "beat": // several members at intervals, for so long: beat 30s m1 m2
		w.beatFor(a)
	case "failover":
		w.sg.failover()
		<-time.After(2 * watchEvery)
	case "hb":
		w.hb(a)
	case "drop": // the client cuts its connection
		w.cuts[a.word(0)]()
	case "leave":
		m := w.native(a)
		err := w.c.Leave(w.ctx, LeaveRequest{Group: m.group, MemberID: m.id, InstanceID: m.instance, MemberEpoch: a.num("epoch", m.epoch)})
		w.say("%s: left%s", a.word(0), errText(err))
	case "join":
		w.join(a)
	case "sync":
		w.sync(a)
	case "chb":
		m := w.classic(a)
		err := w.c.ClassicHeartbeat(w.ctx, ClassicHeartbeatRequest{Group: m.group, MemberID: a.str("id", m.id), InstanceID: m.instance, Generation: a.num("gen", m.generation)})
		w.say("%s: heartbeat%s", m.name, errText(err))
	case "cleave":
		w.classicLeave(a)
	case "commit":
		w.commit(a)
	case "fetch":
		w.fetch(a)
	case "delete":
		w.say("delete %s%s", a.word(0), errText(w.c.Delete(w.ctx, a.word(0))))
	case "deloffsets":
		bad, err := w.c.DeleteOffsets(w.ctx, a.word(0), partitions(a.words[1:]))
		w.say("delete offsets%s%s", errText(err), badText(bad))
	case "list":
		all, err := w.c.List(w.ctx)
		for _, l := range all {
			w.say("%s %s protocol=%q members=%d", l.Name, l.State, l.Protocol, l.Members)
		}
		w.say("%d groups%s", len(all), errText(err))
	case "describe":
		w.describe(a.word(0))
	case "state":
		w.state(a.word(0))
	case "log":
		w.say("%d commands", w.sg.length())
	default:
		w.t.Fatalf("unknown command %q", line)
	}
	w.settle(from)
	if name == "advance" || name == "hb" || name == "join" || name == "sync" {
		return
	}
}

func (w *world) native(a args) *nativeClient {
	id := a.word(0)
	m := w.natives[id]
	if m == nil {
		m = &nativeClient{id: id, group: "g"}
		w.natives[id] = m
	}
	m.group = a.str("group", m.group)
	m.instance = a.str("instance", m.instance)
	if t, ok := a.named["topics"]; ok {
		m.topics = strings.Split(t, ",")
	}
	m.regex = a.str("regex", m.regex)
	return m
}

func (w *world) hb(a args) {
	m := w.native(a)
	r := HeartbeatRequest{
		Group: m.group, MemberID: m.id, InstanceID: m.instance, MemberEpoch: a.num("epoch", m.epoch),
		SessionTimeout: a.dur("session"), RebalanceTimeout: a.dur("rebalance"), MaxWait: a.dur("wait"),
		Owned: m.work, Topics: m.topics, TopicRegex: m.regex,
	}
	if _, ok := a.named["owned"]; ok {
		r.Owned = gather(partitions(a.list("owned")))
	}
	send := func() {
		resp, err := w.c.Heartbeat(w.ctx, r)
		if err != nil {
			w.say("%s:%s", m.id, errText(err))
			return
		}
		if resp.MemberEpoch >= m.epoch {
			m.epoch, m.work = resp.MemberEpoch, resp.Assigned
		}
		w.say("%s: epoch=%d gen=%d %s", m.id, resp.MemberEpoch, resp.Generation, assignText(resp.Assigned))
	}
	if r.MaxWait == 0 {
		send()
		return
	}
	w.wg.Go(send)
}

// beatFor lets members heartbeat every two seconds without saying so.
func (w *world) beatFor(a args) {
	d, err := time.ParseDuration(a.word(0))
	if err != nil {
		w.t.Fatal(err)
	}
	for end := time.Now().Add(d); time.Now().Before(end); {
		<-time.After(2 * time.Second)
		for _, id := range a.words[1:] {
			if m := w.natives[id]; m != nil {
				resp, err := w.c.Heartbeat(w.ctx, HeartbeatRequest{Group: m.group, MemberID: m.id, InstanceID: m.instance, MemberEpoch: m.epoch, Owned: m.work})
				if err == nil {
					m.epoch, m.work = resp.MemberEpoch, resp.Assigned
				} else {
					w.say("%s:%s", id, errText(err))
				}
			}
			if m := w.classes[id]; m != nil {
				if err := w.c.ClassicHeartbeat(w.ctx, ClassicHeartbeatRequest{Group: m.group, MemberID: m.id, InstanceID: m.instance, Generation: m.generation}); err != nil {
					w.say("%s:%s", id, errText(err))
				}
			}
		}
	}
}

func (w *world) classic(a args) *classicClient {
	m := w.classes[a.word(0)]
	if m == nil {
		m = &classicClient{name: a.word(0), group: "g"}
		w.classes[m.name] = m
	}
	m.group = a.str("group", m.group)
	m.instance = a.str("instance", m.instance)
	return m
}

// alias turns generated member ids into the names of the clients.
func (w *world) alias(id string) string {
	for _, m := range w.classes {
		if m.id == id && id != "" {
			return m.name
		}
	}
	return "unknown(" + strings.Split(id, "-")[0] + ")"
}

func (w *world) join(a args) {
	m := w.classic(a)
	r := JoinRequest{
		Group: m.group, MemberID: m.id, InstanceID: m.instance, ClientID: m.name, ProtocolType: a.str("type", "consumer"),
		SessionTimeout: 10 * time.Second, RebalanceTimeout: 30 * time.Second,
		RequireMemberID: slices.Contains(a.words, "require"), SkipAssignment: slices.Contains(a.words, "skip"),
	}
	if a.named["id"] == "none" {
		r.MemberID = ""
	} else if id, ok := a.named["id"]; ok {
		r.MemberID = id
	}
	if d := a.dur("session"); d != 0 {
		r.SessionTimeout = d
	}
	if d := a.dur("rebalance"); d != 0 {
		r.RebalanceTimeout = d
	}
	for _, p := range strings.Split(a.str("protocols", "range"), ",") {
		name, meta, _ := strings.Cut(p, ":")
		r.Protocols = append(r.Protocols, ClassicProtocol{name, []byte(meta)})
	}
	ctx, cut := context.WithCancel(w.ctx)
	w.cuts[m.name] = cut
	w.wg.Go(func() {
		resp, err := w.c.JoinGroup(ctx, r)
		w.mu.Lock()
		if errs.CodeOf(err) == errs.MemberIDRequired || err == nil {
			m.id = resp.MemberID
		}
		if err == nil {
			m.generation = resp.Generation
		}
		w.mu.Unlock()
		if err != nil {
			w.say("%s: join%s", m.name, errText(err))
			return
		}
		// Aliases are only known once everybody has learnt its id.
		w.wg.Go(func() {
			<-time.After(time.Millisecond)
			w.mu.Lock()
			line := fmt.Sprintf("%s: joined gen=%d %s leader=%s", m.name, resp.Generation, resp.ProtocolName, w.alias(resp.Leader))
			if resp.SkipAssignment {
				line += " skip"
			}
			for _, jm := range resp.Members {
				line += fmt.Sprintf(" %s:%s", w.alias(jm.MemberID), jm.Metadata)
			}
			w.mu.Unlock()
			w.say("%s", line)
		})
	})
	synctest.Wait()
	<-time.After(2 * time.Millisecond)
}

func (w *world) sync(a args) {
	m := w.classic(a)
	r := SyncRequest{Group: m.group, MemberID: a.str("id", m.id), InstanceID: m.instance, Generation: a.num("gen", m.generation), ProtocolName: a.str("protocol", "")}
	for _, kv := range a.list("assign") {
		k, v, _ := strings.Cut(kv, ":")
		if r.Assignments == nil {
			r.Assignments = map[string][]byte{}
		}
		r.Assignments[w.classes[k].id] = []byte(v)
	}
	ctx, cut := context.WithCancel(w.ctx)
	w.cuts[m.name] = cut
	w.wg.Go(func() {
		resp, err := w.c.SyncGroup(ctx, r)
		if err != nil {
			w.say("%s: sync%s", m.name, errText(err))
			return
		}
		w.say("%s: synced %q", m.name, resp.Assignment)
	})
}

func (w *world) classicLeave(a args) {
	var ids []MemberIdentity
	for _, name := range a.words {
		m := w.classes[name]
		if m.instance != "" {
			ids = append(ids, MemberIdentity{InstanceID: m.instance})
		} else {
			ids = append(ids, MemberIdentity{MemberID: m.id})
		}
	}
	results, err := w.c.LeaveGroup(w.ctx, a.str("group", "g"), ids)
	for i, r := range results {
		w.say("%s: left%s", a.words[i], errText(r.Err))
	}
	if err != nil {
		w.say("leave%s", errText(err))
	}
}

// commit m1 t:0@10:text ...; a classic client's name commits in its generation; nobody is an outsider.
func (w *world) commit(a args) {
	who := a.word(0)
	r := CommitRequest{Group: a.str("group", "g")}
	if m := w.natives[who]; m != nil {
		r.Group, r.MemberID, r.MemberEpoch = m.group, m.id, a.num("epoch", m.epoch)
	} else if m := w.classes[who]; m != nil {
		r.Group, r.MemberID, r.InstanceID, r.MemberEpoch, r.Classic = m.group, a.str("id", m.id), m.instance, a.num("gen", m.generation), true
	} else if who != "nobody" {
		r.MemberID, r.MemberEpoch, r.Classic = who, a.num("gen", 1), true
	}
	for _, word := range a.words[1:] {
		where, what, _ := strings.Cut(word, "@")
		tp := partitions([]string{where})[0]
		at, meta, _ := strings.Cut(what, ":")
		n, _ := strconv.Atoi(at)
		if strings.HasPrefix(meta, "x*") {
			k, _ := strconv.Atoi(meta[2:])
			meta = strings.Repeat("x", k)
		}
		r.Offsets = append(r.Offsets, OffsetCommit{Topic: tp.Topic, Partition: tp.Partition, Offset: record.Offset(n), LeaderEpoch: -1, Metadata: meta})
	}
	bad, err := w.c.CommitOffsets(w.ctx, r)
	w.say("%s: commit%s%s", who, errText(err), badText(bad))
}

func (w *world) fetch(a args) {
	all, err := w.c.FetchOffsets(w.ctx, a.word(0), partitions(a.words[1:]))
	for _, o := range all {
		w.say("%s:%d at %d %q", o.Topic, o.Partition, o.Offset, o.Metadata)
	}
	w.say("%d offsets%s", len(all), errText(err))
}

func (w *world) describe(group string) {
	d, err := w.c.Describe(w.ctx, group)
	if err != nil {
		w.say("describe%s", errText(err))
		return
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s %s gen=%d", d.Name, d.State, d.Protocol, d.Generation)
	for _, m := range d.Members {
		fmt.Fprintf(&b, "\n  %s %s owned %s", m.MemberID, assignText(m.Assigned), assignText(m.Owned))
	}
	for _, p := range d.Partitions {
		fmt.Fprintf(&b, "\n  %s:%d at %d of [%d,%d) lag %d, %v; %s", p.Topic, p.Partition, p.Offset, p.LogStart, p.HighWatermark, p.Lag, p.LagTime, p.MemberID)
	}
	w.say("%s", b.String())
}

func (w *world) state(group string) {
	s := w.shard()
	s.mu.Lock()
	g := s.machine.groups[group]
	var b strings.Builder
	if g == nil {
		fmt.Fprintf(&b, "%s: none", group)
	} else {
		fmt.Fprintf(&b, "%s: %s %s gen=%d", group, g.protocol, g.state(), g.generation)
		for _, m := range g.byIncarnation() {
			if g.protocol == ProtocolClassic {
				fmt.Fprintf(&b, "\n  %s joined=%v assignment=%q", w.alias(m.id), m.joined, m.assignment)
			} else {
				fmt.Fprintf(&b, "\n  %s epoch=%d %s", m.id, m.epoch, assignText(gather(m.assigned())))
				if r := m.revoking(); len(r) > 0 {
					fmt.Fprintf(&b, " revoking %s", assignText(gather(r)))
				}
			}
		}
	}
	s.mu.Unlock()
	w.say("%s", b.String())
}

// checkReplicas replays the log on a second replica, restarts a third from a
// snapshot after every command, and compares.
func (w *world) checkReplicas() {
	s := w.shard()
	s.mu.Lock()
	want := s.machine.hash()
	s.mu.Unlock()
	again, restarted := newMachine(), newMachine()
	for i, cmd := range w.sg.log {
		again.apply(cmd)
		restarted.apply(cmd)
		next := newMachine()
		if err := next.restore(restarted.snapshot()); err != nil {
			w.t.Fatalf("restore after command %d: %v", i, err)
		}
		restarted = next
	}
	if again.hash() != want {
		w.t.Error("a second replica came to another state")
	}
	if restarted.hash() != want {
		w.t.Error("a replica that restarts after every command came to another state")
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return " " + errs.CodeOf(err).Name()
}

func badText(bad []PartitionError) string {
	s := ""
	for _, b := range bad {
		s += fmt.Sprintf(" %s:%d%s", b.Topic, b.Partition, errText(b.Err))
	}
	return s
}

func assignText(all []Assignment) string {
	if len(all) == 0 {
		return "[]"
	}
	var parts []string
	for _, a := range all {
		parts = append(parts, fmt.Sprintf("%s%v", a.Topic, a.Partitions))
	}
	return strings.Join(parts, " ")
}

func partitions(words []string) []TopicPartition {
	var all []TopicPartition
	for _, word := range words {
		topic, n, _ := strings.Cut(word, ":")
		p, err := strconv.Atoi(n)
		if err != nil {
			panic(err)
		}
		all = append(all, TopicPartition{topic, int32(p)})
	}
	return all
}
