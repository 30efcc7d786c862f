package sinktest

import (
	"errors"
	"math"
	"testing"

	"github.com/holdline/scrape/framework"
)

// Cases in which a sink does not begin where it is.

// A sink that begins anew removes what the journal can deliver again, and
// nothing else: not what is older, nor what is of another partition, journal or
// target.
func testBeginAnew(t *testing.T, h Harness) {
	address := h.Make(t)
	fresh, second, other := prices, prices, prices
	fresh.journal, second.partition, other.sink = "eeeeffffgggghhhh", 1, "other/prices"

	s := prices.opened(t, h, address, "records", 0)
	restart := func(s framework.Sink, f feed, chunk uint64) {
		t.Helper()
		info := f.info()
		info.Restart = chunk
		if pos, err := s.Open(t.Context(), info); err != nil || pos != f.at(0) {
			t.Fatalf("Open with Restart %d: %v, %v, want %v", chunk, pos, err, f.at(0))
		}
	}
	restart(s, prices, 1) // with nothing to remove
	prices.write(t, s, 0, 30)
	prices.write(t, s, 30, 100) // fifteen chunks: 9 is before 10 only as a number
	p := second.opened(t, h, address, "records", 0)
	second.write(t, p, 0, 80)
	o := other.opened(t, h, address, "records", 0)
	theirs := other.batch(100, 120)
	theirs.From = other.at(0)
	for i := range theirs.Records {
		theirs.Records[i].Stream = "other/market"
	}
	writeBatch(t, o, theirs)
	rest := append(second.batch(0, 80).Records, theirs.Records...)
	held := func(of ...framework.Record) {
		t.Helper()
		h.same(t, h.Rows(t, address, "records"), append(of, rest...))
	}

	again := h.New(t, address, "records")
	t.Cleanup(func() { closeSink(t, again) })
	restart(again, prices, 9)
	const older = 8 * perChunk
	held(prices.batch(0, older).Records...)
	prices.refused(t, s, 100, 110, 0) // the one before has lost its place
	b := prices.batch(older, 100)
	b.From = prices.at(0)
	writeBatch(t, again, b)
	held(prices.batch(0, 100).Records...)
	prices.open(t, again, 100)
	second.open(t, p, 80)
	other.open(t, o, 120)

	// Of another journal it has nothing that could be removed.
	restart(again, fresh, 1)
	fresh.write(t, again, 0, 20)
	held(append(prices.batch(0, 100).Records, fresh.batch(0, 20).Records...)...)
	err := s.Write(t.Context(), prices.batch(100, 110))
	if e, ok := errors.AsType[*framework.PositionError](err); !ok || !e.Foreign() {
		t.Fatalf("Write after another journal took over: %v, want a foreign *PositionError", err)
	}
	restart(again, fresh, 1)
	restart(again, fresh, 1)
	held(prices.batch(0, 100).Records...)
	fresh.write(t, again, 0, 25)
	held(append(prices.batch(0, 100).Records, fresh.batch(0, 25).Records...)...)
}

// A sink that the destination has never seen begins where it is told to; one
// that was only opened before, and has got nothing, has its place already.
func testBeginLatest(t *testing.T, h Harness) {
	address := h.Make(t)
	open := func(table string, begin uint64, want framework.Position) framework.Sink {
		t.Helper()
		s := h.New(t, address, table)
		t.Cleanup(func() { closeSink(t, s) })
		info := prices.info()
		if table == "other" { // positions are of a destination, not of a table
			info.ID = "demo/other"
		}
		info.Begin = begin
		if pos, err := s.Open(t.Context(), info); err != nil || pos != want {
			t.Fatalf("Open with Begin %d: %v, %v, want %v", begin, pos, err, want)
		}
		return s
	}
	end := framework.Position{Journal: prices.journal, Seq: 2, Event: math.MaxInt32}
	open("records", 2, end)
	open("records", 5, end)
	s := open("records", 0, end)
	b := prices.batch(2*perChunk, 40)
	b.From = end
	writeBatch(t, s, b)
	h.same(t, h.Rows(t, address, "records"), b.Records)

	open("other", 0, prices.at(0))
	open("other", 5, prices.at(0))
}
