package transport

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

const (
	// streamWindow is how many bytes the site may send of an answer before
	// they are read, and wideWindow where they are read so fast that it would
	// have to wait: what is read at windowRate or faster. connWindow is for all
	// the answers of a connection.
	streamWindow = 64 << 10
	wideWindow   = 1 << 20
	windowRate   = time.Second // for a whole window
	connWindow   = 16 << 20
	// What a connection takes until its site has said more (RFC 9113, section
	// 6.5.2): of streams, many. (Or as many as the one before, where there was
	// one: what is refused has to be sent again.)
	firstStreams, manyStreams = 100, 1000
	firstWindow               = 1<<16 - 1
	firstFrame                = 1 << 14
	firstTable                = 1 << 12
	// mostRead is how much is read for one frame, where a head counts with its
	// continuations: a block may be cut into pieces of nothing without end.
	mostRead = 4 * maxHead
)

var (
	errMute      = errors.New("the HTTP/2 connection is dead: a ping was not answered")
	errUnwanted  = errors.New("the HTTP/2 connection is not wanted any more")
	errAbandoned = errors.New("the HTTP/2 connection has gone silent")
	errGoing     = errors.New("the site has announced that it closes the HTTP/2 connection")
	errSpent     = errors.New("the HTTP/2 connection has carried as many requests as it can")
	errNone      = errors.New("the site takes no requests over HTTP/2: its MAX_CONCURRENT_STREAMS is 0")
)

// conn is one HTTP/2 connection (RFC 9113). One goroutine reads its frames;
// the requests have none of their own. (net/http has one for each, and with
// thousands of streams that wait their stacks are a third of the memory. It
// also keeps to itself that a server is about to leave, until it has left.)
type conn struct {
	net.Conn
	t       *Transport
	to      origin
	leaving context.Context // ended by GOAWAY
	leave   context.CancelFunc
	read    atomic.Int64 // when something was read last
	doubted atomic.Int64 // when an answer was last given up for its silence

	writing sync.Mutex // held while frames are written; taken before mu
	framer  *http2.Framer
	block   bytes.Buffer // what hpack writes to
	hpack   *hpack.Encoder

	mu      sync.Mutex
	streams map[uint32]*stream
	next    uint32 // the id of the next one
	most    uint32 // how many may be open
	window  int64  // what may be sent
	initial int64  // what may be sent of each request
	frame   int    // the largest that may be sent
	moved   *sync.Cond
	settled bool        // the site has sent its settings
	closing bool        // it closes when it carries nothing
	going   bool        // the site has said GOAWAY
	err     error       // why it is over
	unused  *time.Timer // runs while it carries nothing
	pulse   *time.Timer // looks whether it is alive
	pinged  int64       // when a ping was sent that is not answered; 0 for none

	taken int // what was read since the site was told; of the one goroutine
	raw   int // what was read since the last frame; of the same
}

// newConn begins HTTP/2 on a connection that has agreed on it. It closes nc when
// it fails.
func newConn(nc net.Conn, t *Transport, to origin) (*conn, error) {
	c := &conn{
		Conn: nc, t: t, to: to, streams: map[uint32]*stream{}, next: 1,
		most: t.limit(to), window: firstWindow, initial: firstWindow, frame: firstFrame,
	}
	c.leaving, c.leave = context.WithCancel(context.Background())
	c.moved = sync.NewCond(&c.mu)
	c.hpack = hpack.NewEncoder(&c.block)
	c.framer = http2.NewFramer(nc, bufio.NewReaderSize(c, 4<<10))
	c.framer.ReadMetaHeaders = hpack.NewDecoder(firstTable, nil)
	c.framer.MaxHeaderListSize = maxHead
	c.framer.SetMaxReadFrameSize(firstFrame)
	err := c.write(func(f *http2.Framer) error {
		if _, err := io.WriteString(c.Conn, http2.ClientPreface); err != nil {
			return err
		}
		if err := f.WriteSettings(
			http2.Setting{ID: http2.SettingEnablePush, Val: 0},
			http2.Setting{ID: http2.SettingInitialWindowSize, Val: streamWindow},
			http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: maxHead},
		); err != nil {
			return err
		}
		return f.WriteWindowUpdate(0, connWindow-firstWindow)
	})
	if err != nil {
		return nil, err
	}
	c.read.Store(now())
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unused = time.AfterFunc(idleTimeout, c.idle)
	c.pulse = time.AfterFunc(t.pingAfter, c.check)
	go c.serve()
	return c, nil
}

// doubtful tells whether nothing has been read since an answer was given up for
// its silence: what follows it must not be sent into the same void.
func (c *conn) doubtful() bool {
	at := c.doubted.Load()
	return at != 0 && c.read.Load() < at
}

// Read implements net.Conn, for the frames.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.read.Store(now())
	}
	if c.raw += n; c.raw > mostRead {
		return n, http2.ConnectionError(http2.ErrCodeEnhanceYourCalm)
	}
	return n, err
}

// write has f write frames. What fails ends the connection.
func (c *conn) write(f func(*http2.Framer) error) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	return c.writeLocked(f)
}

func (c *conn) writeLocked(f func(*http2.Framer) error) error {
	err := c.SetWriteDeadline(time.Now().Add(c.t.pingAfter + c.t.pingTimeout))
	if err == nil {
		err = f(c.framer)
	}
	if err == nil { // TLS writes by itself while reading, where the site asks for new keys
		_ = c.SetWriteDeadline(time.Time{}) // what was written may be answered, and the connection closed, by now
	}
	if err != nil {
		c.fail(fmt.Errorf("HTTP/2: %w", err))
	}
	return err
}

// free tells whether the connection takes another request.
func (c *conn) free() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.takes()
}

func (c *conn) takes() bool { return c.never() == nil && uint32(len(c.streams)) < c.most }

// never is why the connection takes no request any more, also when those that
// it carries have ended. It runs under c.mu.
func (c *conn) never() error {
	switch {
	case c.err != nil:
		return c.err
	case c.going:
		return errGoing
	case c.next >= 1<<31-1:
		return errSpent
	case c.most == 0:
		return errNone
	}
	return nil
}

// closeIdle closes the connection as soon as it carries nothing.
func (c *conn) closeIdle() {
	c.mu.Lock()
	c.closing = true
	c.mu.Unlock()
	c.rest()
}

// rest closes a connection that carries nothing and is not to be kept, or may
// carry nothing.
func (c *conn) rest() {
	c.failIf(errUnwanted, func() bool { return len(c.streams) == 0 && (c.closing || c.going) })
	c.failIf(errNone, func() bool { return len(c.streams) == 0 && c.most == 0 })
}

// idle closes a connection that has carried nothing for idleTimeout.
func (c *conn) idle() {
	c.mu.Lock()
	c.closing = c.closing || len(c.streams) == 0
	c.mu.Unlock()
	c.rest()
}

// check asks a connection that has brought nothing for a sign of life, and
// gives it up where that does not come.
func (c *conn) check() {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	read, at := c.read.Load(), now()
	ping := false
	switch {
	case c.pinged == 0 || read >= c.pinged:
		c.pinged = 0
		if wait := c.t.pingAfter - time.Duration(at-read); wait > 0 {
			c.pulse.Reset(wait)
			break
		}
		c.pinged, ping = at, true
		c.pulse.Reset(c.t.pingTimeout)
	case time.Duration(at-c.pinged) < c.t.pingTimeout:
		c.pulse.Reset(c.t.pingTimeout - time.Duration(at-c.pinged))
	default:
		c.mu.Unlock()
		c.fail(errMute)
		return
	}
	c.mu.Unlock()
	if ping {
		c.write(func(f *http2.Framer) error { return f.WritePing(false, [8]byte{}) }) // its failure ends the connection
	}
}

// fail ends the connection and all that it carries.
func (c *conn) fail(err error) { c.failIf(err, func() bool { return true }) }

// failIf does so if a condition holds, which is asked under c.mu: no request
// can begin between the two.
func (c *conn) failIf(err error, cond func() bool) {
	c.mu.Lock()
	if c.err != nil || !cond() {
		c.mu.Unlock()
		return
	}
	c.err = err
	all := c.streams
	c.streams = nil
	if c.pulse != nil {
		c.pulse.Stop()
		c.unused.Stop()
	}
	c.moved.Broadcast()
	c.mu.Unlock()
	c.t.forget(c)
	for _, s := range all {
		s.end(err)
	}
	c.Conn.Close()
}

// forget takes a stream off that has ended.
func (c *conn) forget(s *stream) {
	c.mu.Lock()
	if c.streams[s.id] == s {
		delete(c.streams, s.id)
		if len(c.streams) == 0 {
			c.unused.Reset(idleTimeout)
		}
	}
	c.moved.Broadcast() // its request's body may wait
	c.mu.Unlock()
	c.t.again()
	c.rest()
}

// serve reads frames until the connection ends.
func (c *conn) serve() {
	for {
		f, err := c.framer.ReadFrame()
		c.raw = 0
		if err == nil {
			err = c.take(f)
		}
		var one http2.StreamError
		switch {
		case err == nil:
		case errors.As(err, &one):
			if s := c.stream(one.StreamID); s != nil {
				s.abort(err, one.Code)
			}
		default:
			c.over(err)
			return
		}
	}
}

// over ends the connection for what went wrong while reading.
func (c *conn) over(err error) {
	var wrong http2.ConnectionError
	if errors.As(err, &wrong) {
		_ = c.write(func(f *http2.Framer) error { return f.WriteGoAway(0, http2.ErrCode(wrong), nil) }) // as a courtesy
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	c.fail(fmt.Errorf("HTTP/2: %w", err))
}

func (c *conn) stream(id uint32) *stream {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.streams[id]
}

// take acts on a frame.
func (c *conn) take(f http2.Frame) error {
	if _, ok := f.(*http2.SettingsFrame); !ok && !c.settled {
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	switch f := f.(type) {
	case *http2.SettingsFrame:
		if err := c.settings(f); err != nil {
			return err
		}
		c.rest()
	case *http2.PingFrame:
		if f.IsAck() {
			return nil
		}
		return c.write(func(w *http2.Framer) error { return w.WritePing(true, f.Data) })
	case *http2.GoAwayFrame:
		c.goAway(f)
	case *http2.WindowUpdateFrame:
		return c.widen(f)
	case *http2.MetaHeadersFrame:
		if s := c.stream(f.StreamID); s != nil {
			return s.headers(f)
		}
		return c.known(f.StreamID)
	case *http2.DataFrame:
		return c.data(f)
	case *http2.RSTStreamFrame:
		if s := c.stream(f.StreamID); s != nil {
			s.reset(f.ErrCode)
			return nil
		}
		return c.known(f.StreamID)
	case *http2.PushPromiseFrame: // we have forbidden them
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	return nil
}

// known accepts what comes late for a stream that has ended.
func (c *conn) known(id uint32) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if id%2 == 0 || id >= c.next {
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	return nil
}

// data takes a part of an answer. The site is told that the connection has
// room again at once: what is unread is bounded by the windows of the streams.
func (c *conn) data(f *http2.DataFrame) error {
	n := int(f.Length)
	if c.taken += n; c.taken > connWindow {
		return http2.ConnectionError(http2.ErrCodeFlowControl)
	}
	if c.taken >= connWindow/8 {
		more := uint32(c.taken)
		c.taken = 0
		if err := c.write(func(w *http2.Framer) error { return w.WriteWindowUpdate(0, more) }); err != nil {
			return err
		}
	}
	if s := c.stream(f.StreamID); s != nil {
		return s.data(f)
	}
	return c.known(f.StreamID)
}

// settings takes what the site asks for.
func (c *conn) settings(f *http2.SettingsFrame) error {
	if f.IsAck() {
		return nil
	}
	c.writing.Lock() // what is being written goes by the old ones
	defer c.writing.Unlock()
	c.mu.Lock()
	first := !c.settled
	if c.settled = true; first {
		c.most = manyStreams
	}
	err := f.ForeachSetting(func(s http2.Setting) error {
		if err := s.Valid(); err != nil {
			return err
		}
		switch s.ID {
		case http2.SettingMaxConcurrentStreams:
			c.most = s.Val
		case http2.SettingInitialWindowSize:
			for _, o := range c.streams {
				o.window += int64(s.Val) - c.initial
			}
			c.initial = int64(s.Val)
		case http2.SettingMaxFrameSize:
			c.frame = int(s.Val)
		case http2.SettingHeaderTableSize:
			c.hpack.SetMaxDynamicTableSizeLimit(s.Val)
			c.hpack.SetMaxDynamicTableSize(min(s.Val, firstTable))
		}
		return nil
	})
	c.moved.Broadcast()
	most := c.most
	c.mu.Unlock()
	c.t.learn(c.to, most)
	if err != nil {
		return err
	}
	return c.writeLocked(func(w *http2.Framer) error { return w.WriteSettingsAck() })
}

// widen takes the leave to send more.
func (c *conn) widen(f *http2.WindowUpdateFrame) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.moved.Broadcast()
	if f.StreamID == 0 {
		if c.window += int64(f.Increment); c.window > 1<<31-1 {
			return http2.ConnectionError(http2.ErrCodeFlowControl)
		}
		return nil
	}
	if s := c.streams[f.StreamID]; s != nil {
		if s.window += int64(f.Increment); s.window > 1<<31-1 {
			return http2.StreamError{StreamID: s.id, Code: http2.ErrCodeFlowControl}
		}
	}
	return nil
}

// goAway takes the announcement that the site ends the connection. What it has
// not begun to work on may be sent again.
func (c *conn) goAway(f *http2.GoAwayFrame) {
	c.mu.Lock()
	c.going = true
	var late []*stream
	for id, s := range c.streams {
		if id > f.LastStreamID {
			late = append(late, s)
		}
	}
	c.mu.Unlock()
	if f.ErrCode == http2.ErrCodeNo {
		c.leave()
	}
	for _, s := range late {
		s.end(unprocessed{fmt.Errorf("HTTP/2: the site goes away: %v", f.ErrCode)})
		c.forget(s)
	}
	c.rest()
}

// full is the error of a connection that takes no more requests: nothing was
// sent. why is set where it never will.
type full struct{ why error }

func (full) Error() string { return "the HTTP/2 connection takes no more requests" }

// unprocessed is the error of a request that the site says it has not acted
// on (RFC 9113, section 8.7).
type unprocessed struct{ error }

func (u unprocessed) Unwrap() error { return u.error }

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
