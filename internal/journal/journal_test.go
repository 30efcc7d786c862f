package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdline/scrape/framework"
)

func TestAppendReadResume(t *testing.T) {
	dir := t.TempDir()
	j := open(t, Config{Dir: dir})
	id := j.ID()
	if r := resume(t, j, "a/s"); r.Known || r.Cursor != "" || r.Tail != nil {
		t.Fatalf("a new stream resumes from %+v", r)
	}
	l := stream(t, j, "a/s")
	appendEvents(t, l, 1, 10_000)
	syncJournal(t, j)
	if n := l.Committed(); n != 10_000 {
		t.Fatalf("%d committed after Sync", n)
	}
	first, last := j.Bounds(0)
	if first != 1 || last < 3 {
		t.Fatalf("bounds %d, %d: 10,000 events take at least 3 chunks", first, last)
	}
	chunks := readAll(t, j)
	wantEvents(t, eventsOf(t, chunks, "a/s"), 1, 10_000)
	for i, c := range chunks {
		if c.Seq != uint64(i+1) || c.Journal != id || c.Count != len(c.Events) || c.Count > DefaultChunkEvents || time.Since(c.Committed) > time.Hour {
			t.Fatalf("chunk %d: %+v", i, c)
		}
	}
	closeJournal(t, j)
	if err := l.Append(t.Context(), event(1)); !errors.Is(err, ErrClosed) {
		t.Fatalf("append after Close: %v", err)
	}

	j = open(t, Config{Dir: dir})
	if j.ID() != id {
		t.Fatalf("journal %s became %s", id, j.ID())
	}
	r := resume(t, j, "a/s")
	if !r.Known || r.Cursor != "10000" || len(r.Tail) != KeptTail {
		t.Fatalf("known %v, cursor %q, tail of %d", r.Known, r.Cursor, len(r.Tail))
	}
	for i, e := range r.Tail {
		want := event(10_000 - KeptTail + 1 + i)
		if e.ID != string(want.ID) || e.Hash != framework.HashEvent(want.Type, want.Data) || !e.Time.Equal(want.Time) {
			t.Fatalf("tail %d is %+v, want %s", i, e, want.ID)
		}
	}
	// Numbers go on, and a second journal is another one.
	appendEvents(t, stream(t, j, "a/s"), 10_001, 10_001)
	syncJournal(t, j)
	if _, now := j.Bounds(0); now != last+1 {
		t.Fatalf("chunk %d follows %d", now, last)
	}
	if other := open(t, Config{}); other.ID() == id {
		t.Fatal("two journals have one id")
	}
}

func TestManyStreamsNotesAndMoves(t *testing.T) {
	dir := t.TempDir()
	j := open(t, Config{Dir: dir})
	var wg sync.WaitGroup
	const streams, events = 50, 200
	for s := range streams {
		wg.Go(func() {
			l, err := j.Stream(t.Context(), fmt.Sprintf("t/%d", s))
			if err != nil {
				t.Error(err)
				return
			}
			for n := 1; n <= events; n++ {
				if err := l.Append(t.Context(), event(s*1000+n)); err != nil {
					t.Error(err)
					return
				}
			}
			if err := l.Note(t.Context(), framework.Note{Kind: byte(s), Body: []byte("first")}); err != nil {
				t.Error(err)
			}
			if err := l.Note(t.Context(), framework.Note{Kind: 200}); err != nil {
				t.Error(err)
			}
			if err := l.Move(t.Context(), framework.Cursor(fmt.Sprintf("moved %d", s))); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	syncJournal(t, j)
	check := func() {
		t.Helper()
		chunks := readAll(t, j)
		for s := range streams {
			name := fmt.Sprintf("t/%d", s)
			wantEvents(t, eventsOf(t, chunks, name), s*1000+1, s*1000+events)
			r := resume(t, j, name)
			notes := []framework.Note{{Kind: byte(s), Body: []byte("first")}, {Kind: 200, Body: r.Notes[1].Body}}
			if r.Cursor != framework.Cursor(fmt.Sprintf("moved %d", s)) || !reflect.DeepEqual(r.Notes, notes) || len(r.Notes[1].Body) != 0 || len(r.Tail) != events {
				t.Fatalf("%s resumes from %q, notes %v, tail %d", name, r.Cursor, r.Notes, len(r.Tail))
			}
			if r.Tail[events-1].ID != fmt.Sprint(s*1000+events) {
				t.Fatalf("the tail ends at %s", r.Tail[events-1].ID)
			}
		}
	}
	check() // from what was committed
	closeJournal(t, j)
	j = open(t, Config{Dir: dir})
	check() // from the snapshot that Close took
}

func TestResumeAfterAppendSeesIt(t *testing.T) {
	j := open(t, Config{})
	l := stream(t, j, "a/s")
	for n := 1; n <= 3; n++ {
		appendEvents(t, l, n, n)
		if r := resume(t, j, "a/s"); r.Cursor != framework.Cursor(fmt.Sprint(n)) || len(r.Tail) != n || r.Tail[n-1].ID != fmt.Sprint(n) {
			t.Fatalf("after event %d: %+v", n, r)
		}
	}
}

func TestHistoryReachesFartherBackThanTheTail(t *testing.T) {
	j := open(t, Config{})
	l := stream(t, j, "a/s")
	other := stream(t, j, "a/o")
	appendEvents(t, l, 1, 15_000)
	appendEvents(t, other, 1, 3)
	for most, first := range map[int]int{12_000: 3001, 1 << 16: 1} {
		got, err := l.History(t.Context(), most)
		if err != nil || len(got) != 15_000-first+1 {
			t.Fatalf("%d events of at most %d: %v", len(got), most, err)
		}
		for i, e := range got {
			if want := event(first + i); e.ID != string(want.ID) || e.Hash != framework.HashEvent(want.Type, want.Data) {
				t.Fatalf("event %d is %+v, want %s", i, e, want.ID)
			}
		}
	}
	ev := event(20_000)
	ev.Filled = true
	if err := l.Append(t.Context(), ev); err != nil {
		t.Fatal(err)
	}
	if got, err := l.History(t.Context(), 1<<16); err != nil || len(got) != 15_000 {
		t.Fatalf("%d events with one that was filled: %v", len(got), err)
	}
	if got, err := stream(t, j, "a/new").History(t.Context(), 10); got != nil || err != nil {
		t.Fatalf("of a new stream: %v, %v", got, err)
	}
}

func TestEventsComeBackAsTheyWere(t *testing.T) {
	j := open(t, Config{})
	l := stream(t, j, "a/ü\x00")
	at := time.Unix(5, 7)
	events := []framework.Event{
		{Time: at},
		{ID: []byte("x"), Type: "t", Cursor: "x", Data: []byte{0, 255, 254}, Time: at.Add(-time.Hour)},
		{Type: "t", Cursor: "x", Time: at},
		{ID: []byte("y"), Cursor: "z", Type: "message", Data: []byte("\xff\xfe"), Time: at},
		{Type: "", Cursor: "", Time: at},
		{ID: bytes.Repeat([]byte("i"), 5000), Type: strings.Repeat("t", 3000), Cursor: framework.Cursor(strings.Repeat("c", MaxText)), Time: at},
	}
	for i := range events {
		if err := l.Append(t.Context(), &events[i]); err != nil {
			t.Fatal(err)
		}
		if i == 2 { // a move between events must not leak into them
			if err := l.Move(t.Context(), events[3].Cursor); err != nil {
				t.Fatal(err)
			}
		}
	}
	syncJournal(t, j)
	got := eventsOf(t, readAll(t, j), "a/ü\x00")
	if len(got) != len(events) {
		t.Fatalf("%d events", len(got))
	}
	for i, want := range events {
		ev := got[i]
		if ev.ID != string(want.ID) || ev.Type != want.Type || ev.Cursor != want.Cursor || !ev.Time.Equal(want.Time) || !bytes.Equal(ev.Data, want.Data) {
			t.Errorf("event %d: got %+v, want %+v", i, ev, want)
		}
	}
	for _, err := range []error{
		l.Move(t.Context(), framework.Cursor(strings.Repeat("c", MaxText+1))),
		l.Note(t.Context(), framework.Note{Body: make([]byte, MaxText+1)}),
		l.Append(t.Context(), &framework.Event{Cursor: framework.Cursor(strings.Repeat("c", MaxText+1))}),
	} {
		var size *SizeError
		if !errors.As(err, &size) || size.Stream != "a/ü\x00" {
			t.Errorf("too long: %v", err)
		}
	}
}

func TestLargeEvents(t *testing.T) {
	dir := t.TempDir()
	j := open(t, Config{Dir: dir})
	big := func(n, size int) *framework.Event {
		ev := event(n)
		ev.Data = noise(n, size)
		return ev
	}
	sizes := []int{10, 16 << 20, 20, 700 << 10, 768 << 10, 900 << 10, 3 << 20, 5}
	fromMemory := reading(t, j, framework.Position{}, nil, func(c *framework.Chunk) bool {
		return len(c.Events) > 0 && c.Events[len(c.Events)-1].ID == fmt.Sprint(len(sizes)-1)
	})
	l := stream(t, j, "a/s")
	for n, size := range sizes {
		if err := l.Append(t.Context(), big(n, size)); err != nil {
			t.Fatal(err)
		}
	}
	syncJournal(t, j)
	check := func(chunks []*framework.Chunk) {
		t.Helper()
		got := eventsOf(t, chunks, "a/s")
		if len(got) != len(sizes) {
			t.Fatalf("%d events", len(got))
		}
		for n, size := range sizes {
			if !bytes.Equal(got[n].Data, big(n, size).Data) {
				t.Fatalf("event %d of %d bytes differs", n, size)
			}
		}
	}
	check(<-fromMemory)
	check(readAll(t, j))
	chunks := readAll(t, j)
	closeJournal(t, j)
	j = open(t, Config{Dir: dir})
	check(readAll(t, j))
	// A reader that begins at a chunk in parts gets it whole, one that has
	// passed it does not get it again.
	for _, c := range chunks {
		at := framework.Position{Journal: j.ID(), Seq: c.Seq}
		got := read(t, j, at, nil, func(*framework.Chunk) bool { return true })
		if !reflect.DeepEqual(got[0], c) {
			t.Fatalf("read from %v: chunk %d with %d events", at, got[0].Seq, got[0].Count)
		}
		at.Event = c.Count
		if c.Seq == chunks[len(chunks)-1].Seq {
			break
		}
		if got := read(t, j, at, nil, func(*framework.Chunk) bool { return true }); got[0].Seq <= c.Seq {
			t.Fatalf("read from %v: chunk %d again", at, got[0].Seq)
		}
	}
	if r := resume(t, j, "a/s"); len(r.Tail) != len(sizes) || r.Cursor != framework.Cursor(fmt.Sprint(len(sizes)-1)) {
		t.Fatalf("resumes from %q with %d", r.Cursor, len(r.Tail))
	}
}

func TestMemoryAndDiskGiveTheSame(t *testing.T) {
	j := open(t, Config{ChunkEvents: 50})
	const events = 5000
	last := func(c *framework.Chunk) bool {
		return len(c.Events) > 0 && c.Events[len(c.Events)-1].ID == fmt.Sprint(events)
	}
	ready := make(chan struct{}, 3)
	var live [3]<-chan []*framework.Chunk
	for i := range live {
		live[i] = reading(t, j, framework.Position{}, func(string) bool {
			select {
			case ready <- struct{}{}:
			default:
			}
			return true
		}, last)
	}
	l := stream(t, j, "a/s")
	appendEvents(t, l, 1, 1)
	for range live {
		<-ready // all of them wait for more now
	}
	appendEvents(t, l, 2, events)
	syncJournal(t, j)
	a, b, c := <-live[0], <-live[1], <-live[2]
	wantEvents(t, eventsOf(t, a, "a/s"), 1, events)
	if same(a, b) == 0 || same(b, c) == 0 {
		t.Fatal("no chunk was shared by the readers")
	}
	disk := readAll(t, j)
	for i := range disk {
		for _, other := range [][]*framework.Chunk{a, b, c} {
			other[i].Committed, disk[i].Committed = other[i].Committed.Round(0), disk[i].Committed.Round(0)
			if !reflect.DeepEqual(*disk[i], *other[i]) {
				t.Fatalf("chunk %d differs:\n%+v\n%+v", disk[i].Seq, *disk[i], *other[i])
			}
		}
	}
}

// same counts the chunks that are one and the same value.
func same(a, b []*framework.Chunk) (n int) {
	for i := range min(len(a), len(b)) {
		if a[i] == b[i] {
			n++
		}
	}
	return n
}

func TestFilter(t *testing.T) {
	j := open(t, Config{})
	wanted, other := stream(t, j, "a/wanted"), stream(t, j, "b/other")
	appendEvents(t, other, 1, 10)
	syncJournal(t, j)
	appendEvents(t, wanted, 1, 5)
	appendEvents(t, other, 11, 20)
	syncJournal(t, j)
	chunks := read(t, j, framework.Position{}, func(s string) bool { return s == "a/wanted" },
		func(c *framework.Chunk) bool { _, last := j.Bounds(0); return c.Seq == last })
	seen := 0
	for _, c := range chunks {
		hasWanted := strings.Contains(strings.Join(c.Streams, " "), "a/wanted")
		if hasWanted != (c.Events != nil) || c.Count == 0 {
			t.Errorf("chunk %d with %v: %d of %d events", c.Seq, c.Streams, len(c.Events), c.Count)
		}
		for _, ev := range c.Events {
			if c.Streams[ev.Stream] == "a/wanted" {
				seen++
			}
		}
	}
	if seen != 5 {
		t.Errorf("%d events of the wanted stream", seen)
	}
}

func TestReadRefusesForeignPositions(t *testing.T) {
	j := open(t, Config{})
	for _, pos := range []framework.Position{{Journal: "aaaaaaaaaaaaaaaa"}, {Journal: j.ID(), Partition: 1}, {Partition: -1}} {
		for _, err := range j.Read(t.Context(), pos, nil) {
			if err == nil {
				t.Errorf("%v was read", pos)
			}
		}
	}
}

func TestReadEndsWithContextAndClose(t *testing.T) {
	j := open(t, Config{})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	reader := func(ctx context.Context) {
		for _, err := range j.Read(ctx, framework.Position{}, nil) {
			if err != nil {
				ended <- err
			}
		}
	}
	go reader(ctx)
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v", err)
	}
	go reader(t.Context())
	closeJournal(t, j)
	if err := <-ended; !errors.Is(err, ErrClosed) {
		t.Errorf("ended with %v", err)
	}
}

func TestPartitions(t *testing.T) {
	dir := t.TempDir()
	j := open(t, Config{Dir: dir, Partitions: 3})
	used := map[int]bool{}
	for s := range 20 {
		name := fmt.Sprintf("t/%d", s)
		used[j.Partition(name)] = true
		appendEvents(t, stream(t, j, name), 1, s+1)
	}
	if len(used) != 3 || j.Partition("t/0") != 2 || j.Partition("t/1") != 0 {
		t.Fatalf("hash changed: %v, %d, %d", used, j.Partition("t/0"), j.Partition("t/1"))
	}
	closeJournal(t, j)
	j = open(t, Config{Dir: dir, Partitions: 7})
	if j.Partitions() != 3 {
		t.Fatalf("%d partitions", j.Partitions())
	}
	for s := range 20 {
		if r := resume(t, j, fmt.Sprintf("t/%d", s)); r.Cursor != framework.Cursor(fmt.Sprint(s+1)) || len(r.Tail) != s+1 {
			t.Fatalf("stream %d resumes from %q", s, r.Cursor)
		}
	}
}

func TestDirectoryInUse(t *testing.T) {
	dir := t.TempDir()
	j := open(t, Config{Dir: dir})
	_, err := Open(t.Context(), Config{Dir: dir})
	var used *InUseError
	if !errors.As(err, &used) || used.PID == 0 || !strings.Contains(err.Error(), dir) {
		t.Fatalf("second Open: %v", err)
	}
	closeJournal(t, j)
	open(t, Config{Dir: dir})
}

func TestDurability(t *testing.T) {
	for d, want := range map[Durability]bool{SyncAlways: true, SyncEverySecond: false} {
		j := open(t, Config{Durability: d})
		if c := j.reading().srv.srv.JetStreamConfig(); c.SyncAlways != want || c.SyncInterval != time.Second {
			t.Errorf("durability %d: the server syncs always: %v, every %v", d, c.SyncAlways, c.SyncInterval)
		}
	}
}

func TestUseAfterClose(t *testing.T) {
	j := open(t, Config{})
	l := stream(t, j, "a/s")
	appendEvents(t, l, 1, 1)
	closeJournal(t, j)
	if _, err := l.Resume(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("Resume: %v", err)
	}
	if _, err := j.Stream(t.Context(), "a/s"); !errors.Is(err, ErrClosed) {
		t.Errorf("Stream: %v", err)
	}
	if err := j.Sync(t.Context()); err != nil { // everything is durable
		t.Errorf("Sync: %v", err)
	}
	if err := j.Close(); err != nil {
		t.Errorf("Close again: %v", err)
	}
}

func TestNothingIsLeftAfterClose(t *testing.T) {
	before := runtime.NumGoroutine()
	for range 3 {
		j := open(t, Config{})
		appendEvents(t, stream(t, j, "a/s"), 1, 100)
		syncJournal(t, j)
		readAll(t, j)
		closeJournal(t, j)
	}
	deadline := time.Now().Add(10 * time.Second)
	for runtime.NumGoroutine() > before {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
		}
		time.Sleep(10 * time.Millisecond)
	}
}
