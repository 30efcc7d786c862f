// Package sinktest is the conformance suite for sinks.
//
// A sink's test calls [Run] with a [Harness], which makes destinations, opens
// sinks on them and reads back what they hold. A case that fails names the
// promise that was broken.
//
// It deliberately does not know how a destination keeps rows and positions, nor
// the texts of its errors and its settings: those are for the sink's own tests.
package sinktest

import (
	"bytes"
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/holdline/scrape/framework"
)

// Harness is what a kind of sink brings to the suite. The functions may fail t
// for reasons of their own; none is called concurrently.
//
// A destination is known by an address (a file, a connection string): it must
// mean the same in another process, since the suite runs the test binary again
// to kill it in the middle of a Write. What it needs beyond that (a server) is
// made by Make and found by the address, never kept in variables of the test.
//
// Within a destination, table names where a sink puts its rows: sinks on
// different tables share nothing but the destination and its positions.
type Harness struct {
	// Make returns the address of a new, empty destination, which is removed
	// when t ends. Required.
	Make func(t *testing.T) (address string)
	// New returns a sink that was not opened, with its default settings and
	// durability. Two sinks on one table are what two processes would be.
	// Required.
	New func(t *testing.T, address, table string) framework.Sink
	// Rows returns what the table holds, in the order in which it was stored.
	// It is called while sinks are open and while none is. Required.
	//
	// A destination that keeps no order returns them in that of their keys.
	Rows func(t *testing.T, address, table string) []Row
	// Values returns, by key, what a table of records with columns holds in
	// these: values of the Go types of [framework.ColumnType], or nil. Nil where
	// the destination keeps Data in any case.
	Values func(t *testing.T, address, table string, columns []framework.Column) map[string][]any
	// Precision is the step of the destination's times, to which it cuts them;
	// 0 means that it keeps all of a time.
	Precision time.Duration

	// The others make trouble. One that is nil says that the destination cannot
	// have that trouble, and its cases are left out.

	// Alter changes a table that holds rows so that no record can be stored in
	// it (a column is gone), and returns what changes it back.
	Alter func(t *testing.T, address, table string) (mend func())
	// Stall makes the destination take a writer's request and not answer it,
	// until release is called.
	Stall func(t *testing.T, address string) (release func())
	// Fill makes the destination refuse new rows of s, which is open, for want
	// of room, until free is called.
	Fill func(t *testing.T, address string, s framework.Sink) (free func())
	// Poison returns a payload that s, which is open, can never store. It may
	// have to lower a limit of s for that.
	Poison func(t *testing.T, s framework.Sink) []byte
	// Kill kills the destination's server as a power cut would, and returns
	// what starts it again and waits until it can be used.
	Kill func(t *testing.T, address string) (restart func())
	// Wire returns an address that leads to the same destination over a wire
	// (see Wire), and what makes that lose the answer to the next transaction:
	// the destination has done it, and the sink does not learn it.
	Wire func(t *testing.T, address string) (through string, lose func())
}

// Row is a record as the destination gives it back.
type Row struct {
	Key    string // Key.String()
	Stream string
	ID     string // "" when the event had none
	Type   string
	Time   time.Time
	Data   []byte
}

// childAddress tells a test binary that it is to write until it is killed.
const childAddress = "SINKTEST_CHILD_ADDRESS"

// Child tells whether this process was started by the suite, to write to what
// another process made.
func Child() bool { return os.Getenv(childAddress) != "" }

// Run runs every case against the harness, each with a new destination.
func Run(t *testing.T, h Harness) {
	if Child() {
		writeUntilKilled(t, h, os.Getenv(childAddress))
		return
	}
	cases := []struct {
		name string
		run  func(*testing.T, Harness)
		has  bool
	}{
		{"Order", testOrder, true},
		{"Values", testValues, true},
		{"BigValue", testBigValue, true},
		{"EmptyBatch", testEmptyBatch, true},
		{"CloseWithoutOpen", testCloseWithoutOpen, true},
		{"Restart", testRestart, true},
		{"OpenAgainWithoutClose", testOpenAgain, true},
		{"AnswerLost", testAnswerLost, true},
		{"OtherBatchBorders", testOtherBorders, true},
		{"TwoSinksOnePartition", testTwoSinks, true},
		{"TwoPartitionsOneTable", testTwoPartitions, true},
		{"JournalDeleted", testJournalDeleted, true},
		{"BeginAnew", testBeginAnew, true},
		{"BeginLatest", testBeginLatest, true},
		{"Columns", testColumns, true},
		{"ColumnsChanged", testColumnsChanged, true},
		{"WrongValues", testWrongValues, h.Values != nil},
		{"SecondWriter", testSecondWriter, true},
		{"ConcurrentWriters", testConcurrentWriters, true},
		{"ManySinksAtOnce", testManySinks, true},
		{"CancelAnywhere", testCancelAnywhere, true},
		{"Killed", testKilled, true},
		{"TableAltered", testTableAltered, h.Alter != nil},
		{"Stalled", testStalled, h.Stall != nil},
		{"Full", testFull, h.Fill != nil},
		{"Poison", testPoison, h.Poison != nil},
		{"ServerKilled", testServerKilled, h.Kill != nil},
		{"AnswerLostOnTheWire", testAnswerLostOnTheWire, h.Wire != nil},
	}
	for _, c := range cases {
		if c.has {
			t.Run(c.name, func(t *testing.T) { c.run(t, h) })
		}
	}
}

// open opens s for the feed and checks that it is where it should be, after
// the feed's record n.
func (f feed) open(t *testing.T, s framework.Sink, n int) {
	t.Helper()
	pos, err := s.Open(t.Context(), f.info())
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	if want := f.at(n); pos != want {
		t.Fatalf("Open returned %v, want %v", pos, want)
	}
}

// opened returns a new sink, opened for the feed, and closed when t ends.
func (f feed) opened(t *testing.T, h Harness, address, table string, n int) framework.Sink {
	t.Helper()
	s := h.New(t, address, table)
	t.Cleanup(func() { closeSink(t, s) })
	f.open(t, s, n)
	return s
}

// write delivers the records after from up to and with to.
func (f feed) write(t *testing.T, s framework.Sink, from, to int) {
	t.Helper()
	if err := s.Write(t.Context(), f.batch(from, to)); err != nil {
		t.Fatalf("Write of records %d to %d: %v", from+1, to, err)
	}
}

// refused delivers records and checks that the answer is that the destination
// is after record n instead.
func (f feed) refused(t *testing.T, s framework.Sink, from, to, n int) {
	t.Helper()
	err := s.Write(t.Context(), f.batch(from, to))
	e, ok := errors.AsType[*framework.PositionError](err)
	if !ok {
		t.Fatalf("Write of records %d to %d onto position %d: error %v, want a *PositionError", from+1, to, n, err)
	}
	if e.Sink != f.sink || e.Want != f.at(from) || e.Have != f.at(n) || e.Reason == "" || e.Foreign() {
		t.Fatalf("refused with %+v, want sink %s, want %v, have %v, a reason, not foreign", *e, f.sink, f.at(from), f.at(n))
	}
}

// holds checks that the table holds the first n records of each feed and
// nothing else, those of each in order.
func holds(t *testing.T, h Harness, address, table string, want map[feed]int) {
	t.Helper()
	var records []framework.Record
	for f, n := range want {
		for i := range n {
			records = append(records, f.record(i+1))
		}
	}
	h.same(t, h.Rows(t, address, table), records)
}

// same checks that rows and records are the same, and in the same order within
// each stream of a journal's partition.
func (h Harness) same(t *testing.T, rows []Row, records []framework.Record) {
	t.Helper()
	type source struct {
		journal   framework.JournalID
		partition int
		stream    string
	}
	place, order := map[string]int{}, map[source][]string{}
	for i, r := range records {
		place[r.Key.String()] = i
		of := source{r.Key.Journal, r.Key.Partition, r.Stream}
		order[of] = append(order[of], r.Key.String())
	}
	seen := map[string]bool{}
	for _, row := range rows {
		i, ok := place[row.Key]
		switch {
		case !ok:
			t.Fatalf("row %s was never delivered", row.Key)
		case seen[row.Key]:
			t.Fatalf("row %s is there twice", row.Key)
		}
		seen[row.Key] = true
		r := records[i]
		if row.Stream != r.Stream || row.ID != r.ID || row.Type != r.Type || !row.Time.Equal(r.Time.Truncate(h.Precision)) {
			t.Fatalf("row %s: stream %q, id %q, type %q, time %v, want %q, %q, %q, %v",
				row.Key, row.Stream, row.ID, row.Type, row.Time, r.Stream, r.ID, r.Type, r.Time.Truncate(h.Precision))
		}
		if !bytes.Equal(row.Data, r.Data) {
			t.Fatalf("row %s: data of %d bytes %.60q, want %d bytes %.60q", row.Key, len(row.Data), row.Data, len(r.Data), r.Data)
		}
		of := source{r.Key.Journal, r.Key.Partition, r.Stream}
		if order[of][0] != row.Key {
			t.Fatalf("row %s is stored before %s", row.Key, order[of][0])
		}
		order[of] = order[of][1:]
	}
	if len(rows) != len(records) {
		t.Fatalf("%d rows, want %d", len(rows), len(records))
	}
}

func closeSink(t *testing.T, s framework.Sink) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
}

// neither checks that err says neither that positions disagree nor that a
// record is at fault: the engine must try the same batch again.
func neither(t *testing.T, err error) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	if _, ok := errors.AsType[*framework.PositionError](err); ok {
		t.Fatalf("a *PositionError for what is no disagreement: %v", err)
	}
	if _, ok := errors.AsType[*framework.RecordError](err); ok {
		t.Fatalf("a *RecordError for what is no record's fault: %v", err)
	}
}

// ended checks that err is that of a context that ended.
func ended(t *testing.T, err error) {
	t.Helper()
	neither(t, err)
	if !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v, want that of the context", err)
	}
}
