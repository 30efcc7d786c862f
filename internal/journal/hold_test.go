package journal

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdline/scrape/framework"
)

// flood is a target that sends events as fast as they are taken: the number of
// the event, and noise.
type flood struct {
	size  int
	every time.Duration
}

func (f flood) Open(ctx context.Context, _ *framework.Session, from framework.Cursor) (framework.Connection, error) {
	return &flooding{flood: f, ctx: ctx, n: number(string(from))}, nil
}

type flooding struct {
	flood
	ctx context.Context
	n   int
}

func (f *flooding) Next(ev *framework.Event) error {
	if f.every > 0 {
		select {
		case <-time.After(f.every):
		case <-f.ctx.Done():
		}
	}
	if err := f.ctx.Err(); err != nil {
		return err
	}
	f.n++
	*ev = *event(f.n)
	ev.Time = time.Now()
	ev.Data = append(ev.Data, noise(f.n, f.size)...)
	return nil
}

func (f *flooding) Close() error { return nil }

// numbers is a sink that keeps the numbers of the events, and is down while it
// is told so.
type numbers struct {
	down atomic.Bool

	mu  sync.Mutex
	pos framework.Position
	got []int
}

func (s *numbers) Open(_ context.Context, info framework.SinkInfo) (framework.Position, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down.Load() {
		return framework.Position{}, errors.New("down")
	}
	if s.pos.Journal == "" || info.Restart > 0 {
		s.pos = framework.Position{Journal: info.Journal, Partition: info.Partition}
	}
	return s.pos, nil
}

func (s *numbers) Write(_ context.Context, b *framework.Batch) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down.Load() {
		return errors.New("down")
	}
	if s.pos != b.From {
		return &framework.PositionError{Want: b.From, Have: s.pos}
	}
	for i := range b.Records {
		s.got = append(s.got, number(b.Records[i].ID))
	}
	s.pos = b.To
	return nil
}

func (s *numbers) Close() error { return nil }

func (s *numbers) numbers() []int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]int(nil), s.got...)
}

// at is the chunk of the sink's position.
func (s *numbers) at() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pos.Seq
}

func number(id string) (n int) {
	for _, c := range id {
		n = 10*n + int(c-'0')
	}
	return n
}

// held is a worker with the streams a/s and b/s and a sink for each.
type held struct {
	t    *testing.T
	j    *Journal
	w    *framework.Worker
	a, b *numbers
	over chan error
}

const full = 8 << 20

// holding runs one until the test ends. Target a floods the journal.
func holding(t *testing.T, j *Journal, a, b *numbers, other flood, change func(*framework.Config)) *held {
	t.Helper()
	sink := func(target string, s *numbers) framework.SinkConfig {
		return framework.SinkConfig{
			ID: target + "/sink", New: func() (framework.Sink, error) { return s, nil }, BatchEvery: 20 * time.Millisecond,
			Wants: func(stream string) bool { return strings.HasPrefix(stream, target+"/") },
		}
	}
	limits := &framework.Limits{ConnectsPerSecond: 1000, Burst: 1000}
	c := framework.Config{
		Journal: j, MaxBytes: full,
		Streams: []*framework.Stream{
			{Name: "a/s", Target: flood{size: 20_000, every: time.Millisecond}, Limits: limits, StaleAfter: -1},
			{Name: "b/s", Target: other, Limits: limits, StaleAfter: -1},
		},
		Sinks: []framework.SinkConfig{sink("a", a), sink("b", b)},
		Log:   testLog(t),
	}
	if change != nil {
		change(&c)
	}
	w, err := framework.NewWorker(c)
	if err != nil {
		t.Fatal(err)
	}
	h := &held{t: t, j: j, w: w, a: a, b: b, over: make(chan error, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	go func() { h.over <- w.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-h.over })
	return h
}

func (h *held) until(what string, ok func() bool) {
	h.t.Helper()
	// What it waits for is promised, and not by when: only the end of the test
	// binary's own time is too late.
	for end, limited := h.t.Deadline(); !ok(); time.Sleep(10 * time.Millisecond) {
		if limited && time.Until(end) < 10*time.Second {
			h.t.Fatalf("never: %s; %+v", what, h.w.Stats())
		}
	}
}

func (h *held) stream(name string) framework.StreamStats {
	for _, s := range h.w.Stats().Streams {
		if s.Name == name {
			return s
		}
	}
	return framework.StreamStats{}
}

func (h *held) sink(id string) framework.SinkStats {
	for _, s := range h.w.Stats().Sinks {
		if s.ID == id {
			return s
		}
	}
	return framework.SinkStats{}
}

// A sink that is down fills the journal: only the streams that it wants stop,
// and they go on when it has caught up, with nothing lost.
func TestFullJournalStopsOnlyTheStreamsOfTheSink(t *testing.T) {
	a, b := &numbers{}, &numbers{}
	a.down.Store(true)
	h := holding(t, open(t, Config{MaxBytes: full}), a, b, flood{size: 100, every: 5 * time.Millisecond}, nil)
	h.until("a/s is blocked", func() bool { return h.stream("a/s").State == "blocked" })
	events, other := h.stream("a/s").Events, len(b.numbers())
	h.until("b goes on", func() bool { return len(b.numbers()) > other+70 })
	// One may have been past the brake, however long that one takes.
	if now := h.stream("a/s").Events; now > events+1 {
		t.Errorf("a/s took %d events while it was blocked", now-events)
	}
	if s := h.stream("a/s"); !strings.Contains(s.Detail, "a/sink") {
		t.Errorf("a/s says %q", s.Detail)
	}
	a.down.Store(false)
	h.until("a/s goes on", func() bool { return h.stream("a/s").Events > events+100 })
	h.until("its sink has it", func() bool { return len(a.numbers()) > int(events)+100 })
	for i, n := range a.numbers() {
		if n != i+1 {
			t.Fatalf("event %d in the place of %d", n, i+1)
		}
	}
}

// Where the others fill what is in reserve, the sink is detached: they are
// never stopped. It then has to begin anew.
func TestBlockedSinkIsDetachedBeforeItStopsOthers(t *testing.T) {
	for policy, lag := range map[framework.FullPolicy]int64{framework.FullBlock: 0, framework.FullDetach: 0, "max_lag": full / 2} {
		t.Run(string(policy), func(t *testing.T) {
			j := open(t, Config{MaxBytes: full})
			a, b := &numbers{}, &numbers{}
			h := holding(t, j, a, b, flood{size: 20_000, every: time.Millisecond}, func(c *framework.Config) {
				if c.WhenFull = policy; lag > 0 {
					c.WhenFull, c.Sinks[0].MaxLagBytes = framework.FullBlock, lag
				}
			})
			h.until("a's sink has a position", func() bool { return len(a.numbers()) > 0 })
			a.down.Store(true)
			h.until("a's sink is detached", func() bool { return h.sink("a/sink").State == "detached" })
			events, other := h.stream("a/s").Events, h.stream("b/s").Events
			h.until("both go on", func() bool {
				return h.stream("a/s").Events > events+300 && h.stream("b/s").Events > other+100
			})
			if s := h.sink("b/sink"); s.State == "detached" || s.Lost > 0 {
				t.Errorf("b's sink: %+v", s)
			}
			for _, s := range j.parts[0].held() {
				if s.Sink == "a/sink" {
					t.Errorf("it still holds %+v", s)
				}
			}
			h.w.Drain()
			if err := <-h.over; err != nil {
				t.Errorf("the run ended with %v", err)
			}
			j.trim(time.Now().Add(48 * time.Hour))
			a.down.Store(false)
			again := holding(t, j, a, b, flood{size: 100}, nil)
			err := <-again.over
			var position *framework.PositionError
			if !errors.As(err, &position) || !strings.Contains(err.Error(), "--restart-sink a/sink") {
				t.Errorf("after the return of the sink: %v", err)
			}
			h.over <- nil
			again.over <- nil
		})
	}
}

// With drop_oldest the sink goes on with what is left, and the ledger names
// what it lost.
func TestDroppedChunksAreAKnownLoss(t *testing.T) {
	for _, began := range []bool{true, false} {
		j := open(t, Config{MaxBytes: full})
		a, b := &numbers{}, &numbers{}
		a.down.Store(!began)
		h := holding(t, j, a, b, flood{size: 100, every: 5 * time.Millisecond}, func(c *framework.Config) { c.WhenFull = framework.FullDrop })
		if began {
			h.until("a's sink has a position", func() bool { return len(a.numbers()) > 0 })
			a.down.Store(true)
		}
		before, at := len(a.numbers()), a.at()
		events := h.stream("a/s").Events
		h.until("chunks are dropped, and forgotten", func() bool {
			j.trim(time.Now())
			first, _ := j.Bounds(0)
			return first > at+10 && h.stream("a/s").Events > events+2*ringBytes/20_000
		})
		h.until("the journal is small", func() bool {
			j.trim(time.Now())
			used, _ := j.Space()
			return used <= 4*full
		})
		a.down.Store(false)
		h.until("the sink goes on", func() bool { return len(a.numbers()) > before+100 })
		lost := h.sink("a/sink").Lost
		got := a.numbers()
		gaps := 0
		for i := 1; i < len(got); i++ {
			if got[i] < got[i-1] {
				t.Fatalf("event %d after %d", got[i], got[i-1])
			}
			if got[i] > got[i-1]+1 {
				gaps++
			}
		}
		if began && gaps == 0 || !began && got[0] == 1 || lost == 0 {
			t.Errorf("began=%v: %d gaps, first %d, %d chunks lost", began, gaps, got[0], lost)
		}
		if s := h.sink("b/sink"); s.Lost > 0 {
			t.Errorf("b's sink lost %d chunks", s.Lost)
		}
		h.w.Drain()
		err := <-h.over
		if h.over <- nil; err != nil {
			t.Fatal(err)
		}
		sum := uint64(0)
		for _, l := range framework.ReadLedger(resume(t, j, "a/s").Notes, time.Time{}).Lost {
			if sum += l.ToChunk - l.FromChunk + 1; l.Sink != "a/sink" || l.Why == "" {
				t.Errorf("the ledger says %+v", l)
			}
		}
		if sum < lost {
			t.Errorf("the ledger tells of %d chunks, %d were lost", sum, lost)
		}
		if l := framework.ReadLedger(resume(t, j, "b/s").Notes, time.Time{}).Lost; len(l) > 0 {
			t.Errorf("b's ledger says %+v", l)
		}
	}
}

// Only the sinks of the running worker hold chunks: one that was taken out of
// the configuration holds nothing after a restart.
func TestRemovedSinkHoldsNothing(t *testing.T) {
	dir := t.TempDir()
	a, b := &numbers{}, &numbers{}
	a.down.Store(true)
	fill := flood{size: 1000, every: time.Millisecond}
	slow := func(c *framework.Config) { c.Streams[0].Target = fill }
	j := open(t, Config{Dir: dir})
	h := holding(t, j, a, b, fill, slow)
	h.until("b has much", func() bool { return len(b.numbers()) > 100 })
	j.trim(time.Now().Add(48 * time.Hour))
	if first, _ := j.Bounds(0); first != 1 {
		t.Fatalf("the sink that is down holds nothing: first %d", first)
	}
	h.w.Drain()
	h.until("b has all", func() bool { s := h.sink("b/sink"); return s.State == "level" })
	a.down.Store(false) // else the run waits for it
	if err := <-h.over; err != nil {
		t.Fatal(err)
	}
	h.over <- nil
	a.down.Store(true)
	closeJournal(t, j)

	j = open(t, Config{Dir: dir})
	_, last := j.Bounds(0)
	j.trim(time.Now().Add(48 * time.Hour))
	if first, _ := j.Bounds(0); first != 1 {
		t.Fatalf("chunks were dropped before anybody could say what is needed: first %d", first)
	}
	h = holding(t, j, a, b, fill, func(c *framework.Config) { slow(c); c.Sinks = c.Sinks[1:] })
	h.until("the chunks go", func() bool { j.trim(time.Now().Add(48 * time.Hour)); first, _ := j.Bounds(0); return first >= last })
}
