package transport

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// epoch is what moments are counted from; a moment is never 0.
var epoch = time.Now().Add(-1)

func now() int64 { return int64(time.Since(epoch)) }

// since is when the read in progress began, 0 while there is none.
type since struct{ v atomic.Int64 }

func (s *since) begin()    { s.v.Store(now()) }
func (s *since) end()      { s.v.Store(0) }
func (s *since) at() int64 { return s.v.Load() }

// counter counts what is read.
type counter struct {
	io.ReadCloser
	n atomic.Int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.n.Add(int64(n))
	return n, err
}

// conn is one HTTP/2 connection: the http.RoundTripper that net/http sends its
// requests to, and the net.Conn under it, whose frames it looks at.
type conn struct {
	*tls.Conn
	authority string
	client    *http.ClientConn
	leaving   context.Context // ended by GOAWAY
	leave     context.CancelFunc
	left      func(*conn)
	gone      bool // guarded by Transport.mu
	closing   sync.Once
	frames    frames       // of the one goroutine that reads
	read      atomic.Int64 // when something was read last
}

// RoundTrip implements http.RoundTripper.
func (c *conn) RoundTrip(req *http.Request) (*http.Response, error) {
	if c.leaving.Err() != nil || c.client.Reserve() != nil {
		return nil, full{}
	}
	resp, err := c.client.RoundTrip(req)
	if err != nil {
		if c.leaving.Err() != nil {
			err = &GoAwayError{Err: err}
		}
		return nil, err
	}
	resp.Body = &stream{resp.Body, c}
	return resp, nil
}

// full is the error of a connection that takes no more requests: net/http knows
// it by its method, and dials another connection.
type full struct{}

func (full) Error() string             { return "the HTTP/2 connection takes no more requests" }
func (full) IsHTTP2NoCachedConnError() {}

// Read implements net.Conn.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.read.Store(now())
		if c.frames.goAway(p[:n]) {
			c.leave()
		}
	}
	return n, err
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.closing.Do(func() { c.left(c) })
	return c.Conn.Close()
}

// stream is the body of an answer over HTTP/2.
type stream struct {
	io.ReadCloser
	conn *conn
}

func (s *stream) Read(p []byte) (int, error) {
	n, err := s.ReadCloser.Read(p)
	if err != nil && err != io.EOF && s.conn.leaving.Err() != nil {
		err = &GoAwayError{Err: err}
	}
	return n, err
}

// GoAwayError is the end of an answer whose server had announced that it would
// close the connection: it goes away in good order, as for a new release, and
// can be asked again at once.
type GoAwayError struct{ Err error }

// Error says what happened.
func (e *GoAwayError) Error() string {
	return "the server announced that it goes away (GOAWAY) and ended the connection: " + e.Err.Error()
}

// Unwrap returns how the connection ended.
func (e *GoAwayError) Unwrap() error { return e.Err }

// frames follows the frames of an HTTP/2 connection (RFC 9113, section 4.1)
// through reads of any size.
type frames struct {
	part [frameHead + goAwayHead]byte // the head of a frame, and of its payload if that is a GOAWAY
	have int
	skip int // of the payload
}

const (
	frameHead  = 9
	goAwayHead = 8
	goAwayType = 0x7
	noError    = 0
)

// goAway tells whether a GOAWAY without an error ends within b.
func (f *frames) goAway(b []byte) (found bool) {
	for len(b) > 0 {
		if f.skip > 0 {
			n := min(f.skip, len(b))
			f.skip -= n
			b = b[n:]
			continue
		}
		want := frameHead
		length := int(f.part[0])<<16 | int(f.part[1])<<8 | int(f.part[2])
		if f.have >= frameHead {
			want += goAwayHead // only a GOAWAY that is long enough gets here
		}
		n := copy(f.part[f.have:want], b)
		f.have += n
		b = b[n:]
		switch f.have {
		case frameHead:
			length = int(f.part[0])<<16 | int(f.part[1])<<8 | int(f.part[2])
			if f.part[3] != goAwayType || length < goAwayHead {
				f.have, f.skip = 0, length
			}
		case frameHead + goAwayHead:
			code := binary.BigEndian.Uint32(f.part[frameHead+4:])
			found = found || code == noError
			f.have, f.skip = 0, length-goAwayHead
		}
	}
	return found
}
