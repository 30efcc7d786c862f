package framework

import (
	"context"
)

// Target is a site and how to read it: what a plugin author writes.
//
// A target may also implement [Decoder] to make its own records, [Classifier]
// to judge its own failures, and [Hoster] to name hosts beside those of its
// streams' URLs. One value serves all streams of the target; its methods are
// called concurrently.
type Target interface {
	// Open asks the site for the stream from just after the cursor and returns
	// once the site has agreed to send. The engine calls it for every new
	// connection, after it has made the session's identity and waited for the
	// host's rate limit; it does not retry, log in, rotate or resume by
	// itself. ctx governs the whole life of the connection, not only its
	// opening. Errors decide what happens next: return the *HTTPError of
	// [OpenSSE], a wrapped error of the session's client, or any other error
	// (which is retried with backoff).
	Open(ctx context.Context, s *Session, from Cursor) (Connection, error)
}

// TargetFunc is a [Target] made of its Open alone.
type TargetFunc func(ctx context.Context, s *Session, from Cursor) (Connection, error)

// Open calls f.
func (f TargetFunc) Open(ctx context.Context, s *Session, from Cursor) (Connection, error) {
	return f(ctx, s, from)
}

// Connection is one open feed being read by one identity, whatever the
// transport underneath.
type Connection interface {
	// Next blocks until an event is complete and fills ev with it. It is
	// called by one goroutine at a time. io.EOF says that the site closed
	// the stream cleanly (the engine reconnects, as the standard asks),
	// [ErrDone] that the stream has come to its end for good; any other
	// error is a failure of the line.
	Next(ev *Event) error
	// Close ends the connection and makes a blocked Next return. It may be
	// called from any goroutine, also more than once.
	Close() error
}

// Announcer is a [Connection] that may hear beforehand that the site is about to
// end it, as by GOAWAY of HTTP/2: the engine then opens its successor while it
// still brings events.
type Announcer interface {
	// OnLeaving arranges for f to be called once, in a goroutine of its own,
	// when the site has announced the end. stop calls that off; it tells
	// whether it came in time.
	OnLeaving(f func()) (stop func() bool)
}

// Decoder is a [Target] that makes its own records of an event. It is called
// after the journal, once for each sink, so that a changed decoder applies
// from each sink's position on; it must be a pure function of the event.
type Decoder interface {
	// Decode calls emit for each record of the event of the stream
	// ("target/stream"), in order. Only Data of the record need be set; Type
	// and Time are the event's otherwise. An error makes the event a dead
	// letter, and none of its records is delivered.
	Decode(stream string, ev *Event, emit func(Record)) error
}

// Hoster is a [Target] that sends requests to hosts which its streams' URLs do
// not name.
type Hoster interface {
	// Hosts are "host" or "host:port" as they stand in addresses. They see the
	// credential's headers as the hosts of the streams do.
	Hosts() []string
}

// Classifier is a [Target] that judges its own failures.
type Classifier interface {
	// Classify returns what to do about the outcome. Each zero field of the
	// verdict is filled by the engine's own rules ([Judge]); of two waits the
	// longer one counts.
	Classify(o *Outcome) Verdict
}
