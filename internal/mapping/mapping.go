// Package mapping makes records of events as a target file says: it decodes
// the payload, checks it against a JSON Schema, chooses, and names columns.
//
// The main type is [Mapping], a framework.Columner that [New] puts together of
// the rules that [NewRule] has compiled. [NewWhere] compiles the choice of a
// sink. Numbers keep their digits: what is only moved is never computed with.
//
// It deliberately knows no YAML, and nothing of sinks: it says what columns
// records have, and whoever delivers them makes tables.
package mapping

import (
	"fmt"
	"slices"
	"strings"

	"github.com/holdline/scrape/framework"
)

// Format says what the payload of an event is.
type Format string

// The formats.
const (
	// FormatRaw takes the payload as it came.
	FormatRaw Format = ""
	// FormatJSON is one JSON value.
	FormatJSON Format = "json"
	// FormatText is text in UTF-8.
	FormatText Format = "text"
	// FormatBase64 is text or other bytes packed in base64.
	FormatBase64 Format = "base64"
	// FormatNDJSON is one JSON value a line, each of which is a record.
	FormatNDJSON Format = "ndjson"
)

// Unit is what numbers that stand for a time count, since 1970 began.
type Unit string

// The units. UnitAuto goes by the size of the number: seconds below 1e11,
// milliseconds below 1e14, microseconds below 1e17, else nanoseconds.
const (
	UnitAuto Unit = "auto"
	UnitS    Unit = "s"
	UnitMS   Unit = "ms"
	UnitUS   Unit = "us"
	UnitNS   Unit = "ns"
)

// Spec is one rule, as somebody wrote it: which events it takes and what it
// makes of them. Each, Where, Type, Time and the values of columns are
// expressions of the language of expr-lang.org, over the fields of the JSON
// value that becomes a record, `this` (the value itself) and `event` (id,
// type, time, stream and data of the event that it came in). A field that is
// not there is nil.
type Spec struct {
	// Types are the event types that the rule takes; empty takes all.
	Types []string
	// Format is what the payload is. FormatRaw is FormatJSON where any of the
	// keys below is set.
	Format Format
	// Each is the path of a list: each of its entries becomes a record.
	Each string
	// Schema is the path of a file with the JSON Schema that each record's
	// value has to meet.
	Schema string
	// Where tells which records are made; the others are not.
	Where string
	// Type and Time are those of the record; empty leaves the event's.
	Type, Time string
	// TimeUnit is that of numbers in Time and in columns of times.
	TimeUnit Unit
	// Columns are those of the record. Without any they are the top-level
	// properties of the schema; without a schema there are none.
	Columns []Column
}

// Column is a part of the record.
type Column struct {
	Name string
	// Value is an expression; empty is the field with the column's name.
	Value string
	// Type is what the values are. Empty takes the schema's, or what the
	// expression is known to result in; otherwise it is text in a table and
	// stays as it is in the record's JSON.
	Type framework.ColumnType
	// Required refuses events where the value is missing or null.
	Required bool
}

// Problem is one thing that is wrong with a [Spec] or a sink's choice.
type Problem struct {
	// Key is that of the target file, such as "where" or "map.price".
	Key string
	// Message says what is wrong, Remedy what to do; Remedy may be empty.
	Message, Remedy string
	// Name is not among Valid, which What describes, where that is the problem.
	Name, What string
	Valid      []string
}

// Error is one line.
func (p *Problem) Error() string {
	text := p.Key + ": " + p.Message
	if p.Remedy != "" {
		text += "; " + p.Remedy
	}
	if len(p.Valid) > 0 {
		text += "; " + p.What + ": " + strings.Join(p.Valid, ", ")
	}
	return text
}

// Mapping makes the records of streams. It is safe for concurrent use.
type Mapping struct {
	rules   []*Rule
	places  [][]int // of each rule's columns in columns
	columns []framework.Column
}

// New puts rules together: of those that take an event the first one counts.
// Its error says which column the rules do not agree about.
func New(rules []*Rule) (*Mapping, error) {
	m := &Mapping{rules: rules}
	some := slices.ContainsFunc(rules, func(r *Rule) bool { return len(r.columns) > 0 })
	for n, r := range rules {
		var places []int
		own := r.described()
		if some && len(own) == 0 {
			own = []framework.Column{{Name: "data", Type: framework.ColumnText}}
		}
		for _, c := range own {
			at := slices.IndexFunc(m.columns, func(o framework.Column) bool { return o.Name == c.Name })
			switch {
			case at < 0:
				at = len(m.columns)
				c.Required = c.Required && n == 0
				m.columns = append(m.columns, c)
			case m.columns[at].Type != c.Type:
				return nil, fmt.Errorf("the column %q is %s in one entry and %s in another: give them one type, or two names", c.Name, m.columns[at].Type, c.Type)
			}
			places = append(places, at)
		}
		for i := range m.columns {
			c := &m.columns[i]
			c.Required = c.Required && slices.ContainsFunc(own, func(o framework.Column) bool { return o.Name == c.Name && o.Required })
		}
		m.places = append(m.places, places)
	}
	return m, nil
}

// Columns implements [framework.Columner].
func (m *Mapping) Columns(string) []framework.Column { return m.columns }

// Decode implements [framework.Decoder].
func (m *Mapping) Decode(stream string, ev *framework.Event, emit func(framework.Record)) error {
	for i, r := range m.rules {
		if r.takes(ev.Type) {
			return r.decode(stream, ev, len(m.columns), m.places[i], emit)
		}
	}
	return fmt.Errorf("no entry of records takes events of the type %q", ev.Type)
}
