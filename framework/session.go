package framework

import (
	"io"
	"log/slog"
	"net/http"
	"sync/atomic"

	"github.com/holdline/scrape/internal/sse"
	"github.com/holdline/scrape/internal/watch"
)

// Session is what a [Target] opens a connection with: one identity, ready to
// use. Everything sent through Client leaves by the identity's exit, with its
// cookies, its User-Agent and, towards the target's own hosts only, its
// credential's headers.
type Session struct {
	// Client is for requests to the site. It has no overall time-out, which
	// would cut streams; bound other requests by their context.
	Client *http.Client
	// Stream is "target/stream".
	Stream string
	// Exit is the name of the exit in use.
	Exit string
	// Log carries the stream's name already.
	Log *slog.Logger

	watch   *watch.Watch
	traffic *traffic
	budget  *sse.Budget
	// odd is told what the feed's format drops, and whether that was an event.
	odd   func(kind, first string, event bool)
	moved func(Cursor) // the cursor has moved without an event
	// unasked: the site was not asked to go on from the cursor.
	unasked bool
}

// Watch puts the feed's body under the stream's watch: bytes read from it
// keep the line alive, and silence closes it. [OpenSSE] does so by itself; a
// plugin with a transport of its own wraps what it reads the feed from, once
// per connection.
func (s *Session) Watch(body io.ReadCloser) io.ReadCloser {
	if s.watch == nil {
		return body // a session made by hand, in a plugin's test
	}
	c := &countedBody{ReadCloser: s.watch.Reader(body), traffic: s.traffic}
	if w, ok := body.(interface{ Wire() int64 }); ok {
		c.wire = w.Wire
	}
	return c
}

func (s *Session) oddity(kind, first string, event bool) {
	if s.odd != nil {
		s.odd(kind, first, event)
	}
}

// traffic counts what a stream received through one exit.
type traffic struct {
	exit          string
	decoded, wire atomic.Uint64
}

// countedBody counts what is read from it.
type countedBody struct {
	io.ReadCloser
	traffic *traffic
	wire    func() int64 // what has arrived so far; nil where that is what is read
	before  int64        // of wire
}

func (c *countedBody) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.traffic.decoded.Add(uint64(n))
	if c.wire == nil {
		c.traffic.wire.Add(uint64(n))
		return n, err
	}
	now := c.wire()
	c.traffic.wire.Add(uint64(now - c.before))
	c.before = now
	return n, err
}
