package journal

import (
	"bytes"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/holdline/scrape/framework"
)

// testLog sends the journal's log to the test's.
func testLog(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelInfo}))
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Logf("%s", bytes.TrimSpace(b))
	return len(b), nil
}

func open(t testing.TB, c Config) *Journal {
	t.Helper()
	if c.Dir == "" {
		c.Dir = t.TempDir()
	}
	if c.Log == nil {
		c.Log = testLog(t)
	}
	j, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.Close() }) // what Close says is asserted where it matters
	return j
}

func closeJournal(t testing.TB, j *Journal) {
	t.Helper()
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
}

func stream(t testing.TB, j *Journal, name string) framework.StreamLog {
	t.Helper()
	l, err := j.Stream(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// event returns the nth event of a feed.
func event(n int) *framework.Event {
	return &framework.Event{
		ID:     fmt.Appendf(nil, "%d", n),
		Type:   "price_update",
		Data:   fmt.Appendf(nil, `{"n":%d,"price":"1.%04d"}`, n, n%10000),
		Time:   time.Unix(1_700_000_000, int64(n)*1_000_003),
		Cursor: framework.Cursor(fmt.Sprint(n)),
	}
}

func appendEvents(t testing.TB, l framework.StreamLog, from, to int) {
	t.Helper()
	for n := from; n <= to; n++ {
		if err := l.Append(t.Context(), event(n)); err != nil {
			t.Fatal(err)
		}
	}
}

func syncJournal(t testing.TB, j *Journal) {
	t.Helper()
	if err := j.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// read reads until until is true for a chunk and returns all chunks.
func read(t testing.TB, j *Journal, after framework.Position, want func(string) bool, until func(*framework.Chunk) bool) []*framework.Chunk {
	t.Helper()
	out := <-reading(t, j, after, want, until)
	if out == nil {
		t.FailNow() // reading has said why
	}
	return out
}

// reading does so meanwhile, and sends nil when it fails.
func reading(t testing.TB, j *Journal, after framework.Position, want func(string) bool, until func(*framework.Chunk) bool) <-chan []*framework.Chunk {
	done := make(chan []*framework.Chunk, 1)
	go func() {
		var out []*framework.Chunk
		for c, err := range j.Read(t.Context(), after, want) {
			if err != nil {
				t.Errorf("after %d chunks: %v", len(out), err)
				break
			}
			out = append(out, c)
			if until(c) {
				done <- out
				return
			}
		}
		done <- nil
	}()
	return done
}

func readAll(t testing.TB, j *Journal) []*framework.Chunk {
	t.Helper()
	_, last := j.Bounds(0)
	return read(t, j, framework.Position{}, nil, func(c *framework.Chunk) bool { return c.Seq >= last })
}

// eventsOf flattens the chunks' events of one stream; damage is not expected.
func eventsOf(t testing.TB, chunks []*framework.Chunk, name string) []framework.StoredEvent {
	t.Helper()
	var out []framework.StoredEvent
	for _, c := range chunks {
		if c.Err != nil {
			t.Fatalf("chunk %d: %v", c.Seq, c.Err)
		}
		for _, ev := range c.Events {
			if c.Streams[ev.Stream] == name {
				ev.Stream = 0
				out = append(out, ev)
			}
		}
	}
	return out
}

func wantEvents(t testing.TB, got []framework.StoredEvent, from, to int) {
	t.Helper()
	if len(got) != to-from+1 {
		t.Fatalf("%d events, want %d", len(got), to-from+1)
	}
	for i, ev := range got {
		want := event(from + i)
		if ev.ID != string(want.ID) || ev.Type != want.Type || ev.Cursor != want.Cursor || !ev.Time.Equal(want.Time) || !bytes.Equal(ev.Data, want.Data) {
			t.Fatalf("event %d is %+v, want %+v", i, ev, want)
		}
	}
}

func resume(t testing.TB, j *Journal, name string) framework.Resume {
	t.Helper()
	r, err := stream(t, j, name).Resume(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return r
}
