package format

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/tidemarkhq/tidemark/proto/record"
)

func readAll(t *testing.T, name, in string, o ReadOptions) ([]Record, error) {
	t.Helper()
	r, err := NewReader(name, strings.NewReader(in), o)
	if err != nil {
		return nil, err
	}
	var all []Record
	for {
		rec, err := r.Next()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return all, err
		}
		all = append(all, rec)
	}
}

func rec(key, value any, change ...func(*Record)) Record {
	r := fresh()
	if k, ok := key.(string); ok {
		r.Key = []byte(k)
	}
	if v, ok := value.(string); ok {
		r.Value = []byte(v)
	}
	for _, c := range change {
		c(&r)
	}
	return r
}

func at(ms int64) func(*Record) { return func(r *Record) { r.Timestamp = ms } }

func TestRead(t *testing.T) {
	for _, c := range []struct {
		name, in string
		o        ReadOptions
		want     []Record
	}{
		{"line", "a\n\nb", ReadOptions{}, []Record{rec(nil, "a"), rec(nil, ""), rec(nil, "b")}},
		{"line", "", ReadOptions{}, nil},
		{"kv", "k1\tv1\nk2\t\n\tv\n", ReadOptions{}, []Record{rec("k1", "v1"), rec("k2", ""), rec("", "v")}},
		{"%k:%v\n", "a:b\nc:\n", ReadOptions{}, []Record{rec("a", "b"), rec("c", "")}},
		{"%v\n", "a\nb", ReadOptions{}, []Record{rec(nil, "a"), rec(nil, "b")}},
		{"value-json", "{\"user\":{\"id\":[7,\"x\"]},\"ts\":\"2026-11-20T10:00:00Z\"}\n\n 3 \n", ReadOptions{Key: ".user.id[0]", Time: ".ts", Headers: []string{"who=.user.id[1]"}}, []Record{
			rec("7", `{"user":{"id":[7,"x"]},"ts":"2026-11-20T10:00:00Z"}`, at(1795168800000), func(r *Record) {
				r.Headers = []record.Header{{Key: "who", Value: []byte("x")}}
			}),
			rec(nil, "3"),
		}},
		{"csv", "id,name\n1,\"a \"\"q\"\"\nb\"\n2,\n", ReadOptions{Key: "id"}, []Record{
			rec("1", `{"id":"1","name":"a \"q\"\nb"}`), rec("2", `{"id":"2","name":""}`),
		}},
		{"json", `{"key":"k","value":null,"timestamp":5,"partition":2,"topic":"t"}` + "\n" + `{"value_b64":"/w==","headers":[{"key":"h","value":null},{"key":"e","value":""}]}`, ReadOptions{}, []Record{
			rec("k", nil, at(5), func(r *Record) { r.Partition, r.Topic = 2, "t" }),
			rec(nil, "\xff", func(r *Record) { r.Headers = []record.Header{{Key: "h"}, {Key: "e", Value: []byte{}}} }),
		}},
	} {
		got, err := readAll(t, c.name, c.in, c.o)
		if err != nil {
			t.Errorf("%s %q: %v", c.name, c.in, err)
		} else if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%s %q: %s", c.name, c.in, d)
		}
	}
}

func TestReadErrorsNameThePlace(t *testing.T) {
	for _, c := range []struct {
		name, in string
		o        ReadOptions
		want     string
	}{
		{"kv", "a\tb\nc\n", ReadOptions{}, "line 2: no TAB"},
		{"json", "{}\n{\"vlaue\":\"x\"}", ReadOptions{}, `line 2: is no record in JSON: json: unknown field "vlaue"`},
		{"json", "{\"key\":\"a\",\"key_b64\":\"YQ==\"}", ReadOptions{}, "key is given twice"},
		{"json", "{\"key_b64\":\"?\"}", ReadOptions{}, "key is not base64"},
		{"json", "{} {}", ReadOptions{}, "more than one"},
		{"json", "{\"key\":\"\xff\"}", ReadOptions{}, "not UTF-8"},
		{"value-json", "1\n{", ReadOptions{}, "line 2: is not one JSON value"},
		{"value-json", "1", ReadOptions{Key: "x"}, "want .name"},
		{"csv", "", ReadOptions{}, "no header row"},
		{"csv", "a,b\n1\n", ReadOptions{}, "wrong number of fields"},
		{"csv", "a,b\n", ReadOptions{Key: "c"}, `no column "c"; there are a, b`},
		{"line", "", ReadOptions{Key: ".x"}, "--key"},
		{"lines", "", ReadOptions{}, `format "lines": want line, kv`},
		{"%Q", "", ReadOptions{}, "format"},
	} {
		if _, err := readAll(t, c.name, c.in, c.o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %q: %v, want %q", c.name, c.in, err, c.want)
		}
	}
}

func TestOneRecordIsBounded(t *testing.T) {
	l := &lineReader{in: nil, max: 8}
	for _, in := range []string{"123456789\n", "123456789"} {
		*l = lineReader{in: bufio.NewReader(strings.NewReader(in)), max: 8}
		if _, err := l.next(); err == nil || !strings.Contains(err.Error(), "line 1 is longer than 8 bytes") {
			t.Errorf("%q: %v", in, err)
		}
	}
	limit := &recordLimit{in: strings.NewReader(strings.Repeat("x", 100)), left: 10}
	if b, err := io.ReadAll(limit); err == nil || len(b) != 10 {
		t.Errorf("read %d bytes, %v", len(b), err)
	}
}

func genBytes() *rapid.Generator[[]byte] {
	return rapid.OneOf(
		rapid.Just([]byte(nil)), rapid.Just([]byte{}),
		rapid.SliceOf(rapid.Byte()),
		rapid.Map(rapid.String(), func(s string) []byte { return []byte(s) }),
	)
}

func TestJSONLosesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var want []Record
		for range rapid.IntRange(1, 4).Draw(t, "records") {
			r := Record{
				Topic: "t.x", Partition: rapid.Int32Range(0, 99).Draw(t, "p"), Offset: rapid.Int64Range(0, 1<<60).Draw(t, "o"),
				Epoch: Unset, Timestamp: rapid.Int64Range(-1, 1<<45).Draw(t, "ts"),
				Key: genBytes().Draw(t, "key"), Value: genBytes().Draw(t, "value"),
			}
			for range rapid.IntRange(0, 3).Draw(t, "headers") {
				r.Headers = append(r.Headers, record.Header{Key: string(genBytes().Draw(t, "hk")), Value: genBytes().Draw(t, "hv")})
			}
			want = append(want, r)
		}
		write, err := NewAppender("json")
		if err != nil {
			t.Fatal(err)
		}
		var text []byte
		for i := range want {
			if text, err = write(text, &want[i]); err != nil {
				t.Fatal(err)
			}
		}
		if n := bytes.Count(text, []byte{'\n'}); n != len(want) {
			t.Fatalf("%d lines for %d records", n, len(want))
		}
		reader, err := NewReader("json", bytes.NewReader(text), ReadOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for i := range want {
			got, err := reader.Next()
			if err != nil {
				t.Fatalf("%v\n%s", err, text)
			}
			if d := cmp.Diff(want[i], got); d != "" {
				t.Fatalf("%s\n%s", d, text)
			}
		}
	})
}

func TestWrite(t *testing.T) {
	r := Record{Topic: "t", Partition: 1, Offset: 41, Timestamp: 5, Key: []byte("k"), Value: []byte("{ \"a\": 1 }")}
	tomb := Record{Topic: "t", Key: []byte("\x1b[2J")}
	for _, c := range []struct {
		name string
		r    Record
		want string
	}{
		{"line", r, "{ \"a\": 1 }\n"},
		{"kv", r, "k\t{ \"a\": 1 }\n"},
		{"value-json", r, "{\"a\":1}\n"},
		{"value-json", tomb, "null\n"},
		{"terminal", r, "1/41  k  { \"a\": 1 }\n"},
		{"terminal", tomb, "0/0  \"\\x1b[2J\"  (tombstone)\n"},
		{"%t[%p]@%o %k\n", r, "t[1]@41 k\n"},
		{"json", r, `{"topic":"t","partition":1,"offset":41,"timestamp":5,"key":"k","value":"{ \"a\": 1 }","headers":[]}` + "\n"},
	} {
		write, err := NewAppender(c.name)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := write(nil, &c.r); err != nil || string(got) != c.want {
			t.Errorf("%s: %q, want %q (%v)", c.name, got, c.want, err)
		}
	}
	for _, name := range []string{"csv", "nope", "%Z{"} {
		if _, err := NewAppender(name); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

func FuzzReaders(f *testing.F) {
	for i, in := range []string{"a\tb\n", `{"key":"k"}`, "a,b\n1,2\n", "x"} {
		f.Add(i, in)
	}
	names := []string{"line", "kv", "json", "value-json", "csv", "%k %v{json}\n", "%v[%v{4}%v]"}
	f.Fuzz(func(_ *testing.T, which int, in string) {
		name := names[uint(which)%uint(len(names))]
		r, err := NewReader(name, strings.NewReader(in), ReadOptions{})
		for range 100 {
			if err != nil {
				return
			}
			_, err = r.Next()
		}
	})
}
