package framework

import "time"

// Cursor is where a stream resumes: the Last-Event-ID, or whatever token the
// target understands. The engine stores it and hands it back, and never looks
// inside. The empty cursor asks for whatever the site sends to a newcomer.
type Cursor string

// Event is what was on the wire.
//
// ID and Data are views into the connection's buffer, valid until the next
// call to its Next: copy what is to be kept.
type Event struct {
	// ID is the event's own id, empty when it brought none: then the engine
	// puts Sequence in its place, where there is one. It tells events apart at
	// a seam; the position to resume from is Cursor.
	ID []byte
	// Type is the event's name, "message" when the wire gave none.
	Type string
	// Data is the payload.
	Data []byte
	// Time is when the read that completed the event returned.
	Time time.Time
	// Cursor resumes the stream right after this event.
	Cursor Cursor
	// Sequence is the event's number, set by the engine when Sequenced: see
	// [Stream.Sequence].
	Sequence  uint64
	Sequenced bool
	// Filled is set by the engine on an event that was missed and then fetched
	// from the site's history: it stands later than its place.
	Filled bool
	// Late is set by the engine on an event that a line brought after another
	// one had brought what follows it in the stream, or may have.
	Late bool
	// Again is nil but for a dead letter that is appended to the journal a
	// second time. Such an event moves no cursor and is no part of the
	// stream's tail.
	Again *Again

	// Aside is set by a connection for what goes with the events and is none
	// of them, such as a [Preface]. It is journaled and delivered whatever
	// types are kept; it is compared with nothing and moves no cursor.
	Aside bool

	ignored bool // of a type that is not kept: only its number counts
}
