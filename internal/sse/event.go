package sse

import (
	"fmt"
	"time"
)

// Event is one dispatched event. Its slices are views into the decoder, valid
// until the next call of [Decoder.Next] or [Decoder.Close]; they must not be
// modified.
type Event struct {
	ID []byte // the last event id in force after this event; empty if none
	// HasID tells that the event's own block set ID; otherwise ID is that of a
	// block before it, and says nothing about this event.
	HasID bool
	Type  []byte    // "message" where the feed gave none
	Data  []byte    // the data lines, joined by LF
	Time  time.Time // when the Read that completed the event returned
}

// Policy says what becomes of an event that is too large.
type Policy int

const (
	// Skip discards the event through its blank line and reports it as an
	// oddity of the kind [TooLarge]. Its id counts, as the standard has it
	// for any finished block, so that a resumed connection does not meet the
	// same event again.
	Skip Policy = iota
	// Fail makes Next return a [*TooLargeError]; the event's id does not count.
	Fail
)

// Options are the settings of a [Decoder]. The zero value is usable.
//
// The callbacks run inside Next, on its goroutine, in the order of the bytes;
// they must not call Next or Close.
type Options struct {
	// MaxEvent bounds one unfinished event, in bytes: the data collected so
	// far and the line being read. 0 means 16 MiB. An id, event or retry line
	// is bounded to 64 KiB besides. Comments and lines that mean nothing take
	// no memory and have no bound. (An event that is not UTF-8 takes up to
	// three times its size more, until the next Read.)
	MaxEvent int64
	// OnTooLarge applies to an event that exceeds MaxEvent or finds Budget
	// exhausted.
	OnTooLarge Policy
	// Budget bounds the memory of unfinished events over many decoders.
	// nil means no such bound.
	Budget *Budget
	// Buffer is the size of the read buffer to begin with, in bytes; it grows
	// to 32 KiB under load and shrinks back. 0 means 512.
	Buffer int
	// LastEventID is the id in force before the first byte: the one that the
	// connection resumes from.
	LastEventID string

	// OnComment is told each comment without its colon: at most the first
	// KiB, as it came, valid during the call only.
	OnComment func(text []byte)
	// OnID is told the last event id whenever a block that dispatched no event
	// has set it (one with an id and no data, or a skipped one after its
	// oddity). The slice is valid during the call only. For a block with an
	// event, Event.ID tells it.
	OnID func(id []byte)
	// OnOddity is told what the standard drops without a word.
	OnOddity func(Oddity)
}

// Oddity is something in the feed that the standard drops without a word.
type Oddity struct {
	Kind  Kind
	First string // the first bytes of it, at most 128, as they came
	Size  int64  // bytes of the whole of it on the wire; for an event, of its block so far
	// ID is the last event id in force after a block that was [TooLarge];
	// empty for the other kinds.
	ID string
	// Reason says why an event was TooLarge; nil for the other kinds.
	Reason error
}

// Kind is a kind of [Oddity].
type Kind int

const (
	// UnknownField is a line with a field name that the standard does not
	// have: "error: {...}", or bare JSON.
	UnknownField Kind = iota
	// Unterminated is a last block without its blank line. [Unfinished] has it.
	// It is noticed when the stream ends cleanly: a connection that breaks
	// inside an event is not odd.
	Unterminated
	// TooLarge is an event that was skipped by [Skip].
	TooLarge
	// NULInID is an id that is ignored because it contains a NUL.
	NULInID
	// BadRetry is a retry field that is not made of ASCII digits alone.
	BadRetry
	// NoBlankLine is a feed whose first 64 data lines came without one blank
	// line: as it stands it will never dispatch an event. Told once.
	NoBlankLine
	// NoData is a block with an event type and no data, which dispatches nothing.
	NoData

	kinds
)

var kindNames = [kinds]string{
	UnknownField: "unknown field",
	Unterminated: "unterminated block",
	TooLarge:     "event too large",
	NULInID:      "NUL in id",
	BadRetry:     "bad retry",
	NoBlankLine:  "no blank line",
	NoData:       "event without data",
}

// String names the kind for logs and metrics.
func (k Kind) String() string {
	if k < 0 || k >= kinds {
		return fmt.Sprintf("Kind(%d)", int(k))
	}
	return kindNames[k]
}

// Stats counts what a decoder has seen.
type Stats struct {
	Bytes    int64        // read
	Events   int64        // dispatched
	Comments int64        // lines
	IDOnly   int64        // blocks that set the last event id and dispatched nothing
	Oddities [kinds]int64 // by Kind
}

// Unfinished is what a stream left over at its end: a block without its blank
// line, which the standard discards together with its id.
type Unfinished struct {
	Bytes int64  // on the wire, since the last blank line; 0 if nothing was left over
	First []byte // at most 128 bytes: of the data, or else of the unterminated line
	// The fields so far. An unterminated line counts as if it had ended, so
	// that a sentinel such as a last "data: [DONE]" can be recognised.
	ID, Type, Data []byte
}

// TooLargeError is returned by Next, under [Fail], for an event beyond a limit.
// The decoder is of no further use.
type TooLargeError struct {
	Size   int64 // bytes of the event so far
	Reason error // [ErrMaxEvent] or [ErrBudget]
}

// Error tells the size and the limit.
func (e *TooLargeError) Error() string {
	return fmt.Sprintf("sse: event of more than %d bytes: %v", e.Size, e.Reason)
}

// Unwrap gives the reason.
func (e *TooLargeError) Unwrap() error { return e.Reason }
