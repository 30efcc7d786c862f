package journal

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/holdline/scrape/framework"
)

// eachSynced appends the events, one to a chunk.
func eachSynced(t *testing.T, j *Journal, name string, from, to int) {
	t.Helper()
	l := stream(t, j, name)
	for n := from; n <= to; n++ {
		appendEvents(t, l, n, n)
		syncJournal(t, j)
	}
}

func TestRetentionByAge(t *testing.T) {
	dir := t.TempDir()
	j := open(t, Config{Dir: dir, Retain: time.Hour})
	appendEvents(t, stream(t, j, "b/idle"), 7, 7)
	eachSynced(t, j, "a/s", 1, 30)
	_, last := j.Bounds(0)

	first := func() uint64 { f, _ := j.Bounds(0); return f }
	j.trim(time.Now())
	if first() != 1 {
		t.Fatalf("young chunks were dropped: first %d", first())
	}
	later := time.Now().Add(2 * time.Hour)
	j.Release("a/sink", framework.Position{Journal: j.ID(), Seq: 5, Event: 1})
	j.Release("a/sink", framework.Position{Journal: "aaaaaaaaaaaaaaaa", Seq: 50})
	j.trim(later)
	if first() != 5 {
		t.Fatalf("a sink at chunk 5, first %d", first())
	}
	j.Release("a/sink", framework.Position{Journal: j.ID(), Seq: last, Event: 1})
	j.trim(later)
	if first() != last {
		t.Fatalf("the newest chunk %d must stay alone, first %d", last, first())
	}
	// What a reader of the beginning gets, and one from before it.
	if got := readAll(t, j); len(got) != 1 || got[0].Err != nil || got[0].Seq != last {
		t.Fatalf("%d chunks left, %+v", len(got), got[0])
	}
	got := read(t, j, framework.Position{Seq: 3, Event: 1}, nil, func(c *framework.Chunk) bool { return c.Seq == last })
	var damage *framework.DamageError
	if len(got) != 2 || !errors.As(got[0].Err, &damage) || damage.From != 4 || damage.To != last-1 || !errors.Is(damage, errPurged) {
		t.Fatalf("from 3: %+v, %v", got[0], damage)
	}
	// An idle stream is still known, writing goes on, and so after a restart.
	eachSynced(t, j, "a/s", 31, 32)
	closeJournal(t, j)
	j = open(t, Config{Dir: dir})
	if f, l := j.Bounds(0); f != last || l != last+2 {
		t.Fatalf("bounds %d, %d after a restart", f, l)
	}
	if r := resume(t, j, "b/idle"); r.Cursor != "7" || !r.Known || len(r.Tail) != 0 {
		t.Fatalf("the idle stream resumes from %+v", r)
	}
	if r := resume(t, j, "a/s"); r.Cursor != "32" || len(r.Tail) != 3 {
		t.Fatalf("the other from %q, tail %d", r.Cursor, len(r.Tail))
	}
	for _, c := range readAll(t, j) {
		if c.Err != nil {
			t.Fatalf("retention looks like damage: %v", c.Err)
		}
	}
}

func TestRetentionBySize(t *testing.T) {
	j := open(t, Config{RetainBytes: 1 << 20, ChunkEvents: 10})
	l := stream(t, j, "a/s")
	wrote := 0 // of which the journal itself drops some, every ten seconds
	for n := 1; n <= 400; n++ {
		ev := event(n)
		ev.Data = noise(n, 10_000)
		if n%100 == 0 {
			ev.Data = noise(n, 3<<20) // in parts: never cut in the middle
		}
		wrote += len(ev.Data)
		if err := l.Append(t.Context(), ev); err != nil {
			t.Fatal(err)
		}
	}
	syncJournal(t, j)
	size := func() uint64 {
		info, err := j.reading().stream(t.Context(), chunkStream(0))
		if err != nil {
			t.Fatal(err)
		}
		return info.State.Bytes
	}
	for range 20 {
		j.trim(time.Now())
		for _, c := range readAll(t, j) {
			if c.Err != nil {
				t.Fatalf("retention cut a chunk: %v", c.Err)
			}
		}
	}
	// The last chunk alone is larger than what is to be kept.
	if now := size(); wrote < 15<<20 || now > 5<<20 {
		t.Errorf("%d bytes are left of %d", now, wrote)
	}
}

func TestIdleStreamKeepsItsTail(t *testing.T) {
	dir := t.TempDir()
	j := open(t, Config{Dir: dir, Linger: time.Nanosecond})
	appendEvents(t, stream(t, j, "b/idle"), 1, 20)
	syncJournal(t, j)
	// Push it out of what the common scan looks at, without writing so much.
	l := stream(t, j, "a/s")
	for n := 1; n <= 300; n++ {
		ev := event(n)
		ev.Data = noise(n, 50<<10)
		if err := l.Append(t.Context(), ev); err != nil {
			t.Fatal(err)
		}
	}
	closeJournal(t, j)
	j = open(t, Config{Dir: dir})
	j.tailBytes = 4 << 20
	if r := resume(t, j, "a/s"); len(r.Tail) == 0 || len(r.Tail) == 300 || r.Tail[len(r.Tail)-1].ID != "300" {
		t.Fatalf("the busy stream's tail has %d events", len(r.Tail))
	}
	if r := resume(t, j, "b/idle"); len(r.Tail) != 20 || r.Tail[19].ID != "20" || r.Cursor != "20" {
		t.Fatalf("the idle stream's tail has %d events", len(r.Tail))
	}
}

func TestNotesAreBoundedAndSummedUp(t *testing.T) {
	dir := t.TempDir()
	j := open(t, Config{Dir: dir})
	l := stream(t, j, "a/s")
	const notes = 3 * KeptNotes
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for n := range notes {
		at := begin.Add(time.Duration(n) * time.Minute)
		body := fmt.Appendf(nil, `{"state":"known","from":%q,"to":%q,"first_id":%d,"last_id":%[3]d,"missing":1}`,
			at.Format(time.RFC3339), at.Add(time.Second).Format(time.RFC3339), n+1)
		if err := l.Note(t.Context(), framework.Note{Kind: framework.NoteGap, Body: body}); err != nil {
			t.Fatal(err)
		}
	}
	check := func() {
		t.Helper()
		r := resume(t, j, "a/s")
		ledger := framework.ReadLedger(r.Notes, time.Time{})
		sum := ledger.Sum()
		known := sum.Gaps[framework.GapKnown]
		if n := len(r.Notes); n < KeptNotes/2 || n > 2*KeptNotes || known.Count != notes || known.Missing != notes || r.Cursor != "" {
			t.Fatalf("%d notes, %d gaps known, cursor %q", n, known.Count, r.Cursor)
		}
		if len(ledger.Totals) == 0 || ledger.Gaps[len(ledger.Gaps)-1].FirstID != notes || !ledger.From.Equal(begin) {
			t.Fatalf("%d totals, from %v", len(ledger.Totals), ledger.From)
		}
	}
	check()
	closeJournal(t, j)
	j = open(t, Config{Dir: dir})
	check()
	if names := j.Streams(); len(names) != 1 || names[0] != "a/s" {
		t.Errorf("streams %q", names)
	}
}

// A clock that is set back drops nothing early, and confuses no reader: events
// keep the time that they came with, and their order.
func TestClockJumpsBack(t *testing.T) {
	dir := t.TempDir()
	j := open(t, Config{Dir: dir, Retain: time.Hour})
	l := stream(t, j, "a/s")
	noon := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	times := []time.Duration{0, time.Minute, -24 * time.Hour, -24*time.Hour + time.Second, 2 * time.Minute}
	for n, d := range times {
		ev := event(n + 1)
		ev.Time = noon.Add(d)
		if err := l.Append(t.Context(), ev); err != nil {
			t.Fatal(err)
		}
		if n%2 == 0 {
			syncJournal(t, j)
		}
	}
	syncJournal(t, j)
	j.trim(time.Now().Add(-24 * time.Hour))
	closeJournal(t, j)
	j = open(t, Config{Dir: dir, Retain: time.Hour})
	events := eventsOf(t, readAll(t, j), "a/s")
	if len(events) != len(times) {
		t.Fatalf("%d events are left of %d", len(events), len(times))
	}
	for n, ev := range events {
		if ev.ID != fmt.Sprint(n+1) || !ev.Time.Equal(noon.Add(times[n])) {
			t.Errorf("event %d is %s of %v", n+1, ev.ID, ev.Time)
		}
	}
	if r := resume(t, j, "a/s"); r.Cursor != "5" || len(r.Tail) != 5 {
		t.Errorf("it resumes from %q with %d events", r.Cursor, len(r.Tail))
	}
}

func TestKeepAllDropsNothing(t *testing.T) {
	for _, keep := range []bool{true, false} {
		j := open(t, Config{KeepAll: keep, Retain: time.Hour})
		eachSynced(t, j, "a/s", 1, 10)
		j.trim(time.Now().Add(48 * time.Hour))
		if first, _ := j.Bounds(0); (first == 1) != keep {
			t.Errorf("KeepAll %v: first %d", keep, first)
		}
	}
}
