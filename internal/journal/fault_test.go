package journal

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdline/scrape/framework"
)

// countingLog counts what is logged at level Error.
type countingLog struct {
	slog.Handler
	mu     sync.Mutex
	errors []string
}

func (l *countingLog) Enabled(context.Context, slog.Level) bool { return true }

func (l *countingLog) Handle(ctx context.Context, r slog.Record) error {
	if r.Level >= slog.LevelError {
		l.mu.Lock()
		l.errors = append(l.errors, r.Message)
		l.mu.Unlock()
	}
	return l.Handler.Handle(ctx, r)
}

// failing returns a function like [Journal.free], which is asked before each
// attempt to write. It calls then, once, when attempt number n begins of those
// that came after the failure was reported and committed nothing.
func (l *countingLog) failing(n int, committed func() uint64, free func(string) (uint64, error), then func()) func(string) (uint64, error) {
	var mu sync.Mutex
	tries, at := 0, uint64(0)
	return func(dir string) (uint64, error) {
		mu.Lock()
		defer mu.Unlock()
		switch now := committed(); {
		case tries >= n || len(l.list()) == 0:
		case now != at:
			tries, at = 0, now
		default:
			if tries++; tries == n {
				then()
			}
		}
		return free(dir)
	}
}

func (l *countingLog) list() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]string(nil), l.errors...)
}

// faulty opens a journal in which send and free can be replaced before
// anything is written.
func faulty(t *testing.T, c Config) *Journal {
	t.Helper()
	j := open(t, c)
	syncJournal(t, j) // the committer has nothing to do and looks at nothing
	return j
}

func TestSecondWriterIsFenced(t *testing.T) {
	j := open(t, Config{})
	l := stream(t, j, "a/s")
	appendEvents(t, l, 1, 10)
	syncJournal(t, j)
	_, last := j.Bounds(0)
	f := frame{kind: kindChunk, journal: j.ID(), seq: last + 1, sent: time.Now()}
	if _, err := j.reading().publish(t.Context(), chunkSubject(0), true, last, appendFrame(nil, &f)); err != nil {
		t.Fatal(err)
	}
	readAll(t, j) // what was committed can still be read
	appendEvents(t, l, 11, 11)
	if err := j.Sync(t.Context()); !errors.Is(err, ErrFenced) {
		t.Fatalf("Sync: %v", err)
	}
	if err := l.Append(t.Context(), event(12)); !errors.Is(err, ErrFenced) {
		t.Fatalf("Append: %v", err)
	}
	if n := l.Committed(); n != 10 {
		t.Fatalf("%d committed", n)
	}
	if err := j.Close(); !errors.Is(err, ErrFenced) {
		t.Fatalf("Close: %v", err)
	}
}

func TestUnclearCommits(t *testing.T) {
	j := faulty(t, Config{ChunkEvents: 20})
	real := j.send
	var calls, lost, failed atomic.Int64
	j.send = func(ctx context.Context, s *store, p int, last uint64, msg []byte) (uint64, error) {
		switch calls.Add(1) % 11 {
		case 3, 4: // it arrives, the answer does not
			if _, err := real(ctx, s, p, last, msg); err != nil {
				return 0, err
			}
			lost.Add(1)
			return 0, context.DeadlineExceeded
		case 7:
			failed.Add(1)
			return 0, errors.New("not sent")
		}
		return real(ctx, s, p, last, msg)
	}
	l := stream(t, j, "a/s")
	const events = 600
	for n := 1; n <= events; n += 20 {
		appendEvents(t, l, n, n+19)
		syncJournal(t, j)
	}
	if lost.Load() == 0 || failed.Load() == 0 {
		t.Fatalf("faults made: %d, %d", lost.Load(), failed.Load())
	}
	wantEvents(t, eventsOf(t, readAll(t, j), "a/s"), 1, events)
	if n := l.Committed(); n != events {
		t.Fatalf("%d committed", n)
	}
}

func TestServerStopsUnderneath(t *testing.T) {
	log := &countingLog{Handler: slog.DiscardHandler}
	j := open(t, Config{ChunkEvents: 20, Log: slog.New(log)})
	const events = 3000
	got := reading(t, j, framework.Position{}, nil, func(c *framework.Chunk) bool {
		return len(c.Events) > 0 && c.Events[len(c.Events)-1].ID == "3000"
	})
	l := stream(t, j, "a/s")
	for n := 1; n <= events; n++ {
		if n%1000 == 500 {
			if s := j.reading(); s != nil {
				s.srv.srv.Shutdown()
			}
		}
		appendEvents(t, l, n, n)
	}
	syncJournal(t, j)
	wantEvents(t, eventsOf(t, <-got, "a/s"), 1, events)
	wantEvents(t, eventsOf(t, readAll(t, j), "a/s"), 1, events)
	if len(log.list()) == 0 {
		t.Error("nobody was told")
	}
}

func TestDiskFullBlocksAndGoesOn(t *testing.T) {
	log := &countingLog{Handler: slog.DiscardHandler}
	j := faulty(t, Config{ChunkEvents: 10, Log: slog.New(log)})
	var full atomic.Bool
	full.Store(true)
	l := stream(t, j, "a/s")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	j.free = log.failing(3, l.Committed, func(string) (uint64, error) {
		if full.Load() {
			return spaceReserve - 1, nil
		}
		return 1 << 40, nil
	}, cancel)
	n := 0
	for ; ; n++ { // until it has been tried a few times
		if err := l.Append(ctx, event(n+1)); err != nil {
			if !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
			break
		}
	}
	// What is being written, and what was gathered meanwhile.
	if n <= 10 || n > 20 || l.Committed() != 0 {
		t.Fatalf("%d events were taken, %d committed", n, l.Committed())
	}
	if errs := log.list(); len(errs) != 1 || !strings.Contains(errs[0], "free some space") {
		t.Fatalf("logged: %q", errs)
	}
	full.Store(false)
	appendEvents(t, l, n+1, 100)
	syncJournal(t, j)
	wantEvents(t, eventsOf(t, readAll(t, j), "a/s"), 1, 100)
}
