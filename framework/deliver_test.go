package framework

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"
)

// memJournal is a journal of one partition whose chunks a test commits.
type memJournal struct {
	mu       sync.Mutex
	chunks   []*Chunk
	changed  chan struct{}
	yielded  int
	released map[string]Position
}

func newMemJournal() *memJournal {
	return &memJournal{changed: make(chan struct{}), released: map[string]Position{}}
}

// commit appends a chunk with an event of each data, all of one stream.
func (j *memJournal) commit(stream string, data ...string) {
	c := &Chunk{Streams: []string{stream}}
	for _, d := range data {
		c.Events = append(c.Events, StoredEvent{ID: d, Data: []byte(d)})
	}
	j.add(c)
}

func (j *memJournal) add(c *Chunk) {
	j.mu.Lock()
	defer j.mu.Unlock()
	c.Journal, c.Seq, c.Count = j.ID(), uint64(len(j.chunks)+1), len(c.Events)
	j.chunks = append(j.chunks, c)
	close(j.changed)
	j.changed = make(chan struct{})
}

func (j *memJournal) ID() JournalID { return "memory" }
func (j *memJournal) Stream(context.Context, string) (StreamLog, error) {
	return &keptLog{limit: -1}, nil
}
func (j *memJournal) Partition(string) int       { return 0 }
func (j *memJournal) Sync(context.Context) error { return nil }

func (j *memJournal) Forget(sink string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.released, sink)
}

func (j *memJournal) Bounds(int) (first, last uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return 1, uint64(len(j.chunks))
}

func (j *memJournal) Release(sink string, p Position) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if p.Journal == j.ID() {
		j.released[sink] = p
	}
}

func (j *memJournal) hold(sink string) (p Position, ok bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	p, ok = j.released[sink]
	return p, ok
}

// reads is how many chunks were read, again included.
func (j *memJournal) reads() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.yielded
}

func (j *memJournal) Read(ctx context.Context, after Position, _ func(string) bool) iter.Seq2[*Chunk, error] {
	return func(yield func(*Chunk, error) bool) {
		for n := int(max(after.Seq, 1)) - 1; ; n++ {
			j.mu.Lock()
			for n >= len(j.chunks) {
				changed := j.changed
				j.mu.Unlock()
				select {
				case <-changed:
				case <-ctx.Done():
					yield(nil, context.Cause(ctx))
					return
				}
				j.mu.Lock()
			}
			c := j.chunks[n]
			j.yielded++
			j.mu.Unlock()
			if !yield(c, nil) {
				return
			}
		}
	}
}

// memSink is a sink whose troubles a test makes.
type memSink struct {
	openErr, writeErr func() error // nil means none
	refuse            func(*Record) error

	mu      sync.Mutex
	opened  []SinkInfo
	pos     Position
	batches [][]Record
	times   []time.Time
}

func (s *memSink) Open(_ context.Context, info SinkInfo) (Position, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opened = append(s.opened, info)
	if s.openErr != nil {
		if err := s.openErr(); err != nil {
			return Position{}, err
		}
	}
	switch {
	case info.Restart > 0:
		s.pos = Position{Journal: info.Journal, Partition: info.Partition}
	case s.pos.Journal == "":
		s.pos = info.First()
	}
	return s.pos, nil
}

func (s *memSink) Write(_ context.Context, b *Batch) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b.From != s.pos {
		return &PositionError{Want: b.From, Have: s.pos}
	}
	for i := range b.Records {
		if s.refuse != nil {
			if err := s.refuse(&b.Records[i]); err != nil {
				return &RecordError{Key: b.Records[i].Key, Err: err}
			}
		}
	}
	if s.writeErr != nil {
		if err := s.writeErr(); err != nil {
			return err
		}
	}
	s.pos = b.To
	s.batches = append(s.batches, slices.Clone(b.Records))
	s.times = append(s.times, time.Now())
	return nil
}

func (s *memSink) Close() error { return nil }

func (s *memSink) data() (all []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.batches {
		for _, r := range b {
			all = append(all, string(r.Data))
		}
	}
	return all
}

func newDeliverer(j Journal, s Sink, c SinkConfig) *deliverer {
	c.ID, c.New = "t/sink", func() (Sink, error) { return s, nil }
	if c.Wants == nil {
		c.Wants = func(string) bool { return true }
	}
	return &deliverer{
		SinkConfig: c, journal: j, drain: make(chan struct{}), log: slog.New(slog.DiscardHandler),
	}
}

// deliverAll runs d until all that is in its journal is delivered.
func deliverAll(t *testing.T, d *deliverer) {
	t.Helper()
	close(d.drain)
	if err := d.run(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// A batch is written as soon as it has its records or its first record has
// waited its time, and no later.
func TestBatchEndsByNumberOrByTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j, s := newMemJournal(), &memSink{}
		d := newDeliverer(j, s, SinkConfig{BatchRecords: 3, BatchEvery: 200 * time.Millisecond})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- d.run(ctx) }()
		start := time.Now()
		at := func(ms time.Duration) { time.Sleep(time.Until(start.Add(ms * time.Millisecond))) }
		at(190)
		j.commit("t/s", "1")
		at(350)
		j.commit("t/s", "2") // waits with the first
		at(500)
		j.commit("t/s", "3", "4", "5", "6") // three of them are enough
		at(650)
		j.commit("t/other")
		at(10_000)
		j.commit("t/s", "7")
		at(11_000)
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		var got []string
		for i, b := range s.batches {
			got = append(got, fmt.Sprintf("%d at %v", len(b), s.times[i].Sub(start)))
		}
		// The empty batch moves the position over an event that is not wanted.
		if want := []string{"2 at 390ms", "3 at 500ms", "1 at 700ms", "1 at 10.2s"}; !slices.Equal(got, want) {
			t.Errorf("batches %q, want %q", got, want)
		}
	})
}

// Large records end a batch also when each comes in a chunk of its own.
func TestBatchOfLargeRecordsIsSmall(t *testing.T) {
	j, s := newMemJournal(), &memSink{}
	large := string(bytes.Repeat([]byte("x"), 1<<20))
	for range 40 {
		j.commit("t/s", large)
	}
	deliverAll(t, newDeliverer(j, s, SinkConfig{BatchRecords: 1000, BatchEvery: time.Hour}))
	for _, b := range s.batches {
		if len(b) > maxBatchBytes>>20 {
			t.Errorf("a batch has %d MiB, want at most %d", len(b), maxBatchBytes>>20)
		}
	}
	if n := len(s.data()); n != 40 {
		t.Errorf("%d records, want 40", n)
	}
}

// A record does not keep a chunk in memory of which the sink wants little; one
// of a chunk that is wanted is not copied.
func TestRecordsDoNotHoldChunksOfOthers(t *testing.T) {
	j, s := newMemJournal(), &memSink{}
	c := &Chunk{Streams: []string{"a/s", "b/s"}}
	for i := range 10 {
		c.Events = append(c.Events, StoredEvent{Stream: min(i, 1), ID: fmt.Sprint("id", i), Type: fmt.Sprint("type", i), Cursor: Cursor(fmt.Sprint("at", i)), Time: time.Unix(int64(i), 0), Data: []byte("some data")})
	}
	j.add(c)
	deliverAll(t, newDeliverer(j, s, SinkConfig{Wants: func(stream string) bool { return stream == "a/s" }, BatchRecords: 10, BatchEvery: time.Hour}))
	if len(s.batches) != 1 || len(s.batches[0]) != 1 {
		t.Fatalf("batches %v, want one record", s.batches)
	}
	r, ev := s.batches[0][0], c.Events[0]
	if r.ID != ev.ID || r.Type != ev.Type || r.Cursor != ev.Cursor || !r.Time.Equal(ev.Time) || !bytes.Equal(r.Data, ev.Data) || r.Stream != "a/s" {
		t.Errorf("record %+v is not of %+v", r, ev)
	}
	if unsafe.SliceData(r.Data) == unsafe.SliceData(ev.Data) || unsafe.StringData(r.ID) == unsafe.StringData(ev.ID) ||
		unsafe.StringData(r.Type) == unsafe.StringData(ev.Type) || unsafe.StringData(string(r.Cursor)) == unsafe.StringData(string(ev.Cursor)) {
		t.Error("the record holds the memory of the chunk")
	}

	s = &memSink{}
	deliverAll(t, newDeliverer(j, s, SinkConfig{Wants: func(stream string) bool { return stream == "b/s" }, BatchRecords: 10, BatchEvery: time.Hour}))
	if r := s.batches[0][0]; unsafe.SliceData(r.Data) != unsafe.SliceData(c.Events[1].Data) {
		t.Error("a record of a chunk that is wanted was copied")
	}
}

// While a sink is down nothing is read ahead of it; when it is up again all
// follows in full batches, without waiting in between.
func TestSinkDownForHours(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const each, every = 5, 10 * time.Second
		j := newMemJournal()
		down := errors.New("the disk of the database is full")
		up := time.Now().Add(6 * time.Hour)
		var attempts atomic.Int64
		s := &memSink{writeErr: func() error {
			if attempts.Add(1); time.Now().Before(up) {
				return down
			}
			return nil
		}}
		d := newDeliverer(j, s, SinkConfig{BatchRecords: 100, BatchEvery: time.Second})
		go func() {
			for n := 0; time.Now().Before(up); n += each {
				var data []string
				for i := range each {
					data = append(data, fmt.Sprint(n+i))
				}
				j.commit("t/s", data...)
				time.Sleep(every)
			}
		}()
		done := make(chan error, 1)
		go func() { done <- d.run(t.Context()) }()
		time.Sleep(6*time.Hour - 1)
		synctest.Wait()
		failed := int(attempts.Load())
		if read, most := j.reads(), failed*(100/each+2); read > most {
			t.Errorf("%d chunks were read for %d attempts, want at most %d", read, failed, most)
		}
		if failed < 6*60 || failed > 6*60*4 {
			t.Errorf("%d attempts in 6 hours, want one in about 30 s", failed)
		}
		if n := len(s.data()); n != 0 {
			t.Fatalf("%d records were delivered", n)
		}
		time.Sleep(time.Minute) // the longest wait between two attempts is over
		synctest.Wait()
		_, last := j.Bounds(0)
		total := int(last) * each
		if got := s.data(); len(got) != total || !slices.Equal(got[:3], []string{"0", "1", "2"}) || got[total-1] != fmt.Sprint(total-1) {
			t.Fatalf("%d records were delivered, want %d", len(got), total)
		}
		close(d.drain)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		for i, b := range s.batches[:total/100] {
			if len(b) != 100 || !s.times[i].Equal(s.times[0]) {
				t.Errorf("batch %d of the backlog has %d records and came %v after the first", i, len(b), s.times[i].Sub(s.times[0]))
			}
		}
	})
}

// A batch that fails for other reasons is read again: what it buried before is
// not buried again, and what it had not is.
func TestDeadLettersAreKeptOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := newMemJournal()
		j.commit("t/s", "1", "bad", "3", "refused", "5")
		j.commit("t/s", "6", "bad")
		failures := 4
		s := &memSink{
			refuse: func(r *Record) error {
				if string(r.Data) == "refused" {
					return errors.New("too large")
				}
				return nil
			},
			writeErr: func() error {
				if failures--; failures >= 0 {
					return errors.New("down")
				}
				return nil
			},
		}
		d := newDeliverer(j, s, SinkConfig{BatchRecords: 4, BatchEvery: time.Second})
		d.decoders = map[string]Decoder{"t/s": decoderFunc(func(ev *Event, emit func(Record)) error {
			if string(ev.Data) == "bad" {
				return errors.New("not a price")
			}
			emit(Record{Data: ev.Data})
			return nil
		})}
		kept := map[string]int{}
		broken := 2
		d.dead = func(letters []DeadLetter) error {
			if broken--; broken >= 0 {
				return errors.New("no room for dead letters")
			}
			for _, l := range letters {
				kept[l.Key.String()+" "+l.Reason] = 1 // it may come again
			}
			return nil
		}
		deliverAll(t, d)
		want := map[string]int{"memory/0/1/2/0 not a price": 1, "memory/0/1/4/1 too large": 1, "memory/0/2/2/0 not a price": 1}
		if !maps.Equal(kept, want) {
			t.Errorf("dead letters %v, want %v", kept, want)
		}
		if got, want := s.data(), []string{"1", "3", "5", "6"}; !slices.Equal(got, want) {
			t.Errorf("delivered %q, want %q", got, want)
		}
		if n := d.snapshot().DeadLetters; n != 3 {
			t.Errorf("%d dead letters were counted, want 3", n)
		}
	})
}

type decoderFunc func(ev *Event, emit func(Record)) error

func (f decoderFunc) Decode(_ string, ev *Event, emit func(Record)) error { return f(ev, emit) }

// A sink that does not answer when the run begins may need everything: until it
// has said where it is, nothing of the journal may be dropped.
func TestSinkThatIsDownAtTheStartHoldsTheJournal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := newMemJournal()
		j.commit("t/s", "1", "2", "3")
		s := &memSink{pos: Position{Journal: j.ID(), Seq: 1, Event: 2}}
		up := time.Now().Add(time.Hour)
		s.openErr = func() error {
			if time.Now().Before(up) {
				return errors.New("down")
			}
			return nil
		}
		w, err := NewWorker(Config{
			Journal: j,
			Streams: []*Stream{{Name: "t/s", Target: &site{every: 24 * time.Hour, start: time.Now()}, Limits: quickly(), StaleAfter: -1}},
			Sinks:   []SinkConfig{{ID: "t/sink", New: func() (Sink, error) { return s, nil }}},
		})
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- w.Run(t.Context()) }()
		time.Sleep(30 * time.Minute)
		synctest.Wait()
		if p, ok := j.hold("t/sink"); !ok || p.Seq != 0 {
			t.Errorf("while the sink is down it holds %v (%v), want everything", p, ok)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if p, ok := j.hold("t/sink"); !ok || p != (Position{Journal: j.ID(), Seq: 1, Event: 3}) {
			t.Errorf("the sink holds %v (%v), want what it has delivered", p, ok)
		}
		if got := s.data(); !slices.Equal(got, []string{"3"}) {
			t.Errorf("delivered %q, want the third record alone", got)
		}
		w.Drain()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	})
}
