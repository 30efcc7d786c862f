package sinktest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/big"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/holdline/scrape/framework"
)

// Cases in which records have columns of their own.

// with is the feed's info with columns.
func (f feed) with(columns ...framework.Column) framework.SinkInfo {
	info := f.info()
	info.Columns = columns
	return info
}

// openAs opens s with the info and checks that it is after the feed's record n.
func (f feed) openAs(t *testing.T, s framework.Sink, info framework.SinkInfo, n int) {
	t.Helper()
	if pos, err := s.Open(t.Context(), info); err != nil || pos != f.at(n) {
		t.Fatalf("Open with columns %v returned %v, %v, want %v", info.Columns, pos, err, f.at(n))
	}
}

// mapped are the feed's records after from up to and with to, with values for
// columns.
func (f feed) mapped(from, to int, values func(n int) []any) *framework.Batch {
	b := f.batch(from, to)
	for i := range b.Records {
		b.Records[i].Values = values(from + 1 + i)
	}
	return b
}

func writeBatch(t *testing.T, s framework.Sink, b *framework.Batch) {
	t.Helper()
	if err := s.Write(t.Context(), b); err != nil {
		t.Fatalf("Write of %d records: %v", len(b.Records), err)
	}
}

// A name that is no word, and one that is a word of SQL.
var typed = []framework.Column{
	{Name: "symbol", Type: framework.ColumnText, Required: true},
	{Name: "Trade volume", Type: framework.ColumnInteger},
	{Name: "price", Type: framework.ColumnNumber},
	{Name: "select", Type: framework.ColumnBoolean},
	{Name: `seen "at"; --`, Type: framework.ColumnTime},
	{Name: "übrig", Type: framework.ColumnJSON},
}

var (
	integers = []int64{0, 1, -1, math.MaxInt64, math.MinInt64, 1<<53 + 1, 10_000, -9_999}
	numbers  = []json.Number{
		"0", "-0", "0.0", "1", "-1", "1.5", "1.50", "-0.001", "100", "10000", "0.0001", "99999999.00010000", "1e3", "1.5E-7", "-2.5e+10", "0e10",
		"9223372036854775807", "-9223372036854775808", "9223372036854775808", "12345678901234567890.1234567890123456789",
		"0.1", "0.30000000000000004", "123456789012345", "1234567890123456", "0.000000000000000000000000012345678901234567",
		"1e308", "1e-300", "123e300", json.Number(strings.Repeat("1234567890", 50)), json.Number("0." + strings.Repeat("0987654321", 50)),
	}
	moments = []time.Time{
		time.Unix(0, 0), time.Date(1969, 12, 31, 23, 59, 59, 999999999, time.UTC),
		time.Date(2026, 7, 1, 23, 59, 59, 999999999, time.FixedZone("", -(9*3600+30*60))), time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC),
	}
	objects = []json.RawMessage{
		json.RawMessage(`{}`), json.RawMessage(`null`), json.RawMessage(`[1.50, "é\n\ud83e\uddff", {"a": {"b": [true, null]}}]`),
		json.RawMessage(`"text"`), json.RawMessage(`12345678901234567890.1234567890`), json.RawMessage(`[` + strings.Repeat(`"0123456789",`, 50_000) + `0]`),
	}
)

func testColumns(t *testing.T, h Harness) {
	address := h.Make(t)
	s := h.New(t, address, "records")
	t.Cleanup(func() { closeSink(t, s) })
	prices.openAs(t, s, prices.with(typed...), 0)
	n := max(len(oddities), len(numbers)) + 1
	b := prices.mapped(0, n, func(n int) []any {
		i := n - 1
		values := []any{
			oddities[i%len(oddities)], integers[i%len(integers)], numbers[i%len(numbers)],
			i%3 == 0, moments[i%len(moments)], objects[i%len(objects)],
		}
		if i >= len(oddities) { // nothing but what must be
			return []any{strings.Repeat("ü", 1<<19), nil, nil, nil, nil, nil}
		}
		values[1+i%5] = nil
		return values
	})
	writeBatch(t, s, b)
	h.have(t, address, typed, b.Records)
	prices.openAs(t, s, prices.with(typed...), n)
	h.have(t, address, typed, b.Records)
}

// A record whose values are not those of the columns is at fault itself.
func testWrongValues(t *testing.T, h Harness) {
	address := h.Make(t)
	s := h.New(t, address, "records")
	t.Cleanup(func() { closeSink(t, s) })
	prices.openAs(t, s, prices.with(typed...), 0)
	good := func(int) []any { return []any{"ACME", nil, nil, nil, nil, nil} }
	bad := [][]any{
		nil, {}, {"ACME"}, {"ACME", nil, nil, nil, nil, nil, nil},
		{[]byte("ACME"), nil, nil, nil, nil, nil}, {"ACME", 1, nil, nil, nil, nil}, {"ACME", "1", nil, nil, nil, nil}, {"ACME", nil, 1.5, nil, nil, nil},
		{"ACME", nil, json.Number(""), nil, nil, nil}, {"ACME", nil, json.Number("NaN"), nil, nil, nil}, {"ACME", nil, json.Number("1."), nil, nil, nil},
		{"ACME", nil, json.Number("1e99999999999"), nil, nil, nil}, {"ACME", nil, nil, 1, nil, nil}, {"ACME", nil, nil, nil, "2026", nil}, {"ACME", nil, nil, nil, nil, "{}"},
		{"ACME", nil, nil, nil, time.Date(294276, 12, 31, 0, 0, 0, 0, time.UTC), nil}, {nil, nil, nil, nil, nil, nil},
	}
	for _, values := range bad {
		b := prices.mapped(0, 20, good)
		b.Records[12].Values = values
		e, ok := errors.AsType[*framework.RecordError](s.Write(t.Context(), b))
		if !ok || e.Key != b.Records[12].Key {
			t.Errorf("Write of a record with the values %v: %v, want a *RecordError that names it", values, e)
		}
	}
	writeBatch(t, s, prices.mapped(0, 20, good))
}

// Columns come and go and change their places: what the table lacks is added
// where that needs no decision, and refused where it does.
func testColumnsChanged(t *testing.T, h Harness) {
	address := h.Make(t)
	s := h.New(t, address, "records")
	t.Cleanup(func() { closeSink(t, s) })
	symbol := framework.Column{Name: "symbol", Type: framework.ColumnText, Required: true}
	price := framework.Column{Name: "price", Type: framework.ColumnNumber}
	note := framework.Column{Name: "note", Type: framework.ColumnText}
	count := framework.Column{Name: "count", Type: framework.ColumnInteger, Required: true}

	// An empty table may get any.
	prices.openAs(t, s, prices.with(price), 0)
	prices.openAs(t, s, prices.with(price, symbol), 0)
	first := prices.mapped(0, 10, func(n int) []any { return []any{json.Number("1.25"), "ACME"} })
	writeBatch(t, s, first)
	prices.openAs(t, s, prices.with(note, symbol, price), 10)
	second := prices.mapped(10, 20, func(n int) []any { return []any{"note", "ACME", nil} })
	writeBatch(t, s, second)
	prices.openAs(t, s, prices.with(symbol), 20)
	third := prices.mapped(20, 30, func(n int) []any { return []any{"ACME"} })
	writeBatch(t, s, third)

	want := func(n int) []any {
		switch {
		case n <= 10:
			return []any{"ACME", json.Number("1.25"), nil}
		case n <= 20:
			return []any{"ACME", nil, "note"}
		}
		return []any{"ACME", nil, nil}
	}
	all := []framework.Column{symbol, price, note}
	h.have(t, address, all, prices.mapped(0, 30, want).Records)
	if h.Values != nil {
		for _, columns := range [][]framework.Column{
			{symbol, count}, // older rows have none
			{symbol, {Name: "note", Type: framework.ColumnNumber}},  // another type
			{symbol, {Name: "note", Type: framework.ColumnInteger}}, // another type
			{{Name: "symbol", Type: framework.ColumnText}},          // may be nil, and the table says never
			{price}, // leaves out what must be there
			nil,     // no data any more
			{symbol, {Name: "Time", Type: framework.ColumnTime}},      // every table has one
			{symbol, {Name: "SYMBOL", Type: framework.ColumnText}},    // one name
			{symbol, {Name: "", Type: framework.ColumnText}},          // none
			{symbol, {Name: "x", Type: framework.ColumnType("blob")}}, // unheard of
		} {
			_, err := s.Open(t.Context(), prices.with(columns...))
			neither(t, err)
		}
	}
	prices.openAs(t, s, prices.with(all...), 30)
	writeBatch(t, s, prices.mapped(30, 40, want))
	h.have(t, address, all, prices.mapped(0, 40, want).Records)
}

// have checks that the table has exactly the records, with their values; where
// the destination has no columns, with their data.
func (h Harness) have(t *testing.T, address string, columns []framework.Column, records []framework.Record) {
	t.Helper()
	if h.Values == nil {
		h.same(t, h.Rows(t, address, "records"), records)
		return
	}
	rows := h.Values(t, address, "records", columns)
	for _, r := range records {
		got, ok := rows[r.Key.String()]
		if !ok {
			t.Fatalf("record %v is missing", r.Key)
		}
		for i, c := range columns {
			if !h.equal(got[i], r.Values[i]) {
				t.Errorf("record %v, column %q: %T %s, want %T %s", r.Key, c.Name, got[i], brief(got[i]), r.Values[i], brief(r.Values[i]))
			}
		}
	}
	if len(rows) != len(records) {
		t.Fatalf("%d rows, want %d", len(rows), len(records))
	}
}

// equal tells whether two values mean the same: a number may be written in
// another way, and JSON with other space.
func (h Harness) equal(got, want any) bool {
	if got == nil || want == nil || reflect.TypeOf(got) != reflect.TypeOf(want) {
		return got == nil && want == nil
	}
	switch want := want.(type) {
	case time.Time:
		return got.(time.Time).Equal(want.Truncate(max(h.Precision, 1)))
	case json.Number:
		a, ok := new(big.Rat).SetString(string(got.(json.Number)))
		b, _ := new(big.Rat).SetString(string(want))
		return ok && a.Cmp(b) == 0
	case json.RawMessage:
		return reflect.DeepEqual(decoded(got.(json.RawMessage)), decoded(want))
	}
	return got == want
}

func brief(v any) string { return fmt.Sprintf("%.80s", fmt.Sprint(v)) }

func decoded(b []byte) (v any) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if d.Decode(&v) != nil {
		return b
	}
	return v
}
