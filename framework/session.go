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

	watch  *watch.Watch
	bytes  *atomic.Uint64
	budget *sse.Budget
	odd    func(kind, first string)
	moved  func(Cursor) // the cursor has moved without an event
}

// Watch puts the feed's body under the stream's watch: bytes read from it
// keep the line alive, and silence closes it. [OpenSSE] does so by itself; a
// plugin with a transport of its own wraps what it reads the feed from, once
// per connection.
func (s *Session) Watch(body io.ReadCloser) io.ReadCloser {
	if s.watch == nil {
		return body // a session made by hand, in a plugin's test
	}
	return &countedBody{s.watch.Reader(body), s.bytes}
}

// countedBody counts what a stream received after decompression.
type countedBody struct {
	io.ReadCloser
	n *atomic.Uint64
}

func (c *countedBody) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.n.Add(uint64(n))
	return n, err
}
