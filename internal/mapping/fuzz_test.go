package mapping

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/holdline/scrape/framework"
)

// FuzzDecode decodes foreign bytes with mappings of every format: nothing
// panics, what is taken is what encoding/json takes, the records' Data is JSON,
// numbers keep their digits, and a second decoding makes the same records.
func FuzzDecode(f *testing.F) {
	schema := writeFile(f, "s.json", `{"type":["object","array"],"properties":{"a":{"type":["number","string","null"],"multipleOf":0.01}}}`)
	moved := columns("a", "a", "b", "a.b", "list", "list[1]", "id", "event.id", "all", "this")
	moved[1].Type, moved[2].Type = framework.ColumnJSON, framework.ColumnJSON
	mappings := []*Mapping{
		mapping(f, Spec{Format: FormatJSON}),
		mapping(f, Spec{Columns: moved}),
		mapping(f, Spec{Format: FormatNDJSON, Columns: columns("a", "a", "n", "len(this.list ?? [])", "sum", "a + 1", "s", "string(a)")}),
		mapping(f, Spec{Each: "list", Schema: schema, Type: "event.data.a", Columns: columns("a", "a", "odd", `this["o\"d"]`)}),
		mapping(f, Spec{Format: FormatText, Columns: columns("text", "this")}),
		mapping(f, Spec{Format: FormatBase64, Columns: columns("text", "this")}),
	}
	for _, typ := range []framework.ColumnType{"text", "integer", "number", "boolean", "time", "json"} {
		mappings = append(mappings, mapping(f, Spec{Columns: []Column{{Name: "a", Value: "a", Type: typ}}}))
	}
	seeds := []string{
		`{"a":1.10,"list":[{"a":12345678901234567890},{"a":"x"}]}`, `{"a":{"b":1e-7},"a":{"b":2}}`, "{}\n[]\n 1 ", `{"a":"2024-05-06T07:08:09Z"}`, `{"a":"\ud800\u0000"}`,
		`{"a":1e999999999}`, "\"\xff\"", `YWI=`, `{"a":-0.0,"o\"d":NaN}`, `{"a":true,"list":null}`, `{"a":1714979289123.25}`, ``,
	}
	for _, s := range seeds {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for i, m := range mappings {
			ev := event("message", string(data))
			records, err := decode(m, ev)
			if !bytes.Equal(ev.Data, data) {
				t.Fatal("the event was changed")
			}
			if i < 2 {
				nested := depth(string(data)) > maxDepth
				if good := json.Valid(data) && utf8.Valid(data) && !nested; good != (err == nil) {
					t.Fatalf("mapping %d: error %v, encoding/json says %v", i, err, good)
				}
			}
			if err != nil {
				if strings.Contains(err.Error(), "runtime error") || !utf8.ValidString(err.Error()) {
					t.Fatalf("mapping %d: %q", i, err)
				}
				continue
			}
			again, err := decode(m, ev)
			if err != nil || len(again) != len(records) {
				t.Fatalf("mapping %d: the second time %d records and %v", i, len(again), err)
			}
			for n, r := range records {
				if !bytes.Equal(r.Data, again[n].Data) {
					t.Fatalf("mapping %d: first %s, then %s", i, r.Data, again[n].Data)
				}
				if !json.Valid(r.Data) || !utf8.Valid(r.Data) {
					t.Fatalf("mapping %d: not JSON: %q", i, r.Data)
				}
				if len(r.Values) != len(m.columns) {
					t.Fatalf("mapping %d: %d values", i, len(r.Values))
				}
			}
			if i == 1 {
				sameDigits(t, data, records[0])
			}
		}
	})
}

// sameDigits compares what was moved with what encoding/json finds.
func sameDigits(t *testing.T, data []byte, r framework.Record) {
	var in map[string]json.RawMessage
	if json.Unmarshal(data, &in) != nil {
		return // no object
	}
	var out map[string]json.RawMessage
	if err := json.Unmarshal(r.Data, &out); err != nil {
		t.Fatal(err)
	}
	want := in["a"]
	if want == nil {
		want = json.RawMessage("null")
	}
	if !bytes.Equal(bytes.TrimSpace(want), out["a"]) {
		t.Fatalf("a was %s and is %s", want, out["a"])
	}
}

// FuzzExpression compiles what somebody has written, and runs it.
func FuzzExpression(f *testing.F) {
	for _, s := range []string{`a.b[0]?.c`, `event.time.Year() + 1`, `let x = a; x.b`, `filter(list, .a > #index)`, `a matches b`, `{"a": [a, 1.5]}`, `keys(a)`, `repeat(s, 5)`, `$env`, `event`, "a ?? \"\xff\"", `map(1..3, # * a)`, `a | upper()`, `not ok and a in list`} {
		f.Add(s)
	}
	ev := event("message", `{"a":1.10,"b":"x","s":"text","ok":true,"list":[{"a":1},{"a":2}]}`)
	f.Fuzz(func(t *testing.T, source string) {
		r, problems := NewRule(Spec{Columns: []Column{{Name: "v", Value: source}}})
		if len(problems) > 0 {
			return
		}
		m, err := New([]*Rule{r})
		if err != nil {
			t.Fatal(err)
		}
		first, second := datas(m, ev), datas(m, ev)
		if first != second {
			t.Fatalf("%q: first %s, then %s", source, first, second)
		}
		if !strings.HasPrefix(first, "refused: ") && !json.Valid([]byte(first)) {
			t.Fatalf("%q: not JSON: %s", source, first)
		}
	})
}
