package mapping

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdline/scrape/framework"
)

var came = time.Date(2026, 11, 20, 7, 20, 23, 456, time.UTC)

func event(typ, data string) *framework.Event {
	return &framework.Event{ID: []byte("e-7"), Type: typ, Data: []byte(data), Time: came}
}

// mapping compiles rules that are in order.
func mapping(t testing.TB, specs ...Spec) *Mapping {
	t.Helper()
	var rules []*Rule
	for _, s := range specs {
		r, problems := NewRule(s)
		for _, p := range problems {
			t.Fatal(p)
		}
		rules = append(rules, r)
	}
	m, err := New(rules)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// decode is the records of an event.
func decode(m *Mapping, ev *framework.Event) ([]framework.Record, error) {
	var records []framework.Record
	err := m.Decode("shop/trades", ev, func(r framework.Record) { records = append(records, r) })
	return records, err
}

// datas is the Data of all records, one a line, or the error.
func datas(m *Mapping, ev *framework.Event) string {
	records, err := decode(m, ev)
	if err != nil {
		return "refused: " + err.Error()
	}
	var lines []string
	for _, r := range records {
		lines = append(lines, string(r.Data))
	}
	return strings.Join(lines, "\n")
}

func columns(pairs ...string) []Column {
	var list []Column
	for i := 0; i < len(pairs); i += 2 {
		list = append(list, Column{Name: pairs[i], Value: pairs[i+1]})
	}
	return list
}

func TestFormats(t *testing.T) {
	for _, c := range []struct {
		name string
		spec Spec
		data string
		want string
	}{
		{"raw is as it came", Spec{}, "\xff{", "\xff{"},
		{"json is checked", Spec{Format: FormatJSON}, ` {"a": 1.10} `, ` {"a": 1.10} `},
		{"json that is none", Spec{Format: FormatJSON}, `{"a":}`, `refused: the payload is not JSON: invalid character '}' looking for beginning of value`},
		{"two values are no JSON", Spec{Format: FormatJSON}, `1 2`, `refused: the payload is not JSON: invalid character '2' after top-level value`},
		{"nothing is no JSON", Spec{Format: FormatJSON}, ``, `refused: the payload is not JSON: unexpected end of JSON input`},
		{"NaN is no JSON", Spec{Format: FormatJSON}, `{"a":NaN}`, `refused: the payload is not JSON: invalid character 'N' looking for beginning of value`},
		{"bytes are no JSON", Spec{Format: FormatJSON}, "\"\xff\"", `refused: the payload is not JSON: it is not text in UTF-8`},
		{"text", Spec{Format: FormatText}, "grüße", "grüße"},
		{"no text", Spec{Format: FormatText}, "", ""},
		{"bytes are no text", Spec{Format: FormatText}, "\xff", "refused: the payload is not text in UTF-8"},
		{"text has itself", Spec{Format: FormatText, Columns: columns("line", "this", "n", "len(this)")}, `a "b"`, `{"line":"a \"b\"","n":5}`},
		{"base64", Spec{Format: FormatBase64}, "/wA=", "\xff\x00"},
		{"base64 for addresses, in lines", Spec{Format: FormatBase64}, "_w\r\nA", "\xff\x00"},
		{"no base64", Spec{Format: FormatBase64}, "a b!", "refused: the payload is not base64: illegal base64 data at input byte 2"},
		{"base64 as text", Spec{Format: FormatBase64, Columns: columns("line", "this")}, "YWI=", `{"line":"ab"}`},
		{"base64 that is no text", Spec{Format: FormatBase64, Columns: columns("line", "this")}, "/wA=", `refused: the payload is not text in UTF-8`},
		{"ndjson", Spec{Format: FormatNDJSON}, "{\"a\":1.10}\r\n\n [2] \n", "{\"a\":1.10}\n[2]"},
		{"ndjson with columns", Spec{Format: FormatNDJSON, Columns: columns("a", "a")}, "{\"a\":1.10}\n{}", "{\"a\":1.10}\n{\"a\":null}"},
		{"a bad line", Spec{Format: FormatNDJSON}, "1\n\n{", "refused: line 3: the payload is not JSON: unexpected end of JSON input"},
		{"no line", Spec{Format: FormatNDJSON}, "\n", ""},
		{"too deep", Spec{Format: FormatJSON}, strings.Repeat("[", 1001) + strings.Repeat("]", 1001), "refused: the payload nests more than 1000 deep"},
		{"deep enough", Spec{Format: FormatJSON, Columns: columns("n", "len(this)")}, strings.Repeat("[", 1000) + strings.Repeat("]", 1000), `{"n":1}`},
		{"broad, with brackets in text", Spec{Format: FormatJSON, Columns: columns("n", "len(this)")}, "[" + strings.Repeat(`[],"\"[[",`, 1500) + "1]", `{"n":3001}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			ev := event("message", c.data)
			if c.data == "" {
				ev.Data = nil
			}
			if got := datas(mapping(t, c.spec), ev); got != c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
		})
	}
}

func TestExpressions(t *testing.T) {
	const data = `{"symbol":"ACME","price":1.10,"big":12345678901234567890,"tiny":1e-7,"qty":"3.50","n":3,"ok":true,"none":null,
		"meta":{"seq":42,"odd name":{"x":1.0},"list":[{"a":"first"},{"a":"second"}]},"type":"t","count":7,"event":"e","this":"own","text":"a\u00e9\n\"<"}`
	for source, want := range map[string]string{
		`price`:                            `1.10`,
		`this.price`:                       `1.10`,
		`this["price"]`:                    `1.10`,
		`event.data.price`:                 `1.10`,
		`big`:                              `12345678901234567890`,
		`tiny`:                             `1e-7`,
		`meta`:                             `{"seq":42,"odd name":{"x":1.0},"list":[{"a":"first"},{"a":"second"}]}`,
		`meta["odd name"].x`:               `1.0`,
		`meta.list[1].a`:                   `"second"`,
		`meta.list[2].a`:                   `null`,
		`meta?.nothing?.at`:                `null`,
		`price.of.nothing`:                 `null`,
		`nothing`:                          `null`,
		`none`:                             `null`,
		`type`:                             `"t"`,
		`count`:                            `7`,
		`this.event`:                       `"e"`,
		`this.this`:                        `"own"`,
		`text`:                             `"a\u00e9\n\"<"`,
		`event.id`:                         `"e-7"`,
		`event.type`:                       `"trade"`,
		`event.stream`:                     `"shop/trades"`,
		`event.time`:                       `"2026-11-20T07:20:23.000000456Z"`,
		`event.time.Year()`:                `2026`,
		`n * 2 + 1`:                        `7`,
		`n / 2`:                            `1.5`,
		`price * n`:                        `3.3000000000000003`,
		`ok ? price : nil`:                 `1.10`,
		`nothing ?? big`:                   `12345678901234567890`,
		`max(big, 1)`:                      `12345678901234567890`,
		`float(qty) * 2`:                   `7`,
		`upper(symbol) + "-" + string(n)`:  `"ACME-3"`,
		`symbol in ["ACME", "B"]`:          `true`,
		`symbol matches "^A.*E$"`:          `true`,
		`filter(meta.list, .a != "first")`: `[{"a":"second"}]`,
		`map(meta.list, .a)`:               `["first","second"]`,
		`let p = price; p > 1 ? "dear" : "cheap"`:     `"dear"`,
		`let price = 5; price + n`:                    `8`,
		`len(this) > 10`:                              `true`,
		`"constant <&>"`:                              `"constant <&>"`,
		`{"a": symbol, "b": [n]}`:                     `{"a":"ACME","b":[3]}`,
		`date("2024-05-06").Day() == 6 && count == 7`: `true`,
		`n / 0`:                    `refused: the column "v" (n / 0): the result is no number: it is infinite or undefined`,
		`nothing * 2`:              `refused: the column "v" (nothing * 2): invalid operation: <nil> * int at character 9`,
		`symbol > 1`:               `refused: the column "v" (symbol > 1): invalid operation: string > int at character 8`,
		`meta.list[7]["a"]`:        `null`,
		`fromBase64("/w==")`:       `refused: the column "v" (fromBase64("/w==")): the result is no text in UTF-8`,
		`this?.meta?.["odd name"]`: `{"x":1.0}`,
	} {
		got := datas(mapping(t, Spec{Columns: []Column{{Name: "v", Value: source}}}), event("trade", data))
		if !strings.HasPrefix(want, "refused") {
			want = `{"v":` + want + `}`
		}
		if got != want {
			t.Errorf("%s:\n got %s\nwant %s", source, got, want)
		}
	}
}

func TestColumnTypes(t *testing.T) {
	at := func(s string) time.Time {
		v, err := time.Parse(time.RFC3339Nano, s)
		if err != nil {
			t.Fatal(err)
		}
		return v.UTC()
	}
	for _, c := range []struct {
		typ   framework.ColumnType
		json  string
		value any // an error is text that begins with !
		data  string
	}{
		{"", `1.10`, "1.10", `1.10`},
		{"", `"a\tb"`, "a\tb", `"a\tb"`},
		{"", `{"a": 1}`, `{"a": 1}`, `{"a": 1}`},
		{"", `null`, nil, `null`},
		{"text", `1.10`, "1.10", `"1.10"`},
		{"text", `true`, "true", `"true"`},
		{"text", `["é\u0000"]`, `["é\u0000"]`, `"[\"é\\u0000\"]"`},
		{"number", `12345678901234567890.10`, json.Number("12345678901234567890.10"), `12345678901234567890.10`},
		{"number", `"1.10"`, json.Number("1.10"), `1.10`},
		{"number", `-0`, json.Number("-0"), `-0`},
		{"number", `"+1"`, `!"+1" is not a number`, ""},
		{"number", `"NaN"`, `!"NaN" is not a number`, ""},
		{"number", `" 1"`, `!" 1" is not a number`, ""},
		{"number", `"1 "`, `!"1 " is not a number`, ""},
		{"number", `""`, `!"" is not a number`, ""},
		{"number", `"01"`, `!"01" is not a number`, ""},
		{"number", `true`, `!true is not a number`, ""},
		{"integer", `9223372036854775807`, int64(9223372036854775807), `9223372036854775807`},
		{"integer", `9223372036854775808`, `!9223372036854775808 is not a whole number of 64 bits`, ""},
		{"integer", `"-5"`, int64(-5), `-5`},
		{"integer", `5.00`, int64(5), `5`},
		{"integer", `1e3`, int64(1000), `1000`},
		{"integer", `9007199254740993.0`, int64(9007199254740993), `9007199254740993`},
		{"integer", `4503599627370497.25`, `!4503599627370497.25 is not a whole number of 64 bits`, ""},
		{"integer", `1e999999999`, `!1e999999999 is not a whole number of 64 bits`, ""},
		{"integer", `1e-999`, `!1e-999 is not a whole number of 64 bits`, ""},
		{"boolean", `true`, true, `true`},
		{"boolean", `"false"`, false, `false`},
		{"boolean", `1`, `!1 is not true or false`, ""},
		{"time", `"2024-05-06T07:08:09.123456789+02:00"`, at("2024-05-06T05:08:09.123456789Z"), `"2024-05-06T05:08:09.123456789Z"`},
		{"time", `"2024-05-06T07:08:09"`, at("2024-05-06T07:08:09Z"), `"2024-05-06T07:08:09Z"`},
		{"time", `"2024-05-06 07:08:09.5"`, at("2024-05-06T07:08:09.5Z"), `"2024-05-06T07:08:09.5Z"`},
		{"time", `"2024-05-06"`, at("2024-05-06T00:00:00Z"), `"2024-05-06T00:00:00Z"`},
		{"time", `1714979289`, at("2024-05-06T07:08:09Z"), `"2024-05-06T07:08:09Z"`},
		{"time", `1714979289.123456789`, at("2024-05-06T07:08:09.123456789Z"), `"2024-05-06T07:08:09.123456789Z"`},
		{"time", `"1714979289123"`, at("2024-05-06T07:08:09.123Z"), `"2024-05-06T07:08:09.123Z"`},
		{"time", `1714979289123.25`, at("2024-05-06T07:08:09.12325Z"), `"2024-05-06T07:08:09.12325Z"`},
		{"time", `1714979289123456`, at("2024-05-06T07:08:09.123456Z"), `"2024-05-06T07:08:09.123456Z"`},
		{"time", `1714979289123456789`, at("2024-05-06T07:08:09.123456789Z"), `"2024-05-06T07:08:09.123456789Z"`},
		{"time", `-1.5`, at("1969-12-31T23:59:58.5Z"), `"1969-12-31T23:59:58.5Z"`},
		{"time", `-0.5`, at("1969-12-31T23:59:59.5Z"), `"1969-12-31T23:59:59.5Z"`},
		{"time", `1.714979289e9`, at("2024-05-06T07:08:09Z"), `"2024-05-06T07:08:09Z"`},
		{"time", `1e300`, `!the year is not between 0 and 9999`, ""},
		{"time", `"noon"`, `!"noon" is not a time: want RFC 3339, a date or a number`, ""},
		{"time", `[]`, `![] is not a time: want RFC 3339, a date or a number`, ""},
		{"json", `{"a": 1.10}`, json.RawMessage(`{"a": 1.10}`), `{"a": 1.10}`},
		{"json", `"s"`, json.RawMessage(`"s"`), `"s"`},
		{"json", `null`, nil, `null`},
	} {
		m := mapping(t, Spec{Columns: []Column{{Name: "v", Value: "v", Type: c.typ}}})
		records, err := decode(m, event("message", `{"v":`+c.json+`}`))
		if text, ok := c.value.(string); ok && strings.HasPrefix(text, "!") {
			if want := `the column "v" (v): ` + text[1:]; err == nil || err.Error() != want {
				t.Errorf("%s as %s: error is %v, want %s", c.json, c.typ, err, want)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s as %s: %v", c.json, c.typ, err)
			continue
		}
		if r := records[0]; !reflect.DeepEqual(r.Values[0], c.value) || string(r.Data) != `{"v":`+c.data+`}` {
			t.Errorf("%s as %s is %#v and %s", c.json, c.typ, r.Values[0], r.Data)
		}
	}
}

func TestUnits(t *testing.T) {
	for unit, want := range map[Unit]string{UnitS: "1970-01-01T00:20:34.5Z", UnitMS: "1970-01-01T00:00:01.2345Z", UnitUS: "1970-01-01T00:00:00.0012345Z", UnitNS: "1970-01-01T00:00:00.000001234Z"} {
		records, err := decode(mapping(t, Spec{Time: "ts", TimeUnit: unit}), event("message", `{"ts":1234.5}`))
		if err != nil || records[0].Time.Format(time.RFC3339Nano) != want {
			t.Errorf("%s: %v, %v", unit, records, err)
		}
	}
}

func TestRecordTypeAndTime(t *testing.T) {
	m := mapping(t, Spec{Type: `kind`, Time: `ts ?? event.time`})
	for data, want := range map[string]string{
		`{"kind":"buy","ts":"2024-05-06"}`: "buy 2024-05-06T00:00:00Z",
		`{"kind":7,"ts":0}`:                "7 1970-01-01T00:00:00Z",
		`{}`:                               " " + came.Format(time.RFC3339Nano), // the engine puts the event's there
		`{"kind":{}}`:                      `refused: type (kind): {} is not text`,
		`{"ts":"soon"}`:                    `refused: time (ts ?? event.time): "soon" is not a time: want RFC 3339, a date or a number`,
	} {
		records, err := decode(m, event("trade", data))
		got := fmt.Sprintf("refused: %v", err)
		if err == nil {
			got = records[0].Type + " " + records[0].Time.Format(time.RFC3339Nano)
		}
		if got != want {
			t.Errorf("%s: got %s, want %s", data, got, want)
		}
	}
	if got := datas(mapping(t, Spec{Time: "ts"}), event("trade", `{}`)); got != "refused: time (ts): there is no time" {
		t.Error(got)
	}
}

func TestEach(t *testing.T) {
	m := mapping(t, Spec{Each: "data.trades", Where: "qty > 0", Columns: columns("venue", "event.data.venue", "price", "price", "qty", "qty", "whole", "event.data.n + qty")})
	if got, want := datas(m, event("trade", `{"venue":"X","n":1,"data":{"trades":[{"price":1.10,"qty":1},{"price":2,"qty":0},{"qty":2}]}}`)),
		`{"venue":"X","price":1.10,"qty":1,"whole":2}`+"\n"+`{"venue":"X","price":null,"qty":2,"whole":3}`; got != want {
		t.Errorf("got\n%s", got)
	}
	for data, want := range map[string]string{
		`{"data":{"trades":null}}`: "",
		`{"data":{"trades":[]}}`:   "",
		`{"data":{}}`:              "refused: each: there is no list at data.trades",
		`{"data":{"trades":{}}}`:   "refused: each: what stands at data.trades is not a list",
		`{"data":{"trades":[{"qty":1,"price":[]},{}]}, "n":1}`: "refused: entry 1 of data.trades: where: invalid operation: <nil> > int at character 5",
	} {
		if got := datas(m, event("trade", data)); got != want {
			t.Errorf("%s: %s", data, got)
		}
	}
	if got := datas(mapping(t, Spec{Each: "this"}), event("trade", `[ 1.10, {"a": 1} ]`)); got != "1.10\n{\"a\": 1}" {
		t.Error(got)
	}
	if got := datas(mapping(t, Spec{Each: "a", Format: FormatNDJSON}), event("trade", "{\"a\":[1,2]}\n{\"a\":[3]}")); got != "1\n2\n3" {
		t.Error(got)
	}
}

func TestWhereOfRule(t *testing.T) {
	m := mapping(t, Spec{Where: "active"})
	for data, want := range map[string]string{
		`{"active":true}`: `{"active":true}`, `{"active":false}`: "", `{}`: "", `{"active":1}`: `refused: where (active): 1 is not true or false`,
	} {
		if got := datas(m, event("trade", data)); got != want {
			t.Errorf("%s: %s", data, got)
		}
	}
}

func TestKeysThatStandTwice(t *testing.T) {
	m := mapping(t, Spec{Columns: columns("b", "a.b", "c", "a.c", "sum", "a.b + 1")})
	if got := datas(m, event("trade", `{"a":{"b":1,"c":2},"a":{"b":3},"\u0061":{"b":4}}`)); got != `{"b":4,"c":null,"sum":5}` {
		t.Error(got)
	}
}

func TestRequired(t *testing.T) {
	m := mapping(t, Spec{Columns: []Column{{Name: "price", Value: "data.price", Required: true}}})
	for _, data := range []string{`{}`, `{"data":{"price":null}}`, `[]`, `1`} {
		if got := datas(m, event("trade", data)); got != `refused: the column "price" (data.price): it is required, and there is no value` {
			t.Errorf("%s: %s", data, got)
		}
	}
}

// TestRulesByType unites the columns of several rules.
func TestRulesByType(t *testing.T) {
	m := mapping(t,
		Spec{Types: []string{"trade"}, Columns: []Column{{Name: "symbol", Value: "s", Required: true}, {Name: "price", Value: "p", Type: "number"}, {Name: "n", Value: "n", Required: true}}},
		Spec{Types: []string{"quote"}, Columns: []Column{{Name: "bid", Value: "b", Required: true}, {Name: "symbol", Value: "s", Required: true}}},
		Spec{Types: []string{"note"}, Format: FormatText})
	want := []framework.Column{{Name: "symbol", Type: "text"}, {Name: "price", Type: "number"}, {Name: "n", Type: "text"}, {Name: "bid", Type: "text"}, {Name: "data", Type: "text"}}
	if got := m.Columns("any"); !reflect.DeepEqual(got, want) {
		t.Errorf("columns are %v", got)
	}
	for typ, want := range map[string]string{
		"trade": `[S 1.10 1 <nil> <nil>] {"symbol":"S","price":1.10,"n":1}`,
		"quote": `[S <nil> <nil> 2 <nil>] {"bid":2,"symbol":"S"}`,
		"note":  `[<nil> <nil> <nil> <nil> {"s":"S","p":1.10,"n":1,"b":2}] {"s":"S","p":1.10,"n":1,"b":2}`,
	} {
		records, err := decode(m, event(typ, `{"s":"S","p":1.10,"n":1,"b":2}`))
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(records[0].Values, " ", string(records[0].Data)); got != want {
			t.Errorf("%s: %s", typ, got)
		}
	}
	if got := datas(m, event("other", `{}`)); got != `refused: no entry of records takes events of the type "other"` {
		t.Error(got)
	}
	both := mapping(t, Spec{Types: []string{"a"}, Columns: []Column{{Name: "x", Value: "x", Required: true}}}, Spec{Columns: []Column{{Name: "x", Value: "y", Required: true}}})
	if !both.Columns("")[0].Required {
		t.Error("a column that all rules require is not required")
	}
	later := mapping(t, Spec{Types: []string{"a"}, Columns: columns("x", "x")}, Spec{Columns: []Column{{Name: "y", Required: true}}})
	if later.Columns("")[1].Required {
		t.Error("a column that one rule lacks is required")
	}
	first, _ := NewRule(Spec{Types: []string{"a"}, Columns: []Column{{Name: "x", Value: "x", Type: "number"}}})
	second, _ := NewRule(Spec{Columns: columns("x", "y")})
	if _, err := New([]*Rule{first, second}); err == nil || err.Error() != `the column "x" is number in one entry and text in another: give them one type, or two names` {
		t.Error(err)
	}
}

func TestDerivedTypes(t *testing.T) {
	for source, want := range map[string]framework.ColumnType{
		`price`: "text", `event.time`: "time", `event.id`: "text", `price > 1`: "boolean", `len(name)`: "integer", `a / b`: "number", `upper(a)`: "text", `map(a, .b)`: "json",
		`"x"`: "text", `date("2024-01-01")`: "time", `a + b`: "text",
	} {
		if got := mapping(t, Spec{Columns: columns("v", source)}).Columns("")[0].Type; got != want {
			t.Errorf("%s is %s, not %s", source, got, want)
		}
	}
}

func TestProblems(t *testing.T) {
	for _, c := range []struct {
		spec Spec
		want string
	}{
		{Spec{Where: "price >"}, `where: the expression does not compile: it ends too soon at character 7`},
		{Spec{Where: "a == \n(b"}, `where: the expression does not compile: it ends too soon at line 2, character 2`},
		{Spec{Where: "len(a)"}, `where: the expression results in int; write one that is true or false, such as price > 100`},
		{Spec{Where: "1 + 'a'"}, `where: the expression does not compile: invalid operation: + (mismatched types int and string) at character 3`},
		{Spec{Where: " "}, `where: the expression is empty; write a field such as price, or remove the key`},
		{Spec{Type: "uper(a)"}, `type: there is no function "uper" at character 1`},
		{Spec{Time: "now()"}, `time: the function "now" is not there, since its result is not always the same at character 1; event.time is when the event came`},
		{Spec{Columns: columns("k", "keys(a)")}, `map.k: the function "keys" is not there, since its result is not always the same at character 1; name the fields one by one`},
		{Spec{Columns: columns("e", "event")}, `map.e: event is no value; write a part of it, such as event.id or event.type or event.time or event.stream or event.data`},
		{Spec{Columns: columns("e", "event.tim")}, `map.e: event has no "tim" at character 7; it has: id, type, time, stream, data`},
		{Spec{Columns: columns("a", "b.c()")}, `map.a: there is no function "c" at character 3`},
		{Spec{Columns: columns("a\n", "a")}, `map.a` + "\n" + `: "a\n" cannot be the name of a column; use up to 63 printable bytes`},
		{Spec{Columns: columns("Price", "a", "price", "b")}, `map.price: another column has the name "price"; to a database small and capital letters are the same: give each a name of its own`},
		{Spec{Each: "a + b"}, `each: this is not the path of a list in the event; write one such as data.trades, or this where the event is the list`},
		{Spec{Format: FormatText, Each: "a"}, `each: there is no list in text; write format: json, or remove each`},
		{Spec{Format: FormatText, Columns: columns("a", "b")}, "map.a: text has no field \"b\" at character 1; the text is `this`"},
		{Spec{Format: FormatText, Columns: columns("a", "uper(this)")}, `map.a: there is no function "uper" at character 1`},
		{Spec{Format: FormatBase64, Schema: "x"}, `schema: a schema describes JSON, and the format is base64; write format: json, or remove the schema`},
	} {
		_, problems := NewRule(c.spec)
		if len(problems) != 1 || !strings.HasPrefix(problems[0].Error(), c.want) {
			t.Errorf("%+v:\n got %v\nwant %s", c.spec, problems, c.want)
		}
	}
	_, problems := NewRule(Spec{Type: "uper(a)"})
	if p := problems[0]; p.Name != "uper" || !strings.Contains(strings.Join(p.Valid, " "), "upper") || strings.Contains(strings.Join(p.Valid, " "), "now") {
		t.Errorf("what may be meant is %+v", p)
	}
}

// TestManyAtOnce decodes with one mapping in several goroutines, as several
// sinks do.
func TestManyAtOnce(t *testing.T) {
	m := mapping(t, Spec{Each: "list", Where: "n >= 0", Columns: columns("n", "n", "twice", "n * 2", "of", "event.data.of")})
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 500 {
				want := fmt.Sprintf(`{"n":%d,"twice":%d,"of":"g%d"}`, i, 2*i, g)
				if got := datas(m, event("x", fmt.Sprintf(`{"of":"g%d","list":[{"n":%d},{"n":-1}]}`, g, i))); got != want {
					t.Errorf("got %s, want %s", got, want)
					return
				}
			}
		})
	}
	wg.Wait()
}

func writeFile(t testing.TB, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestRecordsOfLongEventsAreShort keeps records of long events: what they hold
// is theirs alone, since a batch counts their own bytes only.
func TestRecordsOfLongEventsAreShort(t *testing.T) {
	m := mapping(t, Spec{Type: "kind", Columns: []Column{{Name: "name"}, {Name: "price", Type: "number"}}})
	long := strings.Repeat("x", 1<<20)
	var kept []framework.Record
	for range 64 {
		records, err := decode(m, event("x", `{"long":"`+long+`","kind":"buy","name":"ACME","price":1.10}`))
		if err != nil || len(records) != 1 {
			t.Fatal(records, err)
		}
		kept = append(kept, records...)
	}
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	if stats.HeapAlloc > 32<<20 {
		t.Errorf("%d records hold %d MiB", len(kept), stats.HeapAlloc>>20)
	}
	runtime.KeepAlive(kept)
}
