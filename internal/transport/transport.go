// Package transport carries the requests of one identity: content encodings
// that never hold back what has arrived, HTTP/2 connections that are known to
// be alive or about to leave, and redirects that take no secret along.
//
// The main type is [Transport], an http.RoundTripper; the bodies of its answers
// are [*Body]. The package knows neither exits nor credentials nor streams.
package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"
)

const (
	// pingAfter is how long an HTTP/2 connection may bring no frame before it
	// is asked for a sign of life, pingTimeout how long that may take: all
	// streams of a dead connection fail together after their sum.
	pingAfter   = 15 * time.Second
	pingTimeout = 10 * time.Second
	// handshakeTimeout is the longest wait for TLS, idleTimeout how long a
	// connection is kept that nobody wants.
	handshakeTimeout = 10 * time.Second
	idleTimeout      = 30 * time.Second
)

// Options are the settings of a [Transport].
type Options struct {
	// DialContext opens the TCP connections; required.
	DialContext func(ctx context.Context, network, addr string) (net.Conn, error)
	// TLS is not changed, and must not be; nil means Go's defaults.
	TLS *tls.Config
	// HeaderTimeout is the longest wait for the head of an answer; 0 waits
	// for ever.
	HeaderTimeout time.Duration
}

// Transport is an http.RoundTripper for HTTP/1.1 and, over TLS, HTTP/2, which
// carries many streams on one connection. Its methods may be called
// concurrently.
type Transport struct {
	options Options

	pingAfter, pingTimeout time.Duration

	mu      sync.Mutex
	conns   map[*conn]bool      // the open HTTP/2 connections
	limits  map[origin]uint32   // who speaks HTTP/2, and how many requests a connection takes
	dialing map[origin]*dialing // to which of them a connection is being made
	idle    map[origin]*single  // resting HTTP/1.1 connections
	close   bool                // connections are closed rather than kept, until one is wanted again
	news    chan struct{}       // closed when there is another connection to choose; nil when nobody waits
}

// origin is whom a connection leads to.
type origin struct {
	tls  bool
	addr string // host and port
}

// New returns a Transport without connections.
func New(o Options) *Transport {
	return &Transport{
		options: o, pingAfter: pingAfter, pingTimeout: pingTimeout,
		limits: map[origin]uint32{}, dialing: map[origin]*dialing{},
	}
}

// upgrade takes over a TLS connection on which HTTP/2 was agreed.
func (t *Transport) upgrade(to origin, tc *tls.Conn) (*conn, error) {
	if c := t.shared(to); c != nil {
		// Several requests dialled at the same time: one connection serves.
		go tc.Close()
		return c, nil
	}
	c, err := newConn(tc, t, to)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if other := t.usable(to); other != nil {
		go c.fail(errUnwanted)
		return other, nil
	}
	if c.free() { // it may have ended meanwhile
		if t.conns == nil {
			t.conns = map[*conn]bool{}
		}
		t.conns[c] = true
		if _, known := t.limits[to]; !known {
			t.limits[to] = firstStreams
		}
		t.announce()
	}
	return c, nil
}

// limit is how many requests a connection takes before its site has said so.
func (t *Transport) limit(to origin) uint32 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.limits[to]; n > 0 {
		return n
	}
	return firstStreams
}

// learn takes that an origin speaks HTTP/2, and how many requests its
// connections take.
func (t *Transport) learn(to origin, most uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.limits[to] = most
	t.announce()
}

func (t *Transport) shared(to origin) *conn {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.usable(to)
}

// usable is an HTTP/2 connection that takes another request. It runs under t.mu.
func (t *Transport) usable(to origin) *conn {
	for c := range t.conns {
		if c.to == to && c.free() && !c.doubtful() {
			return c
		}
	}
	return nil
}

func (t *Transport) forget(c *conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.conns, c)
}

// errLocation is all that is said of a redirect that leads nowhere: its address
// may repeat the secrets of the request.
var errLocation = errors.New("the site answered with a redirect whose address cannot be read")

// RoundTrip implements http.RoundTripper. Where the request names no
// Accept-Encoding it offers those that it can decode; whatever encoding comes
// is decoded. The body of the answer is a *Body.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Header.Get("Accept-Encoding") == "" && req.Header.Get("Range") == "" {
		req = req.WithContext(req.Context()) // a copy, of which the headers are ours
		if req.Header = req.Header.Clone(); req.Header == nil {
			req.Header = http.Header{}
		}
		req.Header.Set("Accept-Encoding", AcceptEncoding)
	}
	resp, err := t.send(req)
	if err != nil {
		return nil, err
	}
	if _, err := url.Parse(resp.Header.Get("Location")); err != nil && resp.StatusCode/100 == 3 {
		resp.Body.Close()
		return nil, errLocation
	}
	b := &Body{wire: counter{ReadCloser: resp.Body}}
	b.r = &b.wire
	if h2, ok := resp.Body.(*stream); ok {
		b.conn = h2.c
	}
	resp.Body = b
	if encodings := codings(resp.Header); len(encodings) > 0 && req.Method != http.MethodHead {
		if b.r, err = decode(&b.wire, encodings); err != nil {
			b.Close()
			return nil, err
		}
		resp.Header.Del("Content-Encoding")
		resp.Header.Del("Content-Length")
		resp.ContentLength, resp.Uncompressed = -1, true
	}
	return resp, nil
}

// CloseIdleConnections closes the connections that carry nothing, and has
// those that carry something close as soon as they do not.
func (t *Transport) CloseIdleConnections() {
	t.mu.Lock()
	t.close = true
	resting := slices.Collect(maps.Values(t.idle))
	open := slices.Collect(maps.Keys(t.conns))
	t.mu.Unlock()
	for _, s := range resting {
		s.Close() // it notices by itself
	}
	for _, c := range open {
		c.closeIdle()
	}
}

// Body is the body of an answer. Its encoding has been removed.
type Body struct {
	r     io.Reader
	wire  counter
	conn  *conn // nil over HTTP/1.1
	since since
}

// Read implements io.Reader. It returns what has arrived as soon as it can be
// decoded.
func (b *Body) Read(p []byte) (int, error) {
	b.since.begin()
	n, err := b.r.Read(p)
	b.since.end()
	return n, err
}

// Close ends the answer. It may be called while Read blocks, and more than
// once.
func (b *Body) Close() error { return b.wire.Close() }

// Wire is how many bytes of the body have arrived, before decoding. It may be
// called concurrently with Read.
func (b *Body) Wire() int64 { return b.wire.n.Load() }

// Leaving tells whether the server has announced that it closes the connection
// (GOAWAY without an error, RFC 9113, section 6.8). The answer may go on for a
// while.
func (b *Body) Leaving() bool { return b.conn != nil && b.conn.leaving.Err() != nil }

// Announces tells whether the server can make that announcement: over HTTP/2.
func (b *Body) Announces() bool { return b.conn != nil }

// OnLeaving arranges for f to be called in a goroutine of its own when the
// server makes that announcement. stop calls that off.
func (b *Body) OnLeaving(f func()) (stop func() bool) {
	if b.conn == nil {
		return func() bool { return true }
	}
	return context.AfterFunc(b.conn.leaving, f)
}

// Abandon closes an answer that has gone silent. Where its HTTP/2 connection
// has been silent for as long, too, it goes with all that it carries; where
// others were answered meanwhile, it takes no more requests before it has said
// something.
func (b *Body) Abandon() error {
	if b.conn != nil {
		b.conn.doubted.Store(now())
		if at := b.since.at(); at != 0 && b.conn.read.Load() < at {
			b.conn.fail(errAbandoned)
		}
	}
	return b.Close()
}
