package sink

import (
	"encoding/json"
	"math/big"
	"strings"
	"testing"

	"github.com/holdline/scrape/framework"
)

func TestCheckColumns(t *testing.T) {
	for _, c := range []struct {
		names []string
		says  string // empty: they can be
	}{
		{nil, ""},
		{[]string{"price", "data", "raw", "key", "Ünïcode", `a"b`, strings.Repeat("x", 63)}, ""},
		{[]string{"price", "Time"}, `"Time" has the name of one that every table has (_key, stream, id, type, time): give it another`},
		{[]string{"_KEY"}, "every table has"},
		{[]string{"id"}, "every table has"},
		{[]string{"xmin"}, "keeps for itself"},
		{[]string{"a", "b", "a"}, `two columns are named "a"`},
		{[]string{"price", "Price"}, `"price" and "Price" differ in case only`},
		{[]string{strings.Repeat("ü", 32)}, "has a name of 64 bytes: give it one of at most 63"},
		{[]string{""}, `a column is named ""`},
		{[]string{"a\x00"}, `a column is named "a\x00"`},
		{[]string{"\xff"}, `a column is named "\xff"`},
	} {
		var columns []framework.Column
		for _, n := range c.names {
			columns = append(columns, framework.Column{Name: n, Type: framework.ColumnText})
		}
		err := CheckColumns(columns, "xmin")
		if c.says == "" && err != nil || c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%q: error %v, want one that says %q", c.names, err, c.says)
		}
	}
}

// A number taken apart and put together again is the same.
func TestParseNumber(t *testing.T) {
	for _, text := range []string{"0", "-0", "0.00", "1", "-12", "120", "0.001", "100.250", "1e3", "1E-3", "-1.25e+4", "0.00012e2", "0e99", "9007199254740993"} {
		d, err := ParseNumber(json.Number(text))
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		var b strings.Builder
		if d.Negative {
			b.WriteByte('-')
		}
		high, low, ok := d.Bounds()
		for p := max(high, 0); p >= min(low, 0); p-- {
			b.WriteByte(byte('0' + d.Digit(p)))
			if p == 0 {
				b.WriteByte('.')
			}
		}
		got, _ := new(big.Rat).SetString(b.String() + "0")
		want, _ := new(big.Rat).SetString(text)
		if got.Cmp(want) != 0 || ok != (want.Sign() != 0) || ok && (d.Digit(high) == 0 || d.Digit(low) == 0) {
			t.Errorf("%s is %s (first digit at %d, last at %d, %v)", text, b.String(), high, low, ok)
		}
	}
	for text, want := range map[string]int{"1.50": 2, "1.5e-3": 4, "1.5e3": 0, "100": 0, "0.000": 3} {
		if d, _ := ParseNumber(json.Number(text)); d.Scale() != want {
			t.Errorf("%s has %d digits after the point, want %d", text, d.Scale(), want)
		}
	}
	for _, text := range []string{"", "-", "+1", ".5", "5.", "1.2.3", "1e", "1e+-3", "e3", "1e2097152", "0x1", "NaN", "Infinity", "1 ", "１"} {
		if d, err := ParseNumber(json.Number(text)); err == nil {
			t.Errorf("%q is %+v, want an error", text, d)
		}
	}
}
