package sinktest

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/holdline/scrape/framework"
)

// Cases in which something goes wrong.

// A Write was done, but its caller did not learn it: Open tells, and the batch
// is refused when it comes again.
func testAnswerLost(t *testing.T, h Harness) {
	address := h.Make(t)
	s := prices.opened(t, h, address, "records", 0)
	prices.write(t, s, 0, 10)
	prices.write(t, s, 10, 20) // its answer is lost here
	prices.refused(t, s, 10, 20, 20)
	prices.refused(t, s, 10, 20, 20) // and a refusal changes nothing
	prices.open(t, s, 20)
	prices.refused(t, s, 10, 20, 20)
	prices.write(t, s, 20, 30) // nor does it stop the sink
	holds(t, h, address, "records", map[feed]int{prices: 30})
}

// After a restart batches begin and end elsewhere, some over what is there
// already and some beyond it.
func testOtherBorders(t *testing.T, h Harness) {
	address := h.Make(t)
	random := rand.New(rand.NewPCG(1, 2))
	n, s := 0, framework.Sink(nil)
	for range 60 {
		if s == nil || random.IntN(3) == 0 {
			s = prices.opened(t, h, address, "records", n)
		}
		if from := n - random.IntN(n+1); from < n {
			prices.refused(t, s, from, n+random.IntN(20), n)
		}
		from := n + 1 + random.IntN(5)
		prices.refused(t, s, from, from+3, n)
		to := n + random.IntN(30)
		prices.write(t, s, n, to)
		n = to
	}
	holds(t, h, address, "records", map[feed]int{prices: n})
}

// The journal was deleted and begun again: the destination is not touched until
// it is adopted, and then takes everything from the beginning.
func testJournalDeleted(t *testing.T, h Harness) {
	address := h.Make(t)
	fresh := prices
	fresh.journal = "eeeeffffgggghhhh"
	old := prices.opened(t, h, address, "records", 0)
	prices.write(t, old, 0, 10)

	s := h.New(t, address, "records")
	t.Cleanup(func() { closeSink(t, s) })
	_, err := s.Open(t.Context(), fresh.info())
	e, ok := errors.AsType[*framework.PositionError](err)
	if !ok || !e.Foreign() || e.Sink != fresh.sink || e.Want.Journal != fresh.journal || e.Have != prices.at(10) || e.Reason == "" {
		t.Fatalf("Open with another journal: %v, want a foreign *PositionError that has %v", err, prices.at(10))
	}
	prices.open(t, old, 10)

	// A sink that is open for one journal is given a batch of another.
	err = old.Write(t.Context(), fresh.batch(10, 12))
	if e, ok = errors.AsType[*framework.PositionError](err); !ok || !e.Foreign() || e.Have != prices.at(10) {
		t.Fatalf("Write of another journal's batch: %v, want a foreign *PositionError that has %v", err, prices.at(10))
	}

	info := fresh.info()
	info.Adopt = true
	pos, err := s.Open(t.Context(), info)
	if err != nil || pos != fresh.at(0) {
		t.Fatalf("Open with Adopt: %v, %v, want %v", pos, err, fresh.at(0))
	}
	// The writer of the old journal has lost the destination.
	err = old.Write(t.Context(), prices.batch(10, 12))
	if e, ok = errors.AsType[*framework.PositionError](err); !ok || !e.Foreign() || e.Have != fresh.at(0) {
		t.Fatalf("Write after another journal took over: %v, want a foreign *PositionError that has %v", err, fresh.at(0))
	}
	fresh.write(t, s, 0, 15)
	fresh.open(t, s, 15) // without Adopt: it is ours now
	if pos, err = s.Open(t.Context(), info); err != nil || pos != fresh.at(15) {
		t.Fatalf("Open with Adopt of what is ours: %v, %v, want %v", pos, err, fresh.at(15))
	}
	holds(t, h, address, "records", map[feed]int{prices: 10, fresh: 15})
}

// A second writer of the same sink and partition is refused as soon as the
// first one has moved.
func testSecondWriter(t *testing.T, h Harness) {
	address := h.Make(t)
	a := prices.opened(t, h, address, "records", 0)
	b := prices.opened(t, h, address, "records", 0)
	prices.write(t, a, 0, 10)
	prices.refused(t, b, 0, 10, 10)
	prices.refused(t, b, 0, 3, 10)
	prices.open(t, b, 10)
	prices.write(t, b, 10, 15)
	prices.refused(t, a, 10, 20, 15)
	holds(t, h, address, "records", map[feed]int{prices: 15})
}

// Two writers really at once: one of them is done, the other is refused.
func testConcurrentWriters(t *testing.T, h Harness) {
	address := h.Make(t)
	const size = 50
	for round := range 20 {
		n := round * size
		answers := make(chan error, 2)
		var writers [2]framework.Sink
		for i := range writers {
			s := h.New(t, address, "records")
			prices.open(t, s, n)
			writers[i] = s
		}
		for _, s := range writers {
			go func() { answers <- s.Write(t.Context(), prices.batch(n, n+size)) }()
		}
		done := 0
		for range writers {
			err := <-answers
			if err == nil {
				done++
				continue
			}
			if e, ok := errors.AsType[*framework.PositionError](err); !ok || e.Foreign() || e.Have != prices.at(n+size) {
				t.Fatalf("the second of two writers: %v, want a *PositionError that has %v", err, prices.at(n+size))
			}
		}
		if done != 1 {
			t.Fatalf("%d of 2 writers of one batch were done, want 1", done)
		}
		for _, s := range writers {
			closeSink(t, s)
		}
		holds(t, h, address, "records", map[feed]int{prices: n + size})
	}
}

// A Write is given up at any moment: afterwards it was done or it was not, and
// Open tells which.
func testCancelAnywhere(t *testing.T, h Harness) {
	address := h.Make(t)
	s := prices.opened(t, h, address, "records", 0)
	const size = 200
	start := time.Now()
	prices.write(t, s, 0, size)
	long := time.Since(start)
	random := rand.New(rand.NewPCG(3, 4))
	n := size
	for range 30 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(random.Int64N(int64(long))))
		err := s.Write(ctx, prices.batch(n, n+size))
		cancel()
		if err == nil {
			n += size
			continue
		}
		ended(t, err)
		pos, err := s.Open(t.Context(), prices.info())
		if err != nil {
			t.Fatalf("Open after a cancelled Write: %v", err)
		}
		if pos == prices.at(n+size) {
			n += size
		} else if pos != prices.at(n) {
			t.Fatalf("after a cancelled Write the position is %v, want %v or %v", pos, prices.at(n), prices.at(n+size))
		}
		holds(t, h, address, "records", map[feed]int{prices: n})
	}
	prices.write(t, s, n, n+size)
	holds(t, h, address, "records", map[feed]int{prices: n + size})
}

// The table is changed by somebody while the sink is open: Write and Open fail
// and change nothing, until it is mended.
func testTableAltered(t *testing.T, h Harness) {
	address := h.Make(t)
	s := prices.opened(t, h, address, "records", 0)
	prices.write(t, s, 0, 10)
	mend := h.Alter(t, address, "records")
	neither(t, s.Write(t.Context(), prices.batch(10, 30)))
	_, err := s.Open(t.Context(), prices.info())
	neither(t, err)
	mend()
	prices.open(t, s, 10)
	prices.write(t, s, 10, 25)
	holds(t, h, address, "records", map[feed]int{prices: 25})
}

// A destination that does not answer does not hold a caller whose context has
// ended, neither in Write nor in Open.
func testStalled(t *testing.T, h Harness) {
	address := h.Make(t)
	s := prices.opened(t, h, address, "records", 0)
	prices.write(t, s, 0, 10)
	release := h.Stall(t, address)
	ended(t, within(t, func(ctx context.Context) error {
		return s.Write(ctx, prices.batch(10, 20))
	}))
	// Opening may be possible without what is stalled.
	if err := within(t, func(ctx context.Context) error {
		_, err := s.Open(ctx, prices.info())
		return err
	}); err != nil {
		ended(t, err)
	}
	release()
	// What was under way at a server may be done or not.
	pos, err := s.Open(t.Context(), prices.info())
	if err != nil || pos != prices.at(10) && pos != prices.at(20) {
		t.Fatalf("Open after the stall: %v, %v, want %v or %v", pos, err, prices.at(10), prices.at(20))
	}
	n := prices.number(pos)
	prices.write(t, s, n, n+10)
	holds(t, h, address, "records", map[feed]int{prices: n + 10})
}

// within runs call with a context that ends soon, and fails when it is still
// held long after that.
func within(t *testing.T, call func(context.Context) error) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	answer := make(chan error, 1)
	go func() { answer <- call(ctx) }()
	select {
	case err := <-answer:
		return err
	case <-time.After(30 * time.Second):
		t.Fatal("a call has not returned 30 s after its context ended")
		return nil
	}
}

// There is no room: nothing of the batch is stored, and all of it once there
// is room again.
func testFull(t *testing.T, h Harness) {
	address := h.Make(t)
	s := prices.opened(t, h, address, "records", 0)
	prices.write(t, s, 0, 10)
	free := h.Fill(t, address, s)
	for range 2 {
		neither(t, s.Write(t.Context(), prices.batch(10, 2000)))
	}
	free()
	prices.open(t, s, 10)
	holds(t, h, address, "records", map[feed]int{prices: 10})
	prices.write(t, s, 10, 2000)
	holds(t, h, address, "records", map[feed]int{prices: 2000})
}

// One record can never be stored: it is named, nothing of its batch is stored,
// and the batch passes without it.
func testPoison(t *testing.T, h Harness) {
	address := h.Make(t)
	s := prices.opened(t, h, address, "records", 0)
	prices.write(t, s, 0, 10)
	payload := h.Poison(t, s)
	for _, bad := range []int{11, 30, 60} { // first, in the middle, last
		b := prices.batch(10, 60)
		b.Records[bad-11].Data = payload
		err := s.Write(t.Context(), b)
		e, ok := errors.AsType[*framework.RecordError](err)
		if !ok || e.Key != prices.record(bad).Key || e.Err == nil {
			t.Fatalf("Write of a bad record %v: %v, want a *RecordError that names it", prices.record(bad).Key, err)
		}
		holds(t, h, address, "records", map[feed]int{prices: 10})
	}
	b := prices.batch(10, 60)
	b.Records = append(b.Records[:19], b.Records[20:]...)
	if err := s.Write(t.Context(), b); err != nil {
		t.Fatalf("Write without the bad record: %v", err)
	}
	h.same(t, h.Rows(t, address, "records"), append(prices.batch(0, 10).Records, b.Records...))
}
