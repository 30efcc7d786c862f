package sqlite

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/holdline/scrape/framework"
	"github.com/holdline/scrape/internal/sink"
)

// column is one column of the table and where its value comes from.
type column struct {
	name string
	// decl is how the column is declared when the table is made.
	decl  string
	value func(*framework.Record) (any, error)

	// add is how a standard column is added to a table that has rows ("" when
	// that is not possible).
	add string

	// mapped tells that it is one of the records' own columns. Then kind is
	// its declared type, affinities are those that leave its values as they
	// are, and a value may be NULL unless it is required.
	mapped     bool
	kind       string
	affinities []string
	required   bool
}

var standard = []column{
	{name: "_key", decl: "TEXT NOT NULL PRIMARY KEY",
		value: func(r *framework.Record) (any, error) { return r.Key.String(), nil }},
	{name: "stream", decl: "TEXT NOT NULL", add: "TEXT NOT NULL DEFAULT ''",
		value: func(r *framework.Record) (any, error) { return text(r.Stream), nil }},
	{name: "id", decl: "TEXT", add: "TEXT",
		value: func(r *framework.Record) (any, error) {
			if r.ID == "" {
				return nil, nil
			}
			return text(r.ID), nil
		}},
	{name: "type", decl: "TEXT NOT NULL", add: "TEXT NOT NULL DEFAULT ''",
		value: func(r *framework.Record) (any, error) { return text(r.Type), nil }},
	{name: "time", decl: "TEXT NOT NULL", add: "TEXT NOT NULL DEFAULT ''",
		value: func(r *framework.Record) (any, error) { return timeText(r.Time) }},
}

// dataColumn is there when the records have no columns of their own. Without a
// declared type SQLite converts nothing: "007" stays text.
var dataColumn = column{name: "data", decl: "NOT NULL", add: "NOT NULL DEFAULT ''",
	value: func(r *framework.Record) (any, error) { return text(string(r.Data)), nil }}

// The affinities of SQLite, https://sqlite.org/datatype3.html.
const (
	affinityText    = "TEXT"
	affinityNumeric = "NUMERIC"
	affinityInteger = "INTEGER"
	affinityReal    = "REAL"
	affinityNone    = "BLOB"
)

// affinity is what SQLite makes of a declared type.
func affinity(declared string) string {
	d := strings.ToUpper(declared)
	has := func(parts ...string) bool {
		return slices.ContainsFunc(parts, func(part string) bool { return strings.Contains(d, part) })
	}
	switch {
	case has("INT"):
		return affinityInteger
	case has("CHAR", "CLOB", "TEXT"):
		return affinityText
	case d == "", has("BLOB"):
		return affinityNone
	case has("REAL", "FLOA", "DOUB"):
		return affinityReal
	}
	return affinityNumeric
}

// kinds are the declared types of the records' columns. Numbers have none: any
// would have SQLite make doubles of texts that look like numbers.
var kinds = map[framework.ColumnType]struct {
	declared   string
	affinities []string
}{
	framework.ColumnText:    {"TEXT", []string{affinityText, affinityNone}},
	framework.ColumnInteger: {"INTEGER", []string{affinityInteger, affinityNumeric, affinityNone}},
	framework.ColumnNumber:  {"", []string{affinityNone}},
	framework.ColumnBoolean: {"BOOLEAN", []string{affinityInteger, affinityNumeric, affinityNone}},
	framework.ColumnTime:    {"TEXT", []string{affinityText, affinityNone}},
	framework.ColumnJSON:    {"TEXT", []string{affinityText, affinityNone}},
}

// CheckColumns tells whether a table can have columns of these names.
func CheckColumns(columns []framework.Column) error { return sink.CheckColumns(columns) }

// columnsOf are the columns of a table for records with these of their own.
func columnsOf(own []framework.Column) ([]column, error) {
	if len(own) == 0 {
		return append(slices.Clone(standard), dataColumn), nil
	}
	if err := CheckColumns(own); err != nil {
		return nil, err
	}
	columns := slices.Clone(standard)
	for i, c := range own {
		kind, ok := kinds[c.Type]
		if !ok {
			return nil, fmt.Errorf("the column %q is of an unknown type %q", c.Name, c.Type)
		}
		decl := kind.declared
		if c.Required {
			decl = strings.TrimSpace(decl + " NOT NULL")
		}
		columns = append(columns, column{
			name: c.Name, decl: decl, mapped: true, kind: kind.declared, affinities: kind.affinities, required: c.Required,
			value: func(r *framework.Record) (any, error) {
				if err := sink.CheckValues(r, len(own)); err != nil {
					return nil, err
				}
				v, err := valueOf(c, r.Values[i])
				if err != nil {
					return nil, fmt.Errorf("column %q: %w", c.Name, err)
				}
				return v, nil
			},
		})
	}
	return columns, nil
}

// valueOf is how a value is stored.
func valueOf(c framework.Column, value any) (any, error) {
	var v any
	var err error
	switch value := value.(type) {
	case nil:
		return nil, nil
	case string:
		if c.Type == framework.ColumnText {
			return text(value), nil
		}
	case int64:
		if c.Type == framework.ColumnInteger {
			return value, nil
		}
	case bool:
		if c.Type == framework.ColumnBoolean {
			return value, nil
		}
	case json.Number:
		if c.Type == framework.ColumnNumber {
			v, err = number(value)
		}
	case time.Time:
		if c.Type == framework.ColumnTime {
			v, err = timeText(value)
		}
	case json.RawMessage:
		if c.Type == framework.ColumnJSON {
			return text(string(value)), nil
		}
	}
	switch {
	case err != nil:
		return nil, err
	case v == nil:
		return nil, sink.Mismatch(c, value)
	}
	return v, nil
}

// number is how a number is stored: as an INTEGER where it is a whole one of
// 64 bits, as a REAL where that gives the same digits back, and else as TEXT,
// which keeps them all.
func number(n json.Number) (any, error) {
	d, err := sink.ParseNumber(n)
	if err != nil {
		return nil, err
	}
	high, low, ok := d.Bounds()
	if !ok {
		return int64(0), nil
	}
	if d.Scale() == 0 && d.Exponent == 0 {
		if i, err := strconv.ParseInt(string(n), 10, 64); err == nil {
			return i, nil
		}
	}
	// Any 15 digits survive a double.
	if high-low < 15 && high < 300 && low > -300 {
		if f, err := strconv.ParseFloat(string(n), 64); err == nil && !math.IsInf(f, 0) {
			return f, nil
		}
	}
	return string(n), nil
}

// text is how bytes are stored so that the very same bytes come back: TEXT
// where that is safe, else BLOB. Text with a NUL in it is a BLOB, too: SQLite
// keeps it whole, but its own functions, its shell and many clients end at the
// NUL (https://sqlite.org/nulinstr.html).
func text(s string) any {
	if utf8.ValidString(s) && strings.IndexByte(s, 0) < 0 {
		return s
	}
	return []byte(s)
}

// timeText is RFC 3339 in UTC with nine decimals always, so that the order of
// the texts is the order of the times.
func timeText(t time.Time) (string, error) {
	t = t.UTC()
	if y := t.Year(); y < 0 || y > 9999 {
		return "", fmt.Errorf("its time is in the year %d: RFC 3339 ends at 9999", y)
	}
	return t.Format("2006-01-02T15:04:05.000000000Z"), nil
}
