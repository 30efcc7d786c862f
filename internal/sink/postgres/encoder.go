package postgres

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/holdline/scrape/framework"
	"github.com/holdline/scrape/internal/sink"
)

// dataType is the type of the column data.
type dataType string

// copyStatement says in which order and form append writes.
func (s *Sink) copyStatement() string {
	return "COPY " + s.table + ` ("_key", "stream", "id", "type", "time", "data", "raw") FROM STDIN (FORMAT binary)`
}

// The binary form of COPY:
// https://www.postgresql.org/docs/current/sql-copy.html#id-1.9.3.55.9.4.
// pgx can write it, too, but asks the server for the types before each COPY,
// and looks at every value's.
var copyHeader = []byte("PGCOPY\n\xff\r\n\x00" + "\x00\x00\x00\x00" + "\x00\x00\x00\x00")

const (
	copyFields  = 7
	copyTrailer = -1
	copyNull    = -1
)

// appendRows appends the records as COPY takes them.
func (t dataType) appendRows(b []byte, records []framework.Record) ([]byte, error) {
	b = append(b, copyHeader...)
	for i := range records {
		var err error
		if b, err = t.appendRow(b, &records[i]); err != nil {
			return b, &framework.RecordError{Key: records[i].Key, Err: err}
		}
	}
	return appendInt16(b, copyTrailer), nil
}

func (t dataType) appendRow(b []byte, r *framework.Record) ([]byte, error) {
	b = appendInt16(b, copyFields)
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
	b = binary.BigEndian.AppendUint64(appendInt32(b, 8), uint64(micros))
	return t.appendData(b, r.Data), nil
}

// appendData appends data and raw, one of which is NULL. What data cannot hold
// goes into raw: so every payload comes back as it was.
func (t dataType) appendData(b, data []byte) []byte {
	switch {
	case !utf8.Valid(data) || bytes.IndexByte(data, 0) >= 0, (t == "json" || t == "jsonb") && !json.Valid(data):
		return appendField(appendInt32(b, copyNull), data)
	case t == "jsonb":
		b = append(appendInt32(b, len(data)+1), 1) // the version of its form
		b = append(b, data...)
	default:
		b = appendField(b, data)
	}
	return appendInt32(b, copyNull)
}

func appendInt16(b []byte, n int) []byte { return binary.BigEndian.AppendUint16(b, uint16(n)) }
func appendInt32(b []byte, n int) []byte { return binary.BigEndian.AppendUint32(b, uint32(n)) }

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
