package mapping

import (
	"encoding/json"
	"testing"

	"github.com/holdline/scrape/framework"
)

// quote is an event of about 200 bytes.
const quote = `{"type":"quote","symbol":"ACME","price":101.25,"volume":1200,"ts":"2026-11-20T07:20:23.456Z","venue":"XNAS","seq":918273,"bid":{"price":101.24,"size":300},"ask":{"price":101.26,"size":500},"flags":["open"]}`

func fiveColumns() []Column {
	return []Column{
		{Name: "symbol", Value: "symbol", Type: "text", Required: true}, {Name: "price", Value: "price", Type: "number"},
		{Name: "volume", Value: "volume", Type: "integer"}, {Name: "at", Value: "ts", Type: "time"}, {Name: "bid", Value: "bid.price", Type: "number"},
	}
}

func BenchmarkDecode(b *testing.B) {
	computed := fiveColumns()
	computed[1].Value, computed[4].Value = "price * volume", "round(bid.price)"
	schema := writeFile(b, "s.json", `{"type":"object","properties":{"symbol":{"type":"string"},"price":{"type":"number"},"volume":{"type":"integer"}},"required":["symbol","price"]}`)
	for name, spec := range map[string]Spec{
		"checked":  {Format: FormatJSON},
		"paths":    {Columns: fiveColumns()},
		"where":    {Columns: fiveColumns(), Where: `venue == "XNAS" && price > 100`},
		"computed": {Columns: computed},
		"schema":   {Columns: fiveColumns(), Schema: schema},
	} {
		b.Run(name, func(b *testing.B) {
			m, ev := mapping(b, spec), event("quote", quote)
			b.SetBytes(int64(len(quote)))
			b.ReportAllocs()
			for b.Loop() {
				n := 0
				if err := m.Decode("shop/quotes", ev, func(framework.Record) { n++ }); err != nil || n != 1 {
					b.Fatal(n, err)
				}
			}
		})
	}
	// What is written by hand in its place.
	b.Run("encoding-json", func(b *testing.B) {
		b.SetBytes(int64(len(quote)))
		b.ReportAllocs()
		for b.Loop() {
			var v map[string]any
			if err := json.Unmarshal([]byte(quote), &v); err != nil {
				b.Fatal(err)
			}
			out, err := json.Marshal(map[string]any{"symbol": v["symbol"], "price": v["price"], "volume": v["volume"], "at": v["ts"], "bid": v["bid"].(map[string]any)["price"]})
			if err != nil || len(out) == 0 {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkWhere(b *testing.B) {
	choose, problem := NewWhere(`symbol == "ACME" && price > 100`, map[string][]framework.Column{"shop/quotes": {{Name: "symbol"}, {Name: "price"}}})
	if problem != nil {
		b.Fatal(problem)
	}
	rec := &framework.Record{Stream: "shop/quotes", Values: []any{"ACME", json.Number("101.25")}}
	b.ReportAllocs()
	for b.Loop() {
		if ok, err := choose(rec); !ok || err != nil {
			b.Fatal(ok, err)
		}
	}
}
