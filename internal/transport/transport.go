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
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"
)

const (
	// pingAfter is how long an HTTP/2 connection may bring no frame before it
	// is asked for a sign of life, pingTimeout how long that may take: all
	// streams of a dead connection fail together after their sum.
	pingAfter   = 15 * time.Second
	pingTimeout = 10 * time.Second
)

// Options are the settings of a [Transport].
type Options struct {
	// DialContext opens the TCP connections; required.
	DialContext func(ctx context.Context, network, addr string) (net.Conn, error)
	// TLS is cloned; nil means Go's defaults.
	TLS *tls.Config
	// HeaderTimeout is the longest wait for the head of an answer; 0 waits
	// for ever.
	HeaderTimeout time.Duration
}

// Transport is an http.RoundTripper for HTTP/1.1 and, over TLS, HTTP/2, which
// carries many streams on one connection. Its methods may be called
// concurrently.
type Transport struct {
	base *http.Transport // dials, and speaks HTTP/1.1
	h2   *http.Transport // speaks HTTP/2 over connections of base

	mu    sync.Mutex
	conns map[*conn]bool // the open HTTP/2 connections
}

// New returns a Transport without connections.
func New(o Options) *Transport {
	t := &Transport{conns: map[*conn]bool{}}
	t.base = &http.Transport{
		DialContext:           o.DialContext,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: o.HeaderTimeout,
		IdleConnTimeout:       30 * time.Second,
		MaxIdleConnsPerHost:   1,
		// Requests are small and streams many. The buffer is for the head of the
		// answer and its chunks' sizes: larger reads go past it.
		WriteBufferSize: 512,
		ReadBufferSize:  1 << 10,
	}
	t.base.TLSClientConfig = o.TLS.Clone()
	if t.base.TLSClientConfig == nil {
		t.base.TLSClientConfig = &tls.Config{}
	}
	t.base.TLSClientConfig.NextProtos = []string{"h2", "http/1.1"}
	// net/http keeps to itself that a server is about to leave (GOAWAY) until
	// it has left. So HTTP/2 runs over a connection that looks at its frames
	// on their way; to net/http that is one without TLS.
	t.base.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{"h2": t.upgrade}
	t.h2 = &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return ctx.Value(connKey{}).(*conn), nil
		},
		Protocols:             new(http.Protocols),
		ResponseHeaderTimeout: o.HeaderTimeout,
		IdleConnTimeout:       t.base.IdleConnTimeout,
		HTTP2: &http.HTTP2Config{
			SendPingTimeout:  pingAfter,
			PingTimeout:      pingTimeout,
			WriteByteTimeout: pingAfter + pingTimeout,
		},
	}
	t.h2.Protocols.SetUnencryptedHTTP2(true)
	return t
}

// connKey is under what the context of a dial of Transport.h2 holds the
// connection that it gets.
type connKey struct{}

// upgrade takes over a TLS connection on which HTTP/2 was agreed.
func (t *Transport) upgrade(authority string, tc *tls.Conn) http.RoundTripper {
	if c := t.usable(authority); c != nil {
		// Several requests dialled at the same time: one connection serves.
		go tc.Close()
		return c
	}
	c := &conn{Conn: tc, authority: authority, left: t.forget}
	c.leaving, c.leave = context.WithCancel(context.Background())
	client, err := t.h2.NewClientConn(context.WithValue(context.Background(), connKey{}, c), "http", authority)
	if err != nil {
		go tc.Close()
		return failing{err}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	c.client = client
	if !c.gone {
		t.conns[c] = true
	}
	return c
}

func (t *Transport) usable(authority string) *conn {
	t.mu.Lock()
	defer t.mu.Unlock()
	for c := range t.conns {
		if c.authority == authority && c.client.Available() > 0 && c.leaving.Err() == nil {
			return c
		}
	}
	return nil
}

func (t *Transport) forget(c *conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c.gone = true
	delete(t.conns, c)
}

// failing is an http.RoundTripper that could not be made. net/http asks it.
type failing struct{ err error }

func (f failing) RoundTripErr() error                             { return f.err }
func (f failing) RoundTrip(*http.Request) (*http.Response, error) { return nil, f.err }

// errLocation is all that is said of a redirect that leads nowhere: its address
// may repeat the secrets of the request.
var errLocation = errors.New("the site answered with a redirect whose address cannot be read")

// RoundTrip implements http.RoundTripper. Where the request names no
// Accept-Encoding it offers those that it can decode; whatever encoding comes
// is decoded. The body of the answer is a *Body.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Header.Get("Accept-Encoding") == "" && req.Header.Get("Range") == "" {
		req = req.WithContext(req.Context()) // a copy, of which the headers are ours
		req.Header = req.Header.Clone()
		req.Header.Set("Accept-Encoding", AcceptEncoding)
	}
	resp, err := t.base.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	if _, err := url.Parse(resp.Header.Get("Location")); err != nil {
		resp.Body.Close()
		return nil, errLocation
	}
	b := &Body{wire: counter{ReadCloser: resp.Body}}
	b.r = &b.wire
	if h2, ok := resp.Body.(*stream); ok {
		b.conn = h2.conn
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

// CloseIdleConnections closes the connections that carry nothing, and lets
// HTTP/2 connections close as soon as they carry nothing.
func (t *Transport) CloseIdleConnections() {
	t.base.CloseIdleConnections()
	t.mu.Lock()
	var open []*conn
	for c := range t.conns {
		open = append(open, c)
	}
	t.mu.Unlock()
	for _, c := range open {
		c.client.SetStateHook(closeIdle)
		closeIdle(c.client)
	}
}

func closeIdle(c *http.ClientConn) {
	if c.InFlight() == 0 {
		c.Close()
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
// has been silent for as long, too, it goes with all that it carries: another
// request must not be sent into the same void.
func (b *Body) Abandon() error {
	if at := b.since.at(); b.conn != nil && at != 0 && b.conn.read.Load() < at {
		b.conn.client.Close()
	}
	return b.Close()
}
