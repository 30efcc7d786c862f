package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// stream is one request over HTTP/2, and then the body of its answer.
type stream struct {
	c      *conn
	id     uint32
	window int64 // what may be sent of the request's body; guarded by conn.mu

	mu     sync.Mutex
	moved  sync.Cond      // of mu: something of the following has changed
	answer *http.Response // until RoundTrip has returned it
	bare   bool           // the answer has no body, whatever its head says: to HEAD
	headed bool           // the answer's head has come
	early  int            // interim answers
	left   int64          // what Content-Length promises; -1 where it does not
	first  *chunk         // what is not read yet; nil for nothing
	last   *chunk         // where more goes
	room   int            // what the site may still send
	wide   int            // what it may send ahead of the reader
	read   int            // what was read since the site was told
	told   int64          // when it was, or the head came
	err    error          // io.EOF at the good end, after what is not read yet
	stop   func() bool    // calls off what the request's context does; nil where it does nothing
	body   io.Closer      // the request's, while it is sent
}

// chunk is a piece of an answer that waits to be read. Idle streams have none.
type chunk struct {
	b    []byte // its capacity is one of two
	from int    // what is before has been read
	next *chunk
}

const smallChunk, largeChunk = 1 << 10, 16 << 10

var (
	smallChunks = sync.Pool{New: func() any { return &chunk{b: make([]byte, 0, smallChunk)} }}
	largeChunks = sync.Pool{New: func() any { return &chunk{b: make([]byte, 0, largeChunk)} }}
)

func (c *chunk) free() {
	c.b, c.from, c.next = c.b[:0], 0, nil
	if cap(c.b) == smallChunk {
		smallChunks.Put(c)
	} else {
		largeChunks.Put(c)
	}
}

// put adds to what waits to be read. It runs under s.mu.
func (s *stream) put(b []byte) {
	for len(b) > 0 {
		if s.last == nil || len(s.last.b) == cap(s.last.b) {
			pool := &smallChunks
			if len(b) > smallChunk {
				pool = &largeChunks
			}
			c := pool.Get().(*chunk)
			if s.last == nil {
				s.first = c
			} else {
				s.last.next = c
			}
			s.last = c
		}
		n := min(len(b), cap(s.last.b)-len(s.last.b))
		s.last.b = append(s.last.b, b[:n]...)
		b = b[n:]
	}
}

// drop frees the first chunk. It runs under s.mu.
func (s *stream) drop() {
	c := s.first
	if s.first = c.next; s.first == nil {
		s.last = nil
	}
	c.free()
}

// RoundTrip implements http.RoundTripper. The end of the request's context
// ends the stream, also after the head of the answer has come.
func (c *conn) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx := req.Context()
	s, err := c.open(req)
	if err != nil {
		return nil, c.told(err)
	}
	if ctx.Done() != nil {
		stop := context.AfterFunc(ctx, func() { s.abort(context.Cause(ctx), http2.ErrCodeCancel) })
		s.mu.Lock()
		s.stop = stop
		over := s.err != nil // before it could be called off
		s.mu.Unlock()
		if over {
			stop()
		}
	}
	turn := func(bool) {}
	if limit := c.t.options.HeaderTimeout; limit > 0 {
		late := time.AfterFunc(limit, func() { s.late(limit) })
		defer late.Stop()
		if hasBody(req) {
			late.Stop()
			turn = func(site bool) {
				if late.Stop(); site {
					late.Reset(limit)
				}
			}
		}
	}
	if hasBody(req) {
		go s.send(req, turn)
	} else if req.Body != nil {
		req.Body.Close()
	}
	s.mu.Lock()
	for !s.headed && s.err == nil {
		s.moved.Wait()
	}
	resp, err := s.answer, s.err
	s.answer = nil
	s.mu.Unlock()
	if resp == nil {
		s.Close()
		return nil, c.unanswered(err)
	}
	resp.Request, resp.Body = req, s
	return resp, nil
}

// late ends a request for which the site has done nothing for a while.
func (s *stream) late(limit time.Duration) {
	s.mu.Lock()
	headed, sending := s.headed, s.body != nil
	s.mu.Unlock()
	what := "the head of the answer has not come within"
	if sending {
		what = "the site has given no room for the rest of the request for"
	}
	if !headed {
		s.abort(fmt.Errorf("%s %v: %w", what, limit, os.ErrDeadlineExceeded), http2.ErrCodeCancel)
	}
}

// unanswered is why the head of an answer has not come.
func (c *conn) unanswered(err error) error {
	c.mu.Lock()
	dead := c.err != nil && err == c.err
	c.mu.Unlock()
	if err = c.told(err); errors.As(err, new(*GoAwayError)) || !dead && !errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return &UnansweredError{err}
}

func hasBody(req *http.Request) bool { return req.Body != nil && req.Body != http.NoBody }

// told adds to an error that it had been announced.
func (c *conn) told(err error) error {
	if _, ok := err.(full); !ok && c.leaving.Err() != nil {
		return &GoAwayError{Err: err}
	}
	return err
}

// open sends the head of a request.
func (c *conn) open(req *http.Request) (*stream, error) {
	c.writing.Lock() // streams are opened in the order of their ids
	defer c.writing.Unlock()
	c.mu.Lock()
	if !c.takes() {
		defer c.mu.Unlock()
		if c.err == errUnwanted { // by us: another one will do
			return nil, full{}
		}
		return nil, full{c.never()}
	}
	s := &stream{c: c, id: c.next, window: c.initial, room: streamWindow, wide: streamWindow, left: -1, bare: req.Method == http.MethodHead}
	s.moved.L = &s.mu
	if hasBody(req) {
		s.body = req.Body
	}
	c.next += 2
	c.streams[s.id] = s
	c.unused.Stop()
	frame := c.frame
	c.mu.Unlock()

	c.block.Reset()
	c.encode(req)
	block := c.block.Bytes()
	err := c.writeLocked(func(f *http2.Framer) error {
		part := block[:min(len(block), frame)]
		block = block[len(part):]
		err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: s.id, BlockFragment: part, EndHeaders: len(block) == 0, EndStream: !hasBody(req)})
		for err == nil && len(block) > 0 {
			part = block[:min(len(block), frame)]
			block = block[len(part):]
			err = f.WriteContinuation(s.id, len(block) == 0, part)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

// encode writes the head of a request (RFC 9113, section 8.3.1) into c.block.
// What it holds has been checked.
func (c *conn) encode(req *http.Request) {
	put := func(name, value string) {
		_ = c.hpack.WriteField(hpack.HeaderField{Name: name, Value: value}) // into memory
	}
	host := req.Host
	if host == "" {
		host = req.URL.Host
	}
	if ascii, err := httpguts.PunycodeHostPort(host); err == nil {
		host = ascii
	}
	method := req.Method
	if method == "" {
		method = http.MethodGet
	}
	put(":method", method)
	put(":scheme", req.URL.Scheme)
	put(":authority", host)
	put(":path", req.URL.RequestURI())
	names := make([]string, 0, len(req.Header))
	for name := range req.Header {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		lower := strings.ToLower(name)
		switch lower {
		case "host", "content-length", "connection", "proxy-connection", "transfer-encoding", "upgrade", "keep-alive":
			continue // of HTTP/1.1, or said otherwise
		}
		for _, value := range req.Header[name] {
			switch {
			case lower == "te" && value != "trailers", lower == "user-agent" && value == "":
			case lower == "cookie": // apart, so that each is compressed by itself
				for crumb := range strings.SplitSeq(value, ";") {
					if crumb = strings.TrimSpace(crumb); crumb != "" {
						put(lower, crumb)
					}
				}
			default:
				put(lower, value)
			}
		}
	}
	if n := req.ContentLength; hasBody(req) && n > 0 || !hasBody(req) && slices.Contains([]string{"POST", "PUT", "PATCH"}, method) {
		put("content-length", strconv.FormatInt(max(n, 0), 10))
	}
}

// send sends the body of a request as the site's windows allow. turn is told
// whether it is the site that has to do something now: to give room, and at last
// to answer. The end of the stream closes the body, for which send may wait.
func (s *stream) send(req *http.Request, turn func(site bool)) {
	defer func() {
		req.Body.Close()
		s.mu.Lock()
		s.body = nil
		s.mu.Unlock()
	}()
	buf := make([]byte, 16<<10)
	for {
		turn(false)
		n, err := req.Body.Read(buf)
		if err != nil && err != io.EOF {
			s.abort(err, http2.ErrCodeCancel)
			s.cut()
			return
		}
		end := err == io.EOF
		for rest := buf[:n]; len(rest) > 0 || end; {
			turn(true)
			size, ok := s.allowed(len(rest))
			if !ok {
				s.cut()
				return
			}
			part := rest[:size]
			rest = rest[size:]
			last := end && len(rest) == 0
			if s.c.write(func(f *http2.Framer) error { return f.WriteData(s.id, last, part) }) != nil {
				return
			}
			if last {
				turn(true)
				return
			}
		}
	}
}

// cut tells a site that has given its whole answer not to wait for the rest of
// the request. Otherwise it knows: the stream was reset.
func (s *stream) cut() {
	s.mu.Lock()
	whole := s.err == io.EOF
	s.mu.Unlock()
	if whole {
		_ = s.c.write(func(f *http2.Framer) error { return f.WriteRSTStream(s.id, http2.ErrCodeNo) }) // its failure ends the connection
	}
}

// allowed waits until some of n bytes may be sent; ok is false when the stream
// has ended.
func (s *stream) allowed(n int) (size int, ok bool) {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		if c.streams[s.id] != s {
			return 0, false
		}
		size = int(min(int64(n), int64(c.frame), c.window, s.window))
		if size > 0 || n == 0 {
			c.window -= int64(max(size, 0))
			s.window -= int64(max(size, 0))
			return max(size, 0), true
		}
		c.moved.Wait()
	}
}

// headers takes the head of an answer, or what follows its body.
func (s *stream) headers(f *http2.MetaHeadersFrame) error {
	wrong := http2.StreamError{StreamID: s.id, Code: http2.ErrCodeProtocol}
	if f.Truncated {
		wrong.Cause = errLongHead
		return wrong
	}
	s.mu.Lock()
	headed := s.headed
	s.mu.Unlock()
	if headed {
		if !f.StreamEnded() || len(f.PseudoFields()) > 0 {
			return wrong
		}
		return s.finish()
	}
	status, err := strconv.Atoi(f.PseudoValue("status"))
	if err != nil || status < 100 || status > 999 {
		return wrong
	}
	if status < 200 {
		if s.early++; f.StreamEnded() || s.early > maxInterim {
			return wrong
		}
		return nil
	}
	resp := &http.Response{
		Status: strings.TrimSpace(strconv.Itoa(status) + " " + http.StatusText(status)), StatusCode: status,
		Proto: "HTTP/2.0", ProtoMajor: 2, Header: make(http.Header, len(f.Fields)), ContentLength: -1,
	}
	for _, field := range f.RegularFields() {
		resp.Header.Add(field.Name, field.Value)
	}
	if n, err := strconv.ParseInt(resp.Header.Get("Content-Length"), 10, 64); err == nil && n >= 0 {
		resp.ContentLength = n
	} else if f.StreamEnded() && !s.bare {
		resp.ContentLength = 0
	}
	s.mu.Lock()
	if s.left = resp.ContentLength; s.bare || status == http.StatusNoContent || status == http.StatusNotModified {
		s.left = 0
	}
	s.answer, s.headed, s.told = resp, true, now()
	s.moved.Broadcast()
	s.mu.Unlock()
	if f.StreamEnded() {
		return s.finish()
	}
	return nil
}

// data takes a part of the answer.
func (s *stream) data(f *http2.DataFrame) error {
	b := f.Data()
	s.mu.Lock()
	var wrong error
	more := 0
	switch {
	case !s.headed:
		wrong = http2.StreamError{StreamID: s.id, Code: http2.ErrCodeProtocol}
	case int(f.Length) > s.room:
		wrong = http2.StreamError{StreamID: s.id, Code: http2.ErrCodeFlowControl}
	case s.left >= 0 && int64(len(b)) > s.left:
		wrong = http2.StreamError{StreamID: s.id, Code: http2.ErrCodeProtocol, Cause: errors.New("the answer is longer than its Content-Length")}
	case s.err == nil:
		if s.left >= 0 {
			s.left -= int64(len(b))
		}
		s.room -= int(f.Length)
		s.read += int(f.Length) - len(b) // padding
		if len(b) > 0 {
			s.put(b)
			s.moved.Broadcast()
		} else {
			more = s.grant() // nobody reads what is only padding
		}
	}
	s.mu.Unlock()
	s.allow(more)
	if wrong == nil && f.StreamEnded() {
		return s.finish()
	}
	return wrong
}

// grant is how much more the site may send now that so much was read; 0 while
// it has room. It runs under s.mu.
func (s *stream) grant() (more int) {
	if s.err != nil || s.read < s.wide/4 {
		return 0
	}
	more, s.read = s.read, 0
	at := now()
	if s.wide < wideWindow && time.Duration(at-s.told) < windowRate/4 {
		more += s.wide
		s.wide *= 2
	}
	s.told = at
	s.room += more
	return more
}

// allow tells the site that it may send more, if there is any.
func (s *stream) allow(more int) {
	if more > 0 {
		_ = s.c.write(func(f *http2.Framer) error { return f.WriteWindowUpdate(s.id, uint32(more)) }) // its failure ends the stream
	}
}

// finish ends the answer as the site does.
func (s *stream) finish() error {
	s.mu.Lock()
	short := s.left > 0
	s.mu.Unlock()
	if short {
		s.end(io.ErrUnexpectedEOF)
	} else {
		s.end(io.EOF)
	}
	s.c.forget(s)
	return nil
}

// reset ends the answer because the site gives it up.
func (s *stream) reset(code http2.ErrCode) {
	err := fmt.Errorf("HTTP/2: the site reset the stream: %v", code)
	s.mu.Lock()
	headed := s.headed
	s.mu.Unlock()
	if code == http2.ErrCodeRefusedStream && !headed {
		err = unprocessed{err}
	}
	s.end(err)
	s.c.forget(s)
}

// end notes how the stream has ended. It tells whether it had not before.
func (s *stream) end(err error) (first bool) {
	s.mu.Lock()
	if first = s.err == nil; first {
		s.err = err
	}
	stop, body := s.stop, s.body
	s.body = nil
	s.moved.Broadcast()
	s.mu.Unlock()
	if stop != nil {
		stop()
	}
	if body != nil {
		body.Close()
	}
	return first
}

// abort ends the stream, unless it has ended, and tells the site.
func (s *stream) abort(err error, code http2.ErrCode) {
	if !s.end(err) {
		return
	}
	go func() { // the site may not read
		_ = s.c.write(func(f *http2.Framer) error { return f.WriteRSTStream(s.id, code) }) // its failure ends the connection
		s.c.forget(s)
	}()
}

// Read implements io.Reader.
func (s *stream) Read(p []byte) (int, error) {
	s.mu.Lock()
	for s.first == nil && s.err == nil {
		s.moved.Wait()
	}
	if s.first == nil {
		defer s.mu.Unlock()
		if s.err == io.EOF {
			return 0, io.EOF
		}
		return 0, s.c.told(s.err)
	}
	n := 0
	for s.first != nil && n < len(p) {
		c := s.first
		took := copy(p[n:], c.b[c.from:])
		n += took
		if c.from += took; c.from == len(c.b) {
			s.drop()
		}
	}
	s.read += n
	more := s.grant()
	s.mu.Unlock()
	s.allow(more)
	return n, nil
}

// Close implements io.Closer. It may be called while Read blocks.
func (s *stream) Close() error {
	s.abort(http.ErrBodyReadAfterClose, http2.ErrCodeCancel)
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.first != nil {
		s.drop()
	}
	return nil
}
