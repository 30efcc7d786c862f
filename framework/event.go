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
	// ID is the event's own id, empty when it brought none. It tells events
	// apart at a seam; the position to resume from is Cursor.
	ID []byte
	// Type is the event's name, "message" when the wire gave none.
	Type string
	// Data is the payload.
	Data []byte
	// Time is when the read that completed the event returned.
	Time time.Time
	// Cursor resumes the stream right after this event.
	Cursor Cursor
}
