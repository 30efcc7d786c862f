package framework

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/holdline/scrape/internal/ndjson"
	"github.com/holdline/scrape/internal/sse"
	"github.com/holdline/scrape/internal/transport"
)

// httpConnection yields the events of one answer.
type httpConnection struct {
	options SSEOptions
	resume  resume
	session *Session
	body    io.ReadCloser
	answer  *transport.Body // nil where the session's client is a plugin's own
	preface []byte          // until it has been delivered

	// One of them is set.
	events *sse.Decoder
	lines  *ndjson.Decoder

	event   sse.Event
	types   map[string]string // event names seen, so that naming one costs nothing
	typ     string            // the last one
	plain   []byte            // of a payload in base64
	id      []byte            // the cursor found in the event
	cursor  Cursor
	cursors strings.Builder // of the last cursors
}

// maxTypes bounds the names kept: a feed that makes up names must not fill
// the memory.
const maxTypes = 256

func (c *httpConnection) typeName(b []byte) string {
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
func (c *httpConnection) cursorOf(id []byte) Cursor {
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

func (c *httpConnection) lineOptions() ndjson.Options {
	o := ndjson.Options{
		MaxValue: c.options.MaxEvent,
		Fail:     c.options.FailTooLarge,
		Sentinel: c.options.Done,
		OnOddity: func(o ndjson.Oddity) {
			c.session.oddity(oddityOf(o.Kind.String(), o.Reason), o.First, o.Kind == ndjson.TooLarge)
		},
	}
	if c.session.budget != nil {
		o.Budget = c.session.budget
	}
	return o
}

// oddityOf is what an oddity is called. An event may be within its limit and
// find the memory used up by those of other streams.
func oddityOf(kind string, reason error) string {
	if errors.Is(reason, sse.ErrBudget) || errors.Is(reason, ndjson.ErrBudget) {
		return "event beyond the memory for the unfinished events of all streams"
	}
	return kind
}

// read fills c.event.
func (c *httpConnection) read() (err error) {
	if c.lines == nil {
		return c.events.Next(&c.event)
	}
	c.event.Data, c.event.Time, err = c.lines.Next()
	return err
}

// Next implements Connection.
func (c *httpConnection) Next(ev *Event) error {
	if c.preface != nil {
		*ev = Event{Type: PrefaceType, Data: c.preface, Time: time.Now(), Cursor: c.cursor, Aside: true}
		c.preface = nil
		return nil
	}
	if err := c.read(); err != nil {
		return c.end(err)
	}
	return c.fill(ev)
}

// buffered is Next for an event that has been read, false where there is none.
// What it puts into events stays valid until the next call of Next.
func (c *httpConnection) buffered(ev *Event) (ok bool, err error) {
	if c.lines != nil || c.options.Base64 || c.resume.path != nil || !c.events.Buffered(&c.event) {
		return false, nil
	}
	return true, c.fill(ev)
}

// fill makes an event of what was read.
func (c *httpConnection) fill(ev *Event) error {
	if c.options.Done != "" && string(c.event.Data) == c.options.Done {
		return fmt.Errorf("%w: %s", ErrDone, c.options.Done)
	}
	ev.ID, ev.Type, ev.Data, ev.Time, ev.Cursor, ev.Aside = nil, "message", c.event.Data, c.event.Time, "", false
	if c.lines == nil {
		ev.Type = c.typeName(c.event.Type)
		if c.event.HasID {
			ev.ID = c.event.ID
		}
	}
	if c.options.Base64 {
		ev.Data = c.decode(ev.Data)
	}
	c.move(ev)
	return nil
}

// move tells the cursor after the event.
func (c *httpConnection) move(ev *Event) {
	switch {
	case c.resume.path != nil:
		if v, ok := find(ev.Data, c.resume.path); ok {
			c.id = append(c.id[:0], v...)
			if len(ev.ID) == 0 {
				ev.ID = c.id
			}
			if string(c.id) != string(c.cursor) {
				c.cursor = c.cursorOf(c.id)
			}
		}
	case !c.resume.never && c.lines == nil && string(c.event.ID) != string(c.cursor):
		c.cursor = c.cursorOf(c.event.ID)
	}
	if !c.resume.never {
		ev.Cursor = c.cursor
	}
}

// decode undoes base64, of either alphabet and with or without padding.
func (c *httpConnection) decode(data []byte) []byte {
	text := bytes.TrimRight(bytes.TrimSpace(data), "=")
	encoding := base64.RawStdEncoding
	if bytes.ContainsAny(text, "-_") {
		encoding = base64.RawURLEncoding
	}
	var err error
	if c.plain, err = encoding.AppendDecode(c.plain[:0], text); err != nil {
		c.session.oddity("payload is not base64", string(data[:min(len(data), 128)]), false)
		return data
	}
	return c.plain
}

// end turns the end of the answer into what it means.
func (c *httpConnection) end(err error) error {
	if errors.Is(err, io.EOF) {
		if c.options.Done != "" && c.lines == nil && string(bytes.TrimSpace(c.events.Unfinished().Data)) == c.options.Done {
			return fmt.Errorf("%w: %s", ErrDone, c.options.Done)
		}
		if c.options.StopAtEnd {
			return fmt.Errorf("%w: the answer ended", ErrDone)
		}
	}
	if c.answer != nil && c.answer.Leaving() {
		return fmt.Errorf("%w: %w", ErrGoAway, err)
	}
	return err
}

// Cursor is where to resume after the connection has ended: blocks that carry
// an id and no data move it, too.
func (c *httpConnection) Cursor() Cursor {
	switch {
	case c.resume.never:
		return ""
	case c.resume.path != nil || c.lines != nil:
		return c.cursor
	default:
		return Cursor(c.events.LastEventID())
	}
}

// Retry is the reconnection time that the site asked for.
func (c *httpConnection) Retry() (time.Duration, bool) {
	if c.lines != nil {
		return 0, false
	}
	return c.events.Retry()
}

// OnLeaving implements Announcer.
func (c *httpConnection) OnLeaving(f func()) (stop func() bool) {
	if c.answer == nil {
		return func() bool { return true }
	}
	return c.answer.OnLeaving(f)
}

// announcing is the connection as an Announcer, nil where no announcement can
// come: waiting for one takes memory.
func announcing(conn Connection) Announcer {
	if c, ok := conn.(*httpConnection); ok && (c.answer == nil || !c.answer.Announces()) {
		return nil
	}
	a, _ := conn.(Announcer)
	return a
}

// ending tells whether the connection ends with the context that it was opened
// with: then nobody else has to see to that.
func ending(conn Connection) bool {
	c, ok := conn.(*httpConnection)
	return ok && c.answer != nil
}

// abandon closes the connection because it has gone silent, and whatever is
// as dead underneath.
func (c *httpConnection) abandon() {
	if c.answer != nil {
		c.answer.Abandon()
	}
	c.Close()
}

// Close implements Connection.
func (c *httpConnection) Close() error { return c.body.Close() }

// abandon closes a connection that has gone silent.
func abandon(conn Connection) {
	if c, ok := conn.(interface{ abandon() }); ok {
		c.abandon()
		return
	}
	conn.Close()
}

// odd notes what the feed's format drops without a word. A whole event is a
// dead letter of which nothing could be kept.
func (r *runner) odd(kind, first string, event bool) {
	if r.stats.odd(kind) {
		r.Log.Warn("the feed holds something that its format drops", "what", kind, "begins", first)
	}
	if event {
		r.stats.dead.Add(1)
	}
}
