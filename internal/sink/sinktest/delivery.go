package sinktest

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/holdline/scrape/framework"
)

// Cases in which nothing goes wrong.

func testOrder(t *testing.T, h Harness) {
	address := h.Make(t)
	s := prices.opened(t, h, address, "records", 0)
	n := 0
	// Sizes on both sides of what a sink may group by.
	for _, size := range []int{1, 2, 7, 8, 9, 63, 64, 65, 1, 999, 1000, 1001, 5000} {
		prices.write(t, s, n, n+size)
		n += size
	}
	holds(t, h, address, "records", map[feed]int{prices: n})
}

// The values that are lost or changed by careless conversion, quoting, COPY
// formats, guessed types and C strings.
var oddities = []string{
	"", " ", "  lead and trail  ", "\n", "\r\n", "a\nb\r\nc\td", "\\", `\N`, `\.`, `\x00`, `\\N`, `"`, `'`, "`", `'; DROP TABLE records; --`,
	`$1`, `?`, `:name`, `%s%n`, `{}`, `null`, `NULL`, `true`, `007`, `1e3`, `1.50`, `-0`, `0x1F`, `NaN`, `Infinity`, `12345678901234567890.123456789`,
	`2026-01-02`, `{"a":1.0,"a":2}`, "a,b;c\t\"d\"", "\x00", "a\x00b", "\x00\x00\x00", "end\x00", "\x01\x02\x1f\x7f",
	"\xff", "\xfe\xff", "\xc0\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80", "cut \xe2\x82", "a\xffb\x00c",
	"\ufeffbom", "\ufffd", "\ufffe", "\U0010ffff", "e\u0301 \u00e9", "\u202e rtl", "日本語", "🧿", "\u2028\u2029\u0085",
}

func testValues(t *testing.T, h Harness) {
	address := h.Make(t)
	s := prices.opened(t, h, address, "records", 0)
	zone := time.FixedZone("", -(9*3600 + 30*60))
	times := []time.Time{
		time.Unix(0, 0), time.Unix(1, 1), time.Date(2026, 7, 1, 23, 59, 59, 999999999, zone),
		time.Date(1969, 12, 31, 23, 59, 59, 999999999, time.UTC), time.Date(2038, 1, 19, 3, 14, 8, 0, time.UTC),
		time.Now(), // with a monotonic reading
	}
	b := &framework.Batch{From: prices.at(0), To: prices.at(len(oddities))}
	for i, v := range oddities {
		r := prices.record(i + 1)
		r.Data, r.Time = []byte(v), times[i%len(times)]
		b.Records = append(b.Records, r)
		// A second record of the same event, odd in its other fields.
		r.Key.Record, r.Data = 2, []byte("x")
		r.ID, r.Type = v, v
		b.Records = append(b.Records, r)
	}
	b.Records[0].Data = nil
	b.Records[1].ID = ""
	if err := s.Write(t.Context(), b); err != nil {
		t.Fatalf("Write: %v", err)
	}
	h.same(t, h.Rows(t, address, "records"), b.Records)
}

func testBigValue(t *testing.T, h Harness) {
	address := h.Make(t)
	s := prices.opened(t, h, address, "records", 0)
	b := prices.batch(0, 3)
	b.Records[0].Data = []byte(strings.Repeat("ü", 1<<19)) // 1 MiB of text
	random := make([]byte, 1<<20)
	for i := range random {
		random[i] = byte(i * i >> 7)
	}
	b.Records[1].Data = random
	b.Records[2].Data = bytes.Repeat([]byte{0}, 1<<20)
	if err := s.Write(t.Context(), b); err != nil {
		t.Fatalf("Write: %v", err)
	}
	h.same(t, h.Rows(t, address, "records"), b.Records)
}

// A batch without records moves the position over events that made none.
func testEmptyBatch(t *testing.T, h Harness) {
	address := h.Make(t)
	s := prices.opened(t, h, address, "records", 0)
	empty := func(from, to int) {
		t.Helper()
		if err := s.Write(t.Context(), &framework.Batch{From: prices.at(from), To: prices.at(to)}); err != nil {
			t.Fatalf("Write of an empty batch: %v", err)
		}
	}
	prices.write(t, s, 0, 10)
	empty(10, 1000)
	prices.refused(t, s, 10, 12, 1000)
	prices.open(t, s, 1000)
	holds(t, h, address, "records", map[feed]int{prices: 10})
	empty(1000, 1000) // nothing at all is also a batch
	prices.open(t, s, 1000)
}

func testCloseWithoutOpen(t *testing.T, h Harness) {
	s := h.New(t, h.Make(t), "records")
	if err := s.Close(); err != nil {
		t.Fatalf("Close of a sink that was never opened: %v", err)
	}
	if err := s.Write(t.Context(), prices.batch(0, 1)); err == nil {
		t.Fatal("Write to a sink that was never opened succeeded")
	}
}

// A sink that was closed and one made anew find the position, also one far
// inside a chunk far along.
func testRestart(t *testing.T, h Harness) {
	address := h.Make(t)
	n := 0
	for _, to := range []int{0, 1, 6, 7, 8, 20} {
		s := h.New(t, address, "records")
		prices.open(t, s, n)
		prices.write(t, s, n, to)
		n = to
		closeSink(t, s)
		prices.open(t, s, n)
		closeSink(t, s)
	}
	holds(t, h, address, "records", map[feed]int{prices: n})

	far := framework.Position{Journal: prices.journal, Seq: 1<<53 + 1, Event: 1 << 30}
	s := prices.opened(t, h, address, "records", n)
	if err := s.Write(t.Context(), &framework.Batch{From: prices.at(n), To: far}); err != nil {
		t.Fatalf("Write: %v", err)
	}
	if pos, err := s.Open(t.Context(), prices.info()); err != nil || pos != far {
		t.Fatalf("Open returned %v, %v, want %v", pos, err, far)
	}
}

// Open is called again after a Write failed, with nothing closed.
func testOpenAgain(t *testing.T, h Harness) {
	address := h.Make(t)
	s := prices.opened(t, h, address, "records", 0)
	for n := range 10 {
		prices.open(t, s, n)
		prices.write(t, s, n, n+1)
	}
	holds(t, h, address, "records", map[feed]int{prices: 10})
}

// Two sinks get all of one partition, each at its own pace.
func testTwoSinks(t *testing.T, h Harness) {
	address := h.Make(t)
	archive := prices
	archive.sink = "demo/archive"
	a := prices.opened(t, h, address, "first", 0)
	b := archive.opened(t, h, address, "second", 0)
	prices.write(t, a, 0, 20)
	archive.write(t, b, 0, 5)
	prices.write(t, a, 20, 30)
	archive.write(t, b, 5, 11)
	prices.open(t, a, 30)
	archive.open(t, b, 11)
	holds(t, h, address, "first", map[feed]int{prices: 30})
	holds(t, h, address, "second", map[feed]int{archive: 11})
}

// The partitions of one sink have a position each, and share a table.
func testTwoPartitions(t *testing.T, h Harness) {
	address := h.Make(t)
	other := prices
	other.partition = 1
	a := prices.opened(t, h, address, "records", 0)
	b := other.opened(t, h, address, "records", 0)
	for n := range 10 {
		prices.write(t, a, 3*n, 3*n+3)
		other.write(t, b, n, n+1)
	}
	prices.open(t, a, 30)
	other.open(t, b, 10)
	holds(t, h, address, "records", map[feed]int{prices: 30, other: 10})
}

// Sinks of different targets write to one destination at the same time, two
// to a table: they wait for each other, and none fails.
func testManySinks(t *testing.T, h Harness) {
	address := h.Make(t)
	const sinks, batches, size = 6, 15, 20
	want := [sinks / 2]map[feed]int{}
	failed := make(chan error, sinks)
	for i := range sinks {
		f := feed{journal: framework.JournalID(fmt.Sprintf("journal%d", i)), sink: fmt.Sprintf("t%d/main", i)}
		table := i / 2
		if want[table] == nil {
			want[table] = map[feed]int{}
		}
		want[table][f] = batches * size
		s := h.New(t, address, fmt.Sprintf("table%d", table))
		t.Cleanup(func() { closeSink(t, s) })
		go func() {
			failed <- func() error {
				if _, err := s.Open(t.Context(), f.info()); err != nil {
					return fmt.Errorf("sink %s: Open: %w", f.sink, err)
				}
				for n := range batches {
					if err := s.Write(t.Context(), f.batch(n*size, n*size+size)); err != nil {
						return fmt.Errorf("sink %s: Write: %w", f.sink, err)
					}
				}
				return nil
			}()
		}()
	}
	for range sinks {
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
	for i, feeds := range want {
		holds(t, h, address, fmt.Sprintf("table%d", i), feeds)
	}
}
