package framework

import (
	"crypto/rand"
	"encoding/base32"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// JournalID names a journal for ever: 16 letters and digits, random, made when
// the journal is made. Two journals with the same content are two journals.
type JournalID string

// NewJournalID makes a random id of 80 bits.
func NewJournalID() JournalID {
	var b [10]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand crashes the program instead
	return JournalID(strings.ToLower(base32.StdEncoding.EncodeToString(b[:])))
}

// Position is a place in one partition of one journal: just after an event.
// The zero Seq is the place before the first event.
type Position struct {
	Journal   JournalID
	Partition int
	// Seq is the number of the chunk, counted from 1 in its partition.
	Seq uint64
	// Event is the ordinal of the event in its chunk, counted from 1. A chunk
	// that holds nothing for the reader is passed with Event at its last one.
	Event int
}

// String returns "journal/partition/seq/event".
func (p Position) String() string {
	return fmt.Sprintf("%s/%d/%d/%d", p.Journal, p.Partition, p.Seq, p.Event)
}

// Before tells whether p is an earlier place than q of the same partition of
// the same journal.
func (p Position) Before(q Position) bool {
	return p.Seq < q.Seq || p.Seq == q.Seq && p.Event < q.Event
}

// Key names a record for ever: the place of its event in the journal and its
// ordinal among the records of that event, counted from 1. Redelivery gives
// the same key.
type Key struct {
	Position
	Record int
}

// String returns "journal/partition/seq/event/record", the form in which keys
// are stored in destinations.
func (k Key) String() string { return string(k.Append(nil)) }

// Append appends the form of String to b.
func (k Key) Append(b []byte) []byte {
	b = append(b, k.Journal...)
	b = append(b, '/')
	b = strconv.AppendInt(b, int64(k.Partition), 10)
	b = append(b, '/')
	b = strconv.AppendUint(b, k.Seq, 10)
	b = append(b, '/')
	b = strconv.AppendInt(b, int64(k.Event), 10)
	b = append(b, '/')
	return strconv.AppendInt(b, int64(k.Record), 10)
}

// Record is what sinks get: an event after decoding. Its byte slices are not
// changed after it was made and may be kept.
type Record struct {
	// Key is set by the engine.
	Key Key
	// Stream is "target/stream", set by the engine.
	Stream string
	// ID is the id of the event, set by the engine.
	ID string
	// Cursor resumes the stream after this record's event, set by the engine.
	Cursor Cursor
	// Type is the event's name unless the decoder chose another.
	Type string
	// Time is when the event was received unless the decoder took another
	// from the payload.
	Time time.Time
	// Data is the payload, as it arrived unless the decoder changed it.
	Data []byte
	// Values are the record's columns, in the order of the decoder's Columns;
	// for a sink, in the order of [SinkInfo.Columns]. Nil without columns.
	Values []any
	// Filled says that the event was missed and came later than its place,
	// from the site's history; set by the engine.
	Filled bool
	// Reason is why the decoder refused the event, in a record for a sink
	// that takes what is refused: see [SinkConfig.Refused].
	Reason string
	// Again is set where the event was a dead letter and came a second time.
	Again *Again
}
