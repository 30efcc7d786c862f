package postgres

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/holdline/scrape/framework"
	"github.com/holdline/scrape/internal/sink"
)

// encoder writes records for COPY.
type encoder struct {
	fields  int
	data    string             // the type of the column data
	columns []framework.Column // the records' own, in place of data and raw
	jsonb   []bool             // which of these are jsonb
}

func newEncoder(own []framework.Column, has []found) encoder {
	typeOf := func(name string) string {
		for _, f := range has {
			if f.name == name {
				return f.typ
			}
		}
		return ""
	}
	if len(own) == 0 {
		return encoder{fields: len(standard) + len(payload), data: typeOf("data")}
	}
	e := encoder{fields: len(standard) + len(own), columns: own, jsonb: make([]bool, len(own))}
	for i, c := range own {
		e.jsonb[i] = typeOf(c.Name) == "jsonb"
	}
	return e
}

// copyStatement says in which order and form append writes.
func (s *Sink) copyStatement() string {
	quoted := make([]string, len(s.columns))
	for i, c := range s.columns {
		quoted[i] = quote(c.name)
	}
	return "COPY " + s.table + " (" + strings.Join(quoted, ", ") + ") FROM STDIN (FORMAT binary)"
}

// The binary form of COPY:
// https://www.postgresql.org/docs/current/sql-copy.html#id-1.9.3.55.9.4.
// pgx can write it, too, but asks the server for the types before each COPY,
// and looks at every value's.
var copyHeader = []byte("PGCOPY\n\xff\r\n\x00" + "\x00\x00\x00\x00" + "\x00\x00\x00\x00")

const (
	copyTrailer = -1
	copyNull    = -1
	// maxRow is less than the 1 GiB at which the server gives up a message, a
	// value or a row, with an error that does not tell which.
	maxRow = 1<<30 - 1<<20
)

// appendRows appends the records as COPY takes them.
func (e *encoder) appendRows(b []byte, records []framework.Record, most int) ([]byte, error) {
	b = append(b, copyHeader...)
	for i := range records {
		before := len(b)
		var err error
		if b, err = e.appendRow(b, &records[i]); err == nil && len(b)-before > most {
			err = fmt.Errorf("its row would have %d bytes: PostgreSQL can store %d", len(b)-before, most)
		}
		if err != nil {
			return b, &framework.RecordError{Key: records[i].Key, Err: err}
		}
	}
	return appendInt16(b, copyTrailer), nil
}

func (e *encoder) appendRow(b []byte, r *framework.Record) ([]byte, error) {
	b = appendInt16(b, e.fields)
	at := len(b)
	b = r.Key.Append(append(b, 0, 0, 0, 0))
	binary.BigEndian.PutUint32(b[at:], uint32(len(b)-at-4))
	b = appendField(b, sink.Text(r.Stream))
	if r.ID == "" {
		b = appendInt32(b, copyNull)
	} else {
		b = appendField(b, sink.Text(r.ID))
	}
	b = appendField(b, sink.Text(r.Type))
	micros, err := timestamp(r.Time)
	if err != nil {
		return b, err
	}
	b = appendInt64(b, micros)
	if e.columns == nil {
		return e.appendData(b, r.Data), nil
	}
	if err := sink.CheckValues(r, len(e.columns)); err != nil {
		return b, err
	}
	for i, v := range r.Values {
		if b, err = e.appendValue(b, i, v); err != nil {
			return b, fmt.Errorf("column %q: %w", e.columns[i].Name, err)
		}
	}
	return b, nil
}

// appendData appends data and raw, one of which is NULL. What data cannot hold
// goes into raw: so every payload comes back as it was.
func (e *encoder) appendData(b, data []byte) []byte {
	switch {
	case !utf8.Valid(data) || bytes.IndexByte(data, 0) >= 0, (e.data == "json" || e.data == "jsonb") && !json.Valid(data):
		return appendField(appendInt32(b, copyNull), data)
	case e.data == "jsonb":
		b = appendJSONB(b, data)
	default:
		b = appendField(b, data)
	}
	return appendInt32(b, copyNull)
}

// appendValue appends the value of the column i of the records' own.
func (e *encoder) appendValue(b []byte, i int, value any) ([]byte, error) {
	c := &e.columns[i]
	switch value := value.(type) {
	case nil:
		return appendInt32(b, copyNull), nil
	case string:
		if c.Type == framework.ColumnText {
			return appendField(b, sink.Text(value)), nil
		}
	case int64:
		if c.Type == framework.ColumnInteger {
			return appendInt64(b, value), nil
		}
	case bool:
		if c.Type == framework.ColumnBoolean {
			if value {
				return append(appendInt32(b, 1), 1), nil
			}
			return append(appendInt32(b, 1), 0), nil
		}
	case json.Number:
		if c.Type == framework.ColumnNumber {
			return appendNumeric(b, value)
		}
	case time.Time:
		if c.Type == framework.ColumnTime {
			micros, err := timestamp(value)
			return appendInt64(b, micros), err
		}
	case json.RawMessage:
		if c.Type == framework.ColumnJSON && e.jsonb[i] {
			return appendJSONB(b, value), nil
		} else if c.Type == framework.ColumnJSON {
			return appendField(b, []byte(value)), nil
		}
	}
	return b, sink.Mismatch(*c, value)
}

func appendInt16(b []byte, n int) []byte { return binary.BigEndian.AppendUint16(b, uint16(n)) }
func appendInt32(b []byte, n int) []byte { return binary.BigEndian.AppendUint32(b, uint32(n)) }

// appendInt64 appends a field of eight bytes.
func appendInt64(b []byte, n int64) []byte {
	return binary.BigEndian.AppendUint64(appendInt32(b, 8), uint64(n))
}

// appendJSONB appends a field of jsonb.
func appendJSONB(b, data []byte) []byte {
	b = append(appendInt32(b, len(data)+1), 1) // the version of its form
	return append(b, data...)
}

func appendField[T string | []byte](b []byte, v T) []byte {
	return append(appendInt32(b, len(v)), v...)
}

// timestamp is microseconds since 2000, as PostgreSQL counts: finer parts of a
// time are cut off.
func timestamp(t time.Time) (int64, error) {
	const unixToPostgres = 946684800
	// https://www.postgresql.org/docs/current/datatype-datetime.html, less the
	// part of a year at each end.
	if y := t.UTC().Year(); y < -4712 || y > 294275 {
		return 0, fmt.Errorf("its time is in the year %d: PostgreSQL knows those from -4712 to 294275", y)
	}
	return (t.Unix()-unixToPostgres)*1e6 + int64(t.Nanosecond())/1e3, nil
}

// What numeric can hold:
// https://www.postgresql.org/docs/current/datatype-numeric.html.
const (
	maxBefore = 131072 // digits before the point
	maxAfter  = 16383
)

// appendNumeric appends a field of numeric, with every digit: those of a number
// in groups of four, the power of 10,000 of the first one, its sign, and how
// many digits follow the point.
func appendNumeric(b []byte, n json.Number) ([]byte, error) {
	d, err := sink.ParseNumber(n)
	if err != nil {
		return b, err
	}
	high, low, some := d.Bounds()
	scale := d.Scale()
	if scale > maxAfter || some && high >= maxBefore {
		return b, fmt.Errorf("%.40q has too many digits: PostgreSQL keeps %d before the point and %d after it", string(n), maxBefore, maxAfter)
	}
	first, groups, sign := 0, 0, 0
	if some {
		last := floorDiv(low, 4)
		first = floorDiv(high, 4)
		groups = first - last + 1
		if d.Negative {
			sign = 0x4000
		}
	}
	b = appendInt32(b, 8+2*groups)
	b = appendInt16(appendInt16(appendInt16(appendInt16(b, groups), first), sign), scale)
	for g := first; g > first-groups; g-- {
		p := 4 * g
		b = appendInt16(b, d.Digit(p+3)*1000+d.Digit(p+2)*100+d.Digit(p+1)*10+d.Digit(p))
	}
	return b, nil
}

// floorDiv is n/by rounded down.
func floorDiv(n, by int) int {
	if n < 0 {
		return -((by - 1 - n) / by)
	}
	return n / by
}
