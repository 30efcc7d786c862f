package transport

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// pieces sends a block of headers in pieces, some of them empty.
func (p *peer) pieces(id uint32, end bool, size int, fields ...string) {
	p.block.Reset()
	for i := 0; i < len(fields); i += 2 {
		p.hpack.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	rest := p.block.Bytes()
	p.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndStream: end})
	for len(rest) > 0 {
		part := rest[:min(size, len(rest))]
		rest = rest[len(part):]
		p.WriteContinuation(id, false, part)
		p.WriteContinuation(id, false, nil)
	}
	p.WriteContinuation(id, true, nil)
}

// TestHeadsInPieces come whole, trailers too.
func TestHeadsInPieces(t *testing.T) {
	withPeer(t, func(t *testing.T, c *conn, p *peer) {
		got := start(t.Context(), c, "GET", nil)
		p.pieces(1, false, 1, ":status", "103", "link", "</x>")
		p.pieces(1, false, 1, ":status", "200", "x", strings.Repeat("y", 1000))
		a := <-got
		if a.err != nil || len(a.resp.Header.Get("X")) != 1000 {
			t.Fatalf("%+v", a)
		}
		p.WriteData(1, false, []byte("ok"))
		p.pieces(1, true, 3, "x-sum", "1")
		if b, err := io.ReadAll(a.resp.Body); err != nil || string(b) != "ok" {
			t.Errorf("%q, %v", b, err)
		}
	})
}

// TestContinuationsThatMustNotBe end the connection, also those that would never
// end: they come as one frame, of which no part can be acted on.
func TestContinuationsThatMustNotBe(t *testing.T) {
	for name, send := range map[string]func(p *peer){
		"without a head":    func(p *peer) { p.WriteContinuation(1, true, []byte{0x88}) },
		"of another stream": func(p *peer) { p.WriteContinuation(3, true, []byte{0x88}) },
		"with data between": func(p *peer) { p.WriteData(1, false, []byte("x")) },
		"with a ping between": func(p *peer) {
			p.WriteContinuation(1, false, []byte{0x88})
			p.WritePing(false, [8]byte{})
		},
		"a larger table": func(p *peer) { p.WriteContinuation(1, true, hpack.AppendHuffmanString([]byte{0x3f, 0xe2, 0x1f}, "")) }, // 4097, RFC 7541, section 6.3
		"empty, without end": func(p *peer) {
			many := bytes.Repeat([]byte{0, 0, 0, byte(http2.FrameContinuation), 0, 0, 0, 0, 1}, 1000)
			for range 2 * mostRead / len(many) {
				if _, err := p.conn.Write(many); err != nil {
					return
				}
			}
		},
		"full, without end": func(p *peer) {
			for range 2 * mostRead / firstFrame {
				if p.WriteContinuation(1, false, bytes.Repeat([]byte{0x88}, firstFrame)) != nil {
					return
				}
			}
		},
	} {
		withPeer(t, func(t *testing.T, c *conn, p *peer) {
			got := start(t.Context(), c, "GET", nil)
			p.AllowIllegalWrites = true
			if name != "without a head" {
				p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1})
			}
			send(p)
			synctest.Wait()
			select {
			case a := <-got:
				if a.err == nil {
					t.Errorf("%s: %+v", name, a)
				}
			default:
				t.Errorf("%s: the connection goes on", name)
			}
			if next[*http2.GoAwayFrame](p) == nil {
				t.Errorf("%s: the site is not told why", name)
			}
		})
	}
}

// TestTheTableOfHeadersMayShrink and grow again, on both sides.
func TestTheTableOfHeadersMayShrink(t *testing.T) {
	withPeer(t, func(t *testing.T, c *conn, p *peer) {
		for i, size := range []uint32{4096, 0, 100, 4096} {
			id := uint32(2*i + 1)
			p.WriteSettings(http2.Setting{ID: http2.SettingHeaderTableSize, Val: 0}, http2.Setting{ID: http2.SettingHeaderTableSize, Val: size})
			synctest.Wait()
			got := start(t.Context(), c, "GET", nil)
			if h := next[*http2.MetaHeadersFrame](p); h == nil || h.PseudoValue("authority") != "site.test" {
				t.Fatalf("%d: %v", size, h)
			}
			p.hpack.SetMaxDynamicTableSize(0)
			p.hpack.SetMaxDynamicTableSize(size)
			p.head(id, true, ":status", "200", "x", "y")
			if a := <-got; a.err != nil || a.resp.Header.Get("X") != "y" {
				t.Fatalf("%d: %+v", size, a)
			}
		}
	})
}

// TestASiteThatTakesNoMoreOfARequest closes its window in the middle: the
// request goes on when it is opened again, and ends when it is not.
func TestASiteThatTakesNoMoreOfARequest(t *testing.T) {
	const limit = 10 * time.Second
	for _, opens := range []bool{true, false} {
		withPeer(t, func(t *testing.T, c *conn, p *peer) {
			c.t.options.HeaderTimeout = limit
			var writing sync.Mutex
			say := func(f func()) { writing.Lock(); defer writing.Unlock(); f() }
			go func() {
				for f := range p.frames {
					if f, ok := f.(*http2.PingFrame); ok && !f.IsAck() {
						say(func() { p.WritePing(true, f.Data) })
					}
					if f, ok := f.(*http2.DataFrame); ok && f.StreamEnded() {
						say(func() { p.head(1, true, ":status", "204") })
					}
				}
			}()
			began := time.Now()
			got := start(t.Context(), c, "POST", strings.NewReader(strings.Repeat("x", 200_000)))
			time.Sleep(limit / 8)
			say(func() {
				p.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
				p.WriteWindowUpdate(0, 1<<20)
				p.WriteWindowUpdate(1, 1000) // what has gone is more than that
			})
			if opens {
				for range 3 { // nearly as long as the limit, and then some room
					time.Sleep(limit * 3 / 4)
					say(func() { p.WriteWindowUpdate(1, firstWindow) })
				}
				time.Sleep(limit / 2)
				say(func() { p.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 200_000}) })
			}
			a := <-got
			if opens {
				if a.err != nil || a.resp.StatusCode != 204 {
					t.Errorf("%+v", a)
				}
				return
			}
			if took := time.Since(began); !errors.Is(a.err, os.ErrDeadlineExceeded) || !strings.Contains(a.err.Error(), "no room") || took != limit {
				t.Errorf("%v after %v", a.err, took)
			}
		})
	}
}

// TestASiteThatReadsNoMoreOfARequest over HTTP/1.1 ends it, too. One that reads
// slowly does not, nor a body that takes its time.
func TestASiteThatReadsNoMoreOfARequest(t *testing.T) {
	const limit = 10 * time.Second // that of scripted
	for _, slowly := range []bool{true, false} {
		var over chan struct{}
		scripted(t, func(t *testing.T, s *script, tr *Transport) {
			over = make(chan struct{})
			defer close(over)
			began := time.Now()
			got, err := ask(tr, "POST", strings.Repeat("x", 100_000))
			if slowly {
				if err != nil || got != "ok" {
					t.Errorf("%q, %v", got, err)
				}
				return
			}
			if took := time.Since(began); !errors.Is(err, os.ErrDeadlineExceeded) || !strings.Contains(err.Error(), "no more of the request") || took != limit {
				t.Errorf("%v after %v", err, took)
			}
		}, func(c net.Conn, r *bufio.Reader) {
			req, err := http.ReadRequest(r)
			if err != nil || !slowly {
				<-over
				return
			}
			for err == nil {
				time.Sleep(limit * 3 / 4)
				_, err = io.CopyN(io.Discard, req.Body, 20_000)
			}
			io.WriteString(c, ok)
			r.Peek(1)
		})
	}
}

// unhurried notes until when may be written to it.
type unhurried struct {
	net.Conn
	until atomic.Int64
}

func (u *unhurried) SetWriteDeadline(at time.Time) error {
	u.until.Store(0)
	if !at.IsZero() {
		u.until.Store(at.UnixNano())
	}
	return u.Conn.SetWriteDeadline(at)
}

// TestNoTimeLimitsWhatIsNotWritten: TLS answers by itself a site that asks for
// new keys, however long after the last frame or request.
func TestNoTimeLimitsWhatIsNotWritten(t *testing.T) {
	for _, proto := range []string{"HTTP/1.1", "HTTP/2.0"} {
		synctest.Test(t, func(t *testing.T) {
			ours, theirs := net.Pipe()
			u := &unhurried{Conn: ours}
			tr := New(Options{HeaderTimeout: time.Second})
			if proto == "HTTP/2.0" {
				newPeer(theirs)
				if _, err := newConn(u, tr, origin{}); err != nil {
					t.Fatal(err)
				}
			} else {
				go http.ReadRequest(bufio.NewReader(theirs))
				req, _ := http.NewRequest("GET", "http://site.test", nil)
				go (&single{Conn: u, t: tr}).RoundTrip(req)
			}
			synctest.Wait()
			if u.until.Load() != 0 {
				t.Errorf("%s: nothing may be written after %v", proto, time.Unix(0, u.until.Load()))
			}
			theirs.Close()
		})
	}
}

// TestASiteThatTakesNoMoreRequests says so while it answers one: that goes on,
// others are sent elsewhere, and the connection closes after it.
func TestASiteThatTakesNoMoreRequests(t *testing.T) {
	withPeer(t, func(t *testing.T, c *conn, p *peer) {
		got := start(t.Context(), c, "GET", nil)
		p.head(1, false, ":status", "200")
		resp := (<-got).resp
		p.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 0})
		synctest.Wait()
		if f, ok := errors.AsType[full]((<-start(t.Context(), c, "GET", nil)).err); !ok || !errors.Is(f.why, errNone) {
			t.Error("another request was sent")
		}
		p.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 1})
		if synctest.Wait(); c.free() {
			t.Error("one is all that it takes")
		}
		p.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 0})
		p.WriteData(1, true, []byte("ok"))
		if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "ok" {
			t.Errorf("%q, %v", b, err)
		}
		closed(t, c, p)
	})
	withPeer(t, func(t *testing.T, c *conn, p *peer) { closed(t, c, p) }, http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 0})
}

// closed wants a connection to be over that can carry nothing.
func closed(t *testing.T, c *conn, p *peer) {
	t.Helper()
	synctest.Wait()
	for {
		select {
		case _, open := <-p.frames:
			if open {
				continue
			}
		default:
			t.Error("it is kept")
		}
		if !errors.Is(c.never(), errNone) {
			t.Error(c.never())
		}
		return
	}
}

// TestFloods are taken as they come, and leave nothing behind.
func TestFloods(t *testing.T) {
	const many = 20_000
	for name, send := range map[string]func(p *peer, i int){
		"pings": func(p *peer, i int) { p.WritePing(false, [8]byte{byte(i)}) },
		"acks":  func(p *peer, i int) { p.WritePing(true, [8]byte{byte(i)}) },
		"settings": func(p *peer, i int) {
			p.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(i)})
		},
		"resets":  func(p *peer, _ int) { p.WriteRSTStream(1, http2.ErrCodeCancel) },
		"windows": func(p *peer, _ int) { p.WriteWindowUpdate(1, 1) },
		"nothing": func(p *peer, _ int) { p.WriteData(3, false, nil) },
		"heads":   func(p *peer, _ int) { p.head(1, true, ":status", "200") },
		"goings":  func(p *peer, _ int) { p.WriteGoAway(3, http2.ErrCodeNo, nil) },
	} {
		withPeer(t, func(t *testing.T, c *conn, p *peer) {
			over := start(t.Context(), c, "GET", nil)
			p.head(1, true, ":status", "204")
			<-over
			got := start(t.Context(), c, "GET", nil)
			p.head(3, false, ":status", "200")
			resp := (<-got).resp
			var drained = make(chan bool)
			go func() {
				defer close(drained)
				for range p.frames {
				}
			}()
			for i := range many {
				send(p, i)
			}
			p.WriteData(3, true, []byte("ok"))
			if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "ok" {
				t.Errorf("%s: %q, %v", name, b, err)
			}
			if synctest.Wait(); len(c.streams) != 0 {
				t.Errorf("%s: %d streams are left", name, len(c.streams))
			}
			c.fail(errUnwanted)
			<-drained
		})
	}
}
