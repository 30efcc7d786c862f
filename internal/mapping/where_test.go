package mapping

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/holdline/scrape/framework"
)

func sprint(v any) string { return fmt.Sprint(v) }

func TestWhereOfSink(t *testing.T) {
	streams := map[string][]framework.Column{
		"shop/trades": {{Name: "symbol", Type: "text"}, {Name: "price", Type: "number"}, {Name: "n", Type: "integer"}, {Name: "at", Type: "time"}, {Name: "meta", Type: "json"}, {Name: "type", Type: "text"}},
		"shop/notes":  {{Name: "symbol", Type: "text"}},
	}
	trade := framework.Record{Stream: "shop/trades", Type: "trade", ID: "7", Time: came, Data: []byte("not looked at"), Values: []any{
		"ACME", json.Number("1.10"), int64(3), time.Date(2024, 5, 6, 0, 0, 0, 0, time.UTC), json.RawMessage(`{"seq":42,"tags":["a"]}`), nil}}
	note := framework.Record{Stream: "shop/notes", Type: "note", Values: []any{"ACME"}}
	for source, want := range map[string]string{
		`symbol == "ACME"`:                "true true",
		`price > 1 && n == 3`:             "true invalid operation: <nil> > int at character 7",
		`price != nil && price * n > 3.2`: "true false",
		`at > date("2024-01-01")`:         "true invalid operation: <nil> > time.Time at character 4",
		`meta.seq == 42`:                  "true false",
		`meta.tags[0] == "a"`:             "true false",
		`meta["tags"][1] == nil`:          "true true",
		`this.symbol startsWith "A"`:      "true true",
		`type == nil`:                     "true true",
		`record.type == "trade"`:          "true false",
		`record.stream endsWith "notes"`:  "false true",
		`record.id == "7"`:                "true false",
		`record.time.Year() == 2026`:      "true false",
		`record.data contains "looked"`:   "true false",
		`symbol`:                          "the sink's where is neither true nor false the sink's where is neither true nor false",
		`n in 1..5`:                       "true false",
	} {
		choose, problem := NewWhere(source, streams)
		if problem != nil {
			t.Errorf("%s: %v", source, problem)
			continue
		}
		var got []string
		for _, rec := range []*framework.Record{&trade, &note, &trade} {
			if ok, err := choose(rec); err != nil {
				got = append(got, err.Error())
			} else {
				got = append(got, sprint(ok))
			}
		}
		if got[0] != got[2] {
			t.Errorf("%s: the first time %s, then %s", source, got[0], got[2])
		}
		all := strings.ReplaceAll(strings.Join(got[:2], " "), "the sink's where: ", "")
		if !strings.HasPrefix(all, want) {
			t.Errorf("%s: got %s, want %s", source, all, want)
		}
	}
	for source, want := range map[string]string{
		`pric > 1`:        `there is no column "pric" at character 1; columns: at, meta, n, price, symbol, type`,
		`this.pric > 1`:   `there is no column "pric" at character 6; columns`,
		`stream == "a"`:   `there is no column "stream" at character 1; the record's own is record.stream`,
		`record.typ == 1`: `record has no "typ" at character 8; it has: stream, type, id, time, data`,
		`record != nil`:   `record is no value; write a part of it`,
		`this != nil`:     `a record with columns is no value; name its columns`,
		`n + 1 > `:        `the expression does not compile: it ends too soon at character 8`,
		`uper(symbol)`:    `there is no function "uper" at character 1; functions: abs, `,
		`len(symbol)`:     `the expression results in int; write one that is true or false`,
	} {
		_, problem := NewWhere(source, streams)
		if problem == nil || !strings.HasPrefix(problem.Error(), ": "+want) {
			t.Errorf("%s:\n got %v\nwant %s", source, problem, want)
		}
	}
}

// TestWhereWithoutColumns looks into the JSON of the records.
func TestWhereWithoutColumns(t *testing.T) {
	streams := map[string][]framework.Column{"shop/trades": {{Name: "price", Type: "number"}}, "shop/raw": nil}
	choose, problem := NewWhere(`price > 1`, streams)
	if problem != nil {
		t.Fatal(problem)
	}
	for data, want := range map[string]string{`{"price":1.10}`: "true <nil>", `{"price":1}`: "false <nil>", `price`: "false the sink's where: the payload is not JSON: invalid character 'p' looking for beginning of value"} {
		ok, err := choose(&framework.Record{Stream: "shop/raw", Data: []byte(data)})
		if got := fmt.Sprint(ok, " ", err); got != want {
			t.Errorf("%s: %s", data, got)
		}
	}
	if ok, err := choose(&framework.Record{Stream: "shop/trades", Values: []any{json.Number("2")}}); !ok || err != nil {
		t.Error(ok, err)
	}
	choose, problem = NewWhere(`(price ?? 0) > 1`, streams)
	if problem != nil {
		t.Fatal(problem)
	}
	for _, data := range []string{`{"price":2}`, `{}`} { // the second one has none
		if ok, err := choose(&framework.Record{Stream: "shop/raw", Data: []byte(data)}); ok != (data != `{}`) || err != nil {
			t.Errorf("%s: %v, %v", data, ok, err)
		}
	}
	// What needs no JSON takes anything.
	choose, problem = NewWhere(`record.type != "note"`, streams)
	if problem != nil {
		t.Fatal(problem)
	}
	if ok, err := choose(&framework.Record{Stream: "shop/raw", Data: []byte("{"), Type: "trade"}); !ok || err != nil {
		t.Error(ok, err)
	}
}
