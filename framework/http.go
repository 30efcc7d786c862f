package framework

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
	"time"

	"github.com/holdline/scrape/internal/sse"
)

// ErrDone ends a stream for good: the site said that there is no more. It is
// not a failure.
var ErrDone = errors.New("the stream is done")

// HTTPError is an answer that is not the stream.
type HTTPError struct {
	Status int
	Header http.Header
	// Body is the beginning of the answer, at most 4 KiB.
	Body []byte
	// Reason says what was expected, when the status alone does not.
	Reason string
}

func (e *HTTPError) Error() string {
	text := fmt.Sprintf("the site answered %d %s", e.Status, http.StatusText(e.Status))
	if e.Reason != "" {
		text += ": " + e.Reason
	}
	return text
}

const errorBody = 4 << 10

// NewHTTPError reads the beginning of the answer, closes its body and returns
// the error that the engine judges by: for plugins that send requests of
// their own.
func NewHTTPError(resp *http.Response, reason string) *HTTPError {
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, errorBody)) // what was readable is enough
	return &HTTPError{Status: resp.StatusCode, Header: resp.Header, Body: body, Reason: reason}
}

// SSEOptions refine [OpenSSE]. The zero value reads any event stream.
type SSEOptions struct {
	// MaxEvent is the longest event, in bytes; 0 means 16 MiB. A longer one is
	// skipped through its blank line and counted.
	MaxEvent int64
	// Done is the data of the event that ends a finite stream for good, such
	// as "[DONE]"; empty means that none does. The event itself is not
	// delivered. It is recognised also when its blank line is missing.
	Done string
	// StopAtEnd makes the clean end of the answer the end of the stream, as
	// with finite streams; by default the engine reconnects, as the standard
	// says.
	StopAtEnd bool
}

// OpenSSE sends the request through the session and returns the connection
// that reads the Server-Sent Events of the answer. It sets Accept,
// Cache-Control and, where there is a cursor, Last-Event-ID (WHATWG HTML,
// section 9.2). An answer that is not an event stream is an *HTTPError; 204
// is [ErrDone].
func OpenSSE(ctx context.Context, s *Session, req *http.Request, from Cursor, o SSEOptions) (Connection, error) {
	req = req.WithContext(ctx)
	if req.Header.Get("Accept") == "" {
		req.Header.Set("Accept", "text/event-stream")
	}
	req.Header.Set("Cache-Control", "no-store")
	if from != "" {
		req.Header.Set("Last-Event-ID", string(from))
	}
	resp, err := s.Client.Do(req)
	if err != nil {
		return nil, err
	}
	switch essence, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); {
	case resp.StatusCode == http.StatusNoContent:
		resp.Body.Close()
		return nil, fmt.Errorf("%w: 204 No Content", ErrDone)
	case resp.StatusCode != http.StatusOK:
		return nil, NewHTTPError(resp, "")
	case !strings.EqualFold(essence, "text/event-stream"):
		return nil, NewHTTPError(resp, fmt.Sprintf("content type %q is not text/event-stream", essence))
	}
	resp.Header = nil // the body keeps the answer, for as long as it is read
	c := &sseConnection{options: o, session: s}
	c.body = s.Watch(resp.Body)
	c.decoder = sse.NewDecoder(c.body, sse.Options{
		MaxEvent:    o.MaxEvent,
		LastEventID: string(from),
		Budget:      s.budget,
		OnOddity:    c.oddity,
		OnID:        func(id []byte) { s.moved(Cursor(id)) },
	})
	return c, nil
}

// sseConnection yields the events of one event stream.
type sseConnection struct {
	options SSEOptions
	session *Session
	body    io.ReadCloser
	decoder *sse.Decoder
	event   sse.Event
	types   map[string]string // event names seen, so that naming one costs nothing
	typ     string            // the last one
	cursor  Cursor
	cursors strings.Builder // of the last cursors
}

// maxTypes bounds the names kept: a feed that makes up names must not fill
// the memory.
const maxTypes = 256

func (c *sseConnection) typeName(b []byte) string {
	if c.typ == string(b) {
		return c.typ
	}
	t, ok := c.types[string(b)]
	if !ok {
		t = string(b)
		if c.typ != "" && c.types == nil {
			c.types = map[string]string{c.typ: c.typ} // most feeds have one type
		}
		if c.types != nil && len(c.types) < maxTypes {
			c.types[t] = t
		}
	}
	c.typ = t
	return t
}

// cursorOf makes a cursor of an id. Cursors share blocks of memory, since every
// event brings one; the blocks are small, since one cursor keeps its block.
func (c *sseConnection) cursorOf(id []byte) Cursor {
	const block = 256
	if size := c.cursors.Cap(); size-c.cursors.Len() < len(id) {
		c.cursors.Reset()
		if len(id) > block/4 {
			return Cursor(id)
		}
		c.cursors.Grow(max(min(2*size, block), len(id)))
	}
	start := c.cursors.Len()
	c.cursors.Write(id)
	return Cursor(c.cursors.String()[start:])
}

func (c *sseConnection) Next(ev *Event) error {
	if err := c.decoder.Next(&c.event); err != nil {
		return c.end(err)
	}
	if c.options.Done != "" && string(c.event.Data) == c.options.Done {
		return fmt.Errorf("%w: %s", ErrDone, c.options.Done)
	}
	ev.ID = nil
	if c.event.HasID {
		ev.ID = c.event.ID
	}
	if string(c.event.ID) != string(c.cursor) {
		c.cursor = c.cursorOf(c.event.ID)
	}
	ev.Type = c.typeName(c.event.Type)
	ev.Data = c.event.Data
	ev.Time = c.event.Time
	ev.Cursor = c.cursor
	return nil
}

func (c *sseConnection) end(err error) error {
	if !errors.Is(err, io.EOF) {
		return err
	}
	if left := c.decoder.Unfinished(); c.options.Done != "" && strings.TrimSpace(string(left.Data)) == c.options.Done {
		return fmt.Errorf("%w: %s", ErrDone, c.options.Done)
	}
	if c.options.StopAtEnd {
		return fmt.Errorf("%w: the answer ended", ErrDone)
	}
	return io.EOF
}

// Cursor is where to resume after the connection has ended: blocks that carry
// an id and no data move it, too.
func (c *sseConnection) Cursor() Cursor { return Cursor(c.decoder.LastEventID()) }

// Retry is the reconnection time that the site asked for.
func (c *sseConnection) Retry() (time.Duration, bool) { return c.decoder.Retry() }

func (c *sseConnection) oddity(o sse.Oddity) {
	if c.session.odd != nil {
		c.session.odd(o.Kind.String(), o.First)
	}
}

func (c *sseConnection) Close() error {
	err := c.body.Close()
	return err
}
