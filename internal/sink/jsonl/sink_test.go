package jsonl

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/gofrs/flock"
	"github.com/holdline/scrape/framework"
)

var info = framework.SinkInfo{ID: "demo/prices", Journal: "aaaabbbbccccdddd"}

// at is the position after the n-th event of the first chunk.
func at(n int) framework.Position {
	p := framework.Position{Journal: info.Journal}
	if n > 0 {
		p.Seq, p.Event = 1, n
	}
	return p
}

func record(n int) framework.Record {
	return framework.Record{
		Key:    framework.Key{Position: at(n), Record: 1},
		Stream: "demo/market", ID: "7", Type: "price_update",
		Time: time.Unix(int64(n), 0), Data: []byte("data"),
	}
}

func write(s *Sink, from int, records ...framework.Record) error {
	return s.Write(context.Background(), &framework.Batch{From: at(from), To: at(from + len(records)), Records: records})
}

// opened returns an open sink, on a new directory unless c names one.
func opened(t *testing.T, c Config) *Sink {
	t.Helper()
	if c.Dir == "" {
		c.Dir = t.TempDir()
	}
	s := newSink(t, c)
	t.Cleanup(func() { s.Close() })
	if _, err := s.Open(t.Context(), info); err != nil {
		t.Fatal(err)
	}
	return s
}

func names(t *testing.T, dir string) (all []string) {
	t.Helper()
	for _, f := range sinkFiles(t, dir) {
		all = append(all, filepath.Base(f))
	}
	return all
}

// says checks that err has all parts in its text, and is meant to be tried again.
func says(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one that says %q", parts)
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error %q does not say %q", err, part)
		}
	}
	if _, ok := errors.AsType[*framework.RecordError](err); ok {
		t.Errorf("error %q is a *RecordError", err)
	}
	if _, ok := errors.AsType[*framework.PositionError](err); ok {
		t.Errorf("error %q is a *PositionError", err)
	}
}

func TestNewRefuses(t *testing.T) {
	for _, c := range []Config{{}, {Dir: "a\x00b"}, {Dir: "x", MaxSize: -1}, {Dir: "x", MaxAge: -1}} {
		if _, err := New(c); err == nil {
			t.Errorf("New(%+v) is content", c)
		}
	}
}

func TestNewTouchesNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "sub")
	s := newSink(t, Config{Dir: dir, Compress: true})
	if _, err := os.Stat(dir); err == nil {
		t.Fatal("New made the directory")
	}
	if _, err := s.Open(t.Context(), info); err != nil { // makes it
		t.Fatal(err)
	}
	if got := names(t, dir); len(got) != 0 {
		t.Errorf("without a record there are files: %q", got)
	}
}

// What is in the directory can never change: other programs read it.
func TestStoredForm(t *testing.T) {
	s := opened(t, Config{})
	s.now = func() time.Time { return time.Date(2026, 2, 3, 4, 5, 6, 700, time.FixedZone("", 3600)) }
	number, pretty, bare, binary, text := record(1), record(2), record(3), record(4), record(5)
	number.Time = time.Date(2026, 1, 2, 3, 4, 5, 60, time.FixedZone("", 3600))
	number.Data = []byte(`{"price": 1.50,"a<b":12345678901234567890.10,"a":1,"a":2}`)
	pretty.Data = []byte("{\r\n  \"a\": \"\\n \\u00e9\",\n  \"b\": 1.0\n}\n")
	bare.ID, bare.Data = "", nil
	binary.Data, binary.Type, binary.ID = []byte("a\x00\xff"), "a\x00b", `\x`
	text.Data = []byte("\"\\\n\t\r\x00\x1fü<\u2028")
	if err := write(s, 0, number, pretty, bare, binary, text); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(s.config.Dir, "demo+prices-0-00000001.jsonl")
	want := []string{
		`{"key":"aaaabbbbccccdddd/0/1/1/1","stream":"demo/market","id":"7","type":"price_update","time":"2026-01-02T02:04:05.000000060Z","data":{"price": 1.50,"a<b":12345678901234567890.10,"a":1,"a":2}}`,
		`{"key":"aaaabbbbccccdddd/0/1/2/1","stream":"demo/market","id":"7","type":"price_update","time":"1970-01-01T00:00:02.000000000Z","data":{"a":"\n \u00e9","b":1.0}}`,
		`{"key":"aaaabbbbccccdddd/0/1/3/1","stream":"demo/market","type":"price_update","time":"1970-01-01T00:00:03.000000000Z","text":""}`,
		`{"key":"aaaabbbbccccdddd/0/1/4/1","stream":"demo/market","id":"\\x5c78","type":"\\x610062","time":"1970-01-01T00:00:04.000000000Z","base64":"YQD/"}`,
		`{"key":"aaaabbbbccccdddd/0/1/5/1","stream":"demo/market","id":"7","type":"price_update","time":"1970-01-01T00:00:05.000000000Z","text":"\"\\\n\t\r\u0000\u001fü<` + "\u2028" + `"}`,
	}
	var got []string
	for _, b := range readLines(t, path) {
		got = append(got, string(b))
	}
	if !slices.Equal(got, want) {
		t.Errorf("lines\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	position, err := os.ReadFile(filepath.Join(s.config.Dir, "demo+prices-0.position.json"))
	if err != nil {
		t.Fatal(err)
	}
	const wantPosition = `{"sink":"demo/prices","partition":0,"journal":"aaaabbbbccccdddd","seq":1,"event":5,"moved":"2026-02-03T03:05:06.0000007Z","number":1,"file":"demo+prices-0-00000001.jsonl","size":801,"begun":"2026-02-03T03:05:06.0000007Z"}` + "\n"
	if string(position) != wantPosition {
		t.Errorf("position %s\nwant %s", position, wantPosition)
	}
}

func TestNamesOfFiles(t *testing.T) {
	seen := map[string]string{}
	for _, id := range []string{"a/b", "a+b", "a%2bb", "a%b", "A/b", "a/b-0", "a-b", "a b", "../x", "..", ".", "ü/x", "a\x00b", "a\\b"} {
		name := escape(id)
		if other, ok := seen[name]; ok {
			t.Errorf("%q and %q are both %q", id, other, name)
		}
		seen[name] = id
		if strings.ContainsAny(name, "/\\\x00 ") || strings.HasPrefix(name, ".") {
			t.Errorf("%q becomes %q", id, name)
		}
	}
	// The files of one sink are not taken for those of another.
	s := &Sink{base: "demo+prices-0"}
	for name, want := range map[string]int{
		"demo+prices-0-00000012.jsonl": 12, "demo+prices-0-123456789.jsonl.zst": 123456789,
		"demo+prices-0-1-00000012.jsonl": 0, "demo+prices-1-00000012.jsonl": 0, "demo+prices-0-00000000.jsonl": 0,
		"demo+prices-0-00000012.jsonl.moved": 0, "demo+prices-0.position.json": 0, "demo+prices-0-notes.jsonl": 0,
	} {
		if n, ok := s.number(name); ok != (want > 0) || ok && n != want {
			t.Errorf("number(%q) is %d, %v, want %d", name, n, ok, want)
		}
	}
}

func TestRotation(t *testing.T) {
	s := opened(t, Config{MaxSize: 300, MaxAge: time.Hour})
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	s.now = func() time.Time { return now }
	n := 0
	next := func(want int) {
		t.Helper()
		if err := write(s, n, record(n+1)); err != nil {
			t.Fatal(err)
		}
		n++
		if got := names(t, s.config.Dir); len(got) != want {
			t.Fatalf("after %d records there are %q, want %d files", n, got, want)
		}
	}
	next(1)
	next(1) // 286 bytes
	next(1) // 429: over it, with a batch that began below
	next(2)
	now = now.Add(time.Hour - 1)
	next(2)
	now = now.Add(1)
	next(3) // begun an hour ago
	now = now.Add(-time.Minute)
	next(4) // the clock was set back: nobody knows how old the file is
	next(4)
	now = now.Add(2 * time.Hour)
	if _, err := s.Open(t.Context(), info); err != nil { // its age outlives the sink
		t.Fatal(err)
	}
	next(5)
	// A batch of no record begins nothing.
	now = now.Add(2 * time.Hour)
	if err := s.Write(t.Context(), &framework.Batch{From: at(n), To: at(n + 5)}); err != nil {
		t.Fatal(err)
	}
	if got := names(t, s.config.Dir); len(got) != 5 {
		t.Errorf("an empty batch began a file: %q", got)
	}
	// What is finished may be taken away.
	for _, f := range sinkFiles(t, s.config.Dir)[:4] {
		if err := os.Remove(f); err != nil {
			t.Fatal(err)
		}
	}
	n += 5
	next(2)
}

// A sink whose form was changed goes on in a new file.
func TestFormChanged(t *testing.T) {
	s := opened(t, Config{})
	if err := write(s, 0, record(1)); err != nil {
		t.Fatal(err)
	}
	z := opened(t, Config{Dir: s.config.Dir, Compress: true})
	if err := write(z, 1, record(2)); err != nil {
		t.Fatal(err)
	}
	if err := write(z, 2, record(3)); err != nil {
		t.Fatal(err)
	}
	want := []string{"demo+prices-0-00000001.jsonl", "demo+prices-0-00000002.jsonl.zst"}
	if got := names(t, s.config.Dir); !slices.Equal(got, want) {
		t.Errorf("files %q, want %q", got, want)
	}
	if rows := readRows(t, s.config.Dir); len(rows) != 3 {
		t.Errorf("%d rows, want 3", len(rows))
	}
}

// What a crash leaves beyond the position is cut, whatever it is: the end of a
// line, whole lines, half a frame, a file of its own.
func TestTornTail(t *testing.T) {
	for _, compress := range []bool{false, true} {
		for _, tail := range []string{"{\"key\":", "{\"key\":\"whole\"}\n{}\n", "\x00\x00\x00", "\x28\xb5\x2f\xfd\x04"} {
			s := opened(t, Config{Compress: compress})
			if err := write(s, 0, record(1), record(2)); err != nil {
				t.Fatal(err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			newest := filepath.Join(s.config.Dir, s.name(1))
			f, err := os.OpenFile(newest, os.O_WRONLY|os.O_APPEND, 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteString(tail); err != nil {
				t.Fatal(err)
			}
			f.Close()
			for _, name := range []string{s.name(2), s.base + "-00000003.jsonl", "other+sink-0-00000009.jsonl"} {
				if err := os.WriteFile(filepath.Join(s.config.Dir, name), []byte(tail), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if pos, err := s.Open(t.Context(), info); err != nil || pos != at(2) {
				t.Fatalf("Open: %v, %v", pos, err)
			}
			if got, want := names(t, s.config.Dir), []string{s.name(1), "other+sink-0-00000009.jsonl"}; !slices.Equal(got, want) {
				t.Errorf("files %q, want %q", got, want)
			}
			if err := os.Remove(filepath.Join(s.config.Dir, "other+sink-0-00000009.jsonl")); err != nil {
				t.Fatal(err)
			}
			if rows := readRows(t, s.config.Dir); len(rows) != 2 {
				t.Errorf("%d rows after Open, want 2", len(rows))
			}
			if err := write(s, 2, record(3)); err != nil {
				t.Fatal(err)
			}
			if rows := readRows(t, s.config.Dir); len(rows) != 3 || rows[2].Key != record(3).Key.String() {
				t.Errorf("rows %v, want 3", rows)
			}
		}
	}
}

// The lines are on the disk before the position says so: a position whose file
// is shorter is nobody's crash.
func TestFilesMeddledWith(t *testing.T) {
	s := opened(t, Config{})
	if err := write(s, 0, record(1), record(2)); err != nil {
		t.Fatal(err)
	}
	newest := filepath.Join(s.config.Dir, s.name(1))
	whole, err := os.ReadFile(newest)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(newest, 100); err != nil {
		t.Fatal(err)
	}
	says(t, write(s, 2, record(3)), newest, "has 100 bytes of the 286", "restore it from a copy")
	_, err = s.Open(t.Context(), info)
	says(t, err, newest, "has 100 bytes of the 286")
	if err := os.WriteFile(newest, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Open(t.Context(), info); err != nil {
		t.Fatal(err)
	}

	// Moved away while the sink writes, as a log rotation does: what it has
	// open is no longer the file that readers find.
	rename(t, newest, newest+".1")
	says(t, write(s, 2, record(3)), newest, "is gone", "put it back")
	rename(t, newest+".1", newest)
	if err := write(s, 2, record(3)); err != nil {
		t.Fatalf("Write after the file was put back: %v", err)
	}

	position := s.progressPath()
	good, err := os.ReadFile(position)
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"", "{}", string(good[:50]), strings.Replace(string(good), "demo/prices", "demo/other", 1),
		strings.Replace(string(good), `"file":"`, `"file":"../`, 1), strings.Replace(string(good), `"size":`, `"size":-`, 1)} {
		if _, err := s.Open(t.Context(), info); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(position, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		says(t, write(s, 3, record(4)), position, "is not the position of sink demo/prices", "restore it")
		_, err = s.Open(t.Context(), info)
		says(t, err, position, "is not the position of sink demo/prices")
		if err := os.WriteFile(position, good, 0o600); err != nil {
			t.Fatal(err)
		}
	}

	// Without a position: everything again, into new files.
	if err := os.Remove(position); err != nil {
		t.Fatal(err)
	}
	if pos, err := s.Open(t.Context(), info); err != nil || pos != at(0) {
		t.Fatalf("Open without a position: %v, %v, want the beginning", pos, err)
	}
	if err := write(s, 0, record(1)); err != nil {
		t.Fatal(err)
	}
	if got, want := names(t, s.config.Dir), []string{s.name(1), s.name(2)}; !slices.Equal(got, want) {
		t.Errorf("files %q, want %q", got, want)
	}
}

func TestPositionGone(t *testing.T) {
	s := opened(t, Config{})
	if err := write(s, 0, record(1)); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(s.progressPath()); err != nil {
		t.Fatal(err)
	}
	err := write(s, 1, record(2))
	e, ok := errors.AsType[*framework.PositionError](err)
	if !ok || e.Foreign() || e.Have != at(0) || !strings.Contains(e.Reason, "is gone") {
		t.Fatalf("error %v, want a *PositionError that has the beginning and says that the file is gone", err)
	}
}

func TestRecordRefused(t *testing.T) {
	s := opened(t, Config{})
	future := record(2)
	future.Time = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)
	e, ok := errors.AsType[*framework.RecordError](write(s, 0, record(1), future, record(3)))
	if !ok || e.Key != future.Key {
		t.Fatalf("error %v, want a *RecordError for %v", e, future.Key)
	}
	if err := write(s, 0, record(1), record(3)); err != nil {
		t.Fatal(err)
	}
	if rows := readRows(t, s.config.Dir); len(rows) != 2 {
		t.Errorf("%d rows, want 2", len(rows))
	}
}

func TestDirectoriesThatCannotServe(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := newSink(t, Config{Dir: file}).Open(t.Context(), info)
	says(t, err, file, "cannot be made: make it, or choose another directory")
}

func TestLocked(t *testing.T) {
	s := opened(t, Config{})
	other := flock.New(s.lock.Path())
	if err := other.Lock(); err != nil {
		t.Fatal(err)
	}
	s.lockWait = 10 * time.Millisecond
	says(t, write(s, 0, record(1)), s.config.Dir, "another process writes for the same sink: end it")
	if err := other.Unlock(); err != nil {
		t.Fatal(err)
	}
	s.lockWait = lockWait // 10 ms may be over before it has looked
	if err := write(s, 0, record(1)); err != nil {
		t.Fatalf("Write after the lock was released: %v", err)
	}
}

func FuzzLine(f *testing.F) {
	for _, s := range []string{"", "text", `{"a":1.50}`, "[1,\n2]", strings.Repeat("[", 20_000_000), "\"\xff\"", "\x00", `\x`, "a\"\\\n\u2028", " 1 ", "\r\n"} {
		f.Add(s, []byte(s))
	}
	f.Fuzz(func(t *testing.T, name string, data []byte) {
		r := record(1)
		r.ID, r.Type, r.Stream, r.Data = name, name, "demo/x", data
		b, err := appendLine(nil, &r, &common{})
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Count(b, []byte("\n")) != 1 || b[len(b)-1] != '\n' || bytes.ContainsRune(b, '\r') {
			t.Fatalf("%q is not one line", b)
		}
		var l line
		if err := json.Unmarshal(b, &l); err != nil {
			t.Fatalf("%q: %v", b, err)
		}
		row, err := l.row()
		if err != nil {
			t.Fatalf("%q: %v", b, err)
		}
		if isJSON := utf8.Valid(data) && json.Valid(data); isJSON != (l.Data != nil) {
			t.Fatalf("%q gives %q: is it JSON? %v", data, b, isJSON)
		}
		want := data
		if l.Data != nil { // JSON is kept but for the space around and between its parts
			var a, b bytes.Buffer
			if json.Compact(&a, data) != nil || json.Compact(&b, row.Data) != nil {
				t.Fatalf("%q: its data is not JSON", data)
			}
			want, row.Data = a.Bytes(), b.Bytes()
		}
		if row.ID != name || row.Type != name || !bytes.Equal(row.Data, want) {
			t.Fatalf("%q gives %q, %q, %q, want %q, %q", b, row.ID, row.Type, row.Data, name, want)
		}
	})
}
