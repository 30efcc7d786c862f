package framework

import (
	"fmt"
	"slices"
)

// ColumnType is what the values of a column are.
type ColumnType string

// The types of columns and the Go types of their values. A value may always be
// nil where the column is not Required.
const (
	ColumnText    ColumnType = "text"    // string
	ColumnInteger ColumnType = "integer" // int64
	ColumnNumber  ColumnType = "number"  // json.Number, with all its digits
	ColumnBoolean ColumnType = "boolean" // bool
	ColumnTime    ColumnType = "time"    // time.Time
	ColumnJSON    ColumnType = "json"    // json.RawMessage
)

// Column is a part of a record that has a place of its own in a destination.
type Column struct {
	Name     string
	Type     ColumnType
	Required bool // never nil
}

// Columner is a [Decoder] whose records have columns. Sinks that keep tables
// make them of these, and then do not keep Data.
type Columner interface {
	Decoder
	// Columns are those of the stream's records, always the same ones; the
	// Values of each record are in their order. None means that the records
	// have Data only.
	Columns(stream string) []Column
}

// dataColumn stands for the Data of records without columns, in a sink that
// also gets records with columns.
var dataColumn = Column{Name: "data", Type: ColumnText}

// UniteColumns are the columns that a sink has for the records of the streams
// ("target/stream"), which these decoders make. Its error says which column
// they do not agree about.
func UniteColumns(streams []string, decoders map[string]Decoder) ([]Column, error) {
	l, err := newLayout(streams, decoders)
	return l.columns, err
}

// layout is how the records of several streams share the columns of a sink.
type layout struct {
	columns []Column
	// places are, for each stream, the places of its values in columns; nil
	// where they are the columns as they are.
	places map[string][]int
}

// newLayout unites the columns of the streams, in the order in which they are
// given.
func newLayout(streams []string, decoders map[string]Decoder) (layout, error) {
	l := layout{places: map[string][]int{}}
	of := map[string][]Column{}
	some := false
	for _, name := range streams {
		if c, ok := decoders[name].(Columner); ok {
			of[name] = c.Columns(name)
		}
		some = some || len(of[name]) > 0
	}
	if !some {
		return l, nil
	}
	for _, name := range streams {
		own := of[name]
		if len(own) == 0 {
			own = []Column{dataColumn}
		}
		places := make([]int, len(own))
		for i, c := range own {
			at := slices.IndexFunc(l.columns, func(other Column) bool { return other.Name == c.Name })
			if at < 0 {
				at = len(l.columns)
				l.columns = append(l.columns, c)
			} else if l.columns[at].Type != c.Type {
				return l, fmt.Errorf("the column %q is %s in the records of %s and %s in those of another stream: give them one type, or the streams sinks of their own", c.Name, c.Type, name, l.columns[at].Type)
			}
			places[i] = at
		}
		l.places[name] = places
	}
	for i := range l.columns {
		c := &l.columns[i]
		for _, name := range streams { // not required where only some have it
			own := of[name]
			at := slices.IndexFunc(own, func(other Column) bool { return other.Name == c.Name })
			c.Required = c.Required && at >= 0 && own[at].Required
		}
	}
	for name, places := range l.places {
		straight := len(places) == len(l.columns) && len(of[name]) > 0
		for i, at := range places {
			straight = straight && i == at
		}
		if straight {
			l.places[name] = nil
		}
	}
	return l, nil
}

// place brings the values of a record of the stream into the sink's order.
func (l *layout) place(rec *Record) {
	places := l.places[rec.Stream]
	if places == nil {
		return
	}
	values := make([]any, len(l.columns))
	for i, at := range places {
		if rec.Values == nil {
			values[at] = string(rec.Data)
		} else {
			values[at] = rec.Values[i]
		}
	}
	rec.Values = values
}
