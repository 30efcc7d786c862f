package transport

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxHead is the longest head of an answer, in bytes.
	maxHead = 1 << 20
	// readBuffer is for heads.
	readBuffer = 4 << 10
	// maxInterim is how many answers may come ahead of the one asked for
	// (RFC 9110, section 15.2).
	maxInterim = 5
	// uploadGrace is how long the end of a request may take after that of its
	// answer for the connection to be used again.
	uploadGrace = 50 * time.Millisecond
)

var errLongHead = fmt.Errorf("the head of the answer is longer than %d bytes", maxHead)

// single is one HTTP/1.1 connection, which carries one request at a time. It
// has no goroutine while it does: who reads the answer reads the socket.
// (net/http has two for each, and with thousands of streams that wait their
// stacks are most of the memory.) Nor has it a buffer for longer than a head
// takes.
type single struct {
	net.Conn
	t      *Transport
	to     origin
	r      *bufio.Reader // reads the head, and has what came with it; nil when that is used up
	head   int           // what a head may still take
	used   bool          // it has carried a request
	rested chan error    // while nobody uses it: gets why it does not rest any more
}

// buffers are those that no connection needs now.
var buffers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, readBuffer) }}

// expect makes ready for the head of an answer.
func (s *single) expect() {
	if s.head = maxHead; s.r == nil {
		s.r = buffers.Get().(*bufio.Reader)
		s.r.Reset((*heading)(s))
	}
}

// buffered tells whether something came with the head that has not been read.
// Where nothing did the buffer goes to whoever expects a head next.
func (s *single) buffered() bool {
	if s.r == nil {
		return false
	}
	if s.r.Buffered() > 0 {
		return true
	}
	s.r.Reset(nil)
	buffers.Put(s.r)
	s.r = nil
	return false
}

// Read implements net.Conn, for bodies: past the buffer, as soon as that is
// empty.
func (s *single) Read(p []byte) (int, error) {
	if s.buffered() {
		return s.r.Read(p)
	}
	return s.Conn.Read(p)
}

// heading is a connection of which the head of an answer is read, which has a
// bound.
type heading single

// Read implements io.Reader, for the buffer.
func (h *heading) Read(p []byte) (int, error) {
	if h.head == 0 {
		return 0, errLongHead
	}
	n, err := h.Conn.Read(p[:min(len(p), h.head)])
	h.head -= n
	return n, err
}

// stale is the error of a connection that was closed while it rested: the
// request has to go another way.
type stale struct{ error }

// RoundTrip implements http.RoundTripper. The end of the request's context
// closes the connection until the body has ended.
func (s *single) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx := req.Context()
	b := &singleBody{s: s, ctx: ctx}
	if hasBody(req) {
		b.body = req.Body
	}
	if ctx.Done() != nil {
		b.stop = context.AfterFunc(ctx, func() { b.close() })
	}
	resp, err := s.exchange(req, b)
	if err != nil {
		b.Close()
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, err
	}
	b.r = s.body(resp)
	b.again = b.again && !resp.Close && !req.Close && resp.StatusCode != http.StatusSwitchingProtocols
	resp.Request, resp.Body = req, b
	if b.r == http.NoBody {
		b.over(io.EOF)
	}
	return resp, nil
}

// body reads what follows a head by the framing that net/http has read from it
// (RFC 9112, section 6.3).
func (s *single) body(resp *http.Response) io.Reader {
	switch {
	case resp.Body == http.NoBody:
		return http.NoBody
	case len(resp.TransferEncoding) > 0: // it knows but one
		return &chunked{from: s}
	case resp.ContentLength >= 0:
		return &sized{from: s, left: resp.ContentLength}
	}
	return s
}

// exchange sends the request and reads the head of its answer.
func (s *single) exchange(req *http.Request, b *singleBody) (*http.Response, error) {
	again := s.used
	s.used = true
	s.expect()
	up := &upload{s: s, over: make(chan struct{})}
	if b.body != nil {
		// Beside reading: the site may answer before the end, and wait for its
		// answer to be read before it takes the rest.
		b.up = up
		go up.send(req)
	} else {
		up.send(req)
	}
	b.again = b.up != nil || up.err == nil
	if _, err := s.r.Peek(1); err != nil {
		own, wire := up.failed()
		switch {
		case own != nil:
			return nil, own
		case errors.Is(wire, os.ErrDeadlineExceeded):
			err = fmt.Errorf("the site has taken no more of the request for %v: %w", s.t.options.HeaderTimeout, wire)
		case errors.Is(err, os.ErrDeadlineExceeded):
			err = fmt.Errorf("the head of the answer has not come within %v: %w", s.t.options.HeaderTimeout, err)
		case again:
			return nil, stale{err}
		case wire != nil:
			err = wire
		case errors.Is(err, io.EOF):
			err = fmt.Errorf("the site closed the connection without an answer: %w", err)
		}
		return nil, &UnansweredError{err}
	}
	for range maxInterim + 1 {
		resp, err := http.ReadResponse(s.r, &http.Request{Method: req.Method})
		if err != nil {
			return nil, err
		}
		if resp.StatusCode < 200 && resp.StatusCode != http.StatusSwitchingProtocols {
			continue
		}
		up.answered()
		return resp, nil
	}
	return nil, fmt.Errorf("the site sent more than %d interim answers", maxInterim)
}

// upload is a request on its way.
type upload struct {
	s    *single
	wire error // why it could not be written; of send
	over chan struct{}
	err  error // why it is over; set before

	mu     sync.Mutex
	headed bool // the answer's head has come
	late   bool // more was written after that
}

// Write implements io.Writer. It remembers why it could not: a request may fail
// by its own body, too.
func (u *upload) Write(p []byte) (n int, err error) {
	u.mu.Lock()
	u.late = u.late || u.headed
	u.mu.Unlock()
	for len(p) > 0 && u.wire == nil {
		part := p[:min(len(p), 16<<10)]
		if limit := u.s.t.options.HeaderTimeout; limit > 0 { // for each part: a slow site may take long for all
			_ = u.s.SetWriteDeadline(time.Now().Add(limit)) // why it could not shows when writing
		}
		var took int
		took, u.wire = u.s.Conn.Write(part)
		n, p = n+took, p[took:]
	}
	return n, u.wire
}

// send sends the request. From its end on the answer is waited for.
func (u *upload) send(req *http.Request) {
	u.err = req.Write(u) // it closes the request's body
	close(u.over)
	if u.err != nil && u.wire == nil {
		u.s.Close() // what has begun cannot be ended
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	limit := u.s.t.options.HeaderTimeout
	if limit <= 0 {
		return
	}
	if errors.Is(u.wire, os.ErrDeadlineExceeded) {
		limit = 0 // it has had that
	} else {
		_ = u.s.SetWriteDeadline(time.Time{}) // TLS writes by itself while reading, where the site asks for new keys
	}
	if !u.headed {
		_ = u.s.SetReadDeadline(time.Now().Add(limit)) // why it could not shows when reading
	}
}

// answered ends the wait for the head of the answer.
func (u *upload) answered() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.headed = true
	_ = u.s.SetReadDeadline(time.Time{})
}

// failed is why the request could not be sent: by its own body, or on the wire.
func (u *upload) failed() (own, wire error) {
	select {
	case <-u.over:
	default:
		return nil, nil
	}
	if u.wire == nil {
		return u.err, nil
	}
	return nil, u.wire
}

// whole tells whether all of the request was sent before it was answered. Its
// end and that of the answer may meet. (What a site answers early it does not
// want, and many close the connection soon after.)
func (u *upload) whole() bool {
	select {
	case <-u.over:
	case <-time.After(uploadGrace):
		return false
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.err == nil && !u.late
}

// singleBody is the body of an answer over HTTP/1.1.
type singleBody struct {
	r     io.Reader
	s     *single
	body  io.Closer // the request's; nil for none
	up    *upload   // of the body; nil for none
	ctx   context.Context
	stop  func() bool // calls off what ctx does; nil where it does nothing
	again bool        // the connection may be used again after the body's end
	ended atomic.Bool
	err   error // how it ended, for the one who reads
}

// Read implements io.Reader.
func (b *singleBody) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	if b.ended.Load() {
		return 0, http.ErrBodyReadAfterClose
	}
	n, err := b.r.Read(p)
	if err != nil {
		b.over(err)
		err = b.err
	}
	return n, err
}

// over ends the body with what its reader returned.
func (b *singleBody) over(err error) {
	if b.err = err; err != io.EOF && b.ctx.Err() != nil {
		b.err = context.Cause(b.ctx)
	}
	if b.ended.Swap(true) {
		return
	}
	alive := b.stop == nil || b.stop()
	if alive && err == io.EOF && b.again && !b.behind() && (b.up == nil || b.up.whole()) {
		b.s.t.keep(b.s)
		return
	}
	b.close()
}

// behind tells whether something has come behind the end: what nobody has asked
// for must not be taken for the next answer.
func (b *singleBody) behind() bool {
	c, ok := b.r.(*chunked)
	return ok && c.behind || b.s.buffered()
}

// close closes the connection, and the request's body, for which its sender
// may wait.
func (b *singleBody) close() error {
	err := b.s.Close()
	if b.body != nil {
		b.body.Close()
	}
	return err
}

// Close implements io.Closer. It may be called while Read blocks. The rest of
// an answer is not waited for: its connection goes with it.
func (b *singleBody) Close() error {
	if b.ended.Swap(true) {
		return nil
	}
	if b.stop != nil {
		b.stop()
	}
	return b.close()
}

// rest waits until somebody wants the connection, the site closes it or says
// what nobody has asked for, or it has not been wanted for idleTimeout.
func (s *single) rest() {
	var (
		one [1]byte
		n   int
		err error
	)
	for n == 0 && err == nil { // the buffer was empty, else it would not rest
		n, err = s.Conn.Read(one[:])
	}
	s.t.tired(s)
	s.rested <- err
}

// wake takes a resting connection back into use. It tells whether that is
// possible: the site may have closed it, or said what nobody asked for.
func (s *single) wake() bool {
	if s.SetReadDeadline(time.Unix(1, 0)) != nil {
		return false
	}
	err := <-s.rested
	return errors.Is(err, os.ErrDeadlineExceeded) && s.SetReadDeadline(time.Time{}) == nil
}
