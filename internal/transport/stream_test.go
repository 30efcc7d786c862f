package transport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// peer is the other end of an HTTP/2 connection, frame by frame.
type peer struct {
	*http2.Framer
	conn   net.Conn
	frames chan http2.Frame // what the client has sent; the bytes of DATA do not last
	block  bytes.Buffer
	hpack  *hpack.Encoder
}

// withPeer runs a test in a bubble with a connection whose other end is the
// test. Settings are those that the peer begins with.
func withPeer(t *testing.T, f func(t *testing.T, c *conn, p *peer), settings ...http2.Setting) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		p := newPeer(theirs)
		c, err := newConn(ours, New(Options{}), origin{true, "site.test:443"})
		if err != nil {
			t.Fatal(err)
		}
		p.WriteSettings(settings...)
		synctest.Wait()
		f(t, c, p)
		c.fail(errUnwanted)
		theirs.Close()
	})
}

func newPeer(c net.Conn) *peer {
	p := &peer{Framer: http2.NewFramer(c, c), conn: c, frames: make(chan http2.Frame, 4096)}
	p.hpack = hpack.NewEncoder(&p.block)
	p.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	go func() {
		defer close(p.frames)
		if _, err := io.ReadFull(c, make([]byte, len(http2.ClientPreface))); err != nil {
			return
		}
		for {
			f, err := p.ReadFrame()
			if err != nil {
				return
			}
			p.frames <- f
		}
	}()
	return p
}

// next is the next frame of a type; those before it are skipped. nil when none has come.
func next[F http2.Frame](p *peer) (none F) {
	for {
		synctest.Wait()
		select {
		case f, ok := <-p.frames:
			if !ok {
				return none
			}
			if f, ok := f.(F); ok {
				return f
			}
		default:
			return none
		}
	}
}

// head answers a request.
func (p *peer) head(id uint32, end bool, fields ...string) {
	p.block.Reset()
	for i := 0; i < len(fields); i += 2 {
		p.hpack.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	p.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: p.block.Bytes(), EndHeaders: true, EndStream: end})
}

// answered is what came of a request.
type answered struct {
	resp *http.Response
	err  error
}

func start(ctx context.Context, c *conn, method string, body io.Reader) <-chan answered {
	got := make(chan answered, 1)
	req, err := http.NewRequestWithContext(ctx, method, "https://site.test/path?q", body)
	if err != nil {
		panic(err)
	}
	req.Header.Set("Cookie", "a=1; b=2")
	req.Header.Set("Connection", "keep-alive")
	req.Header.Set("X-Long", strings.Repeat("x", 40_000)) // more than one frame
	go func() {
		resp, err := c.RoundTrip(req)
		got <- answered{resp, err}
	}()
	synctest.Wait()
	return got
}

func TestTheHeadOfARequest(t *testing.T) {
	withPeer(t, func(t *testing.T, c *conn, p *peer) {
		for range 2 { // the second by reference to the first
			start(t.Context(), c, "GET", nil)
			h := next[*http2.MetaHeadersFrame](p)
			var got []string
			for _, f := range h.Fields {
				if f.Name != "x-long" {
					got = append(got, f.Name+": "+f.Value)
				}
			}
			want := []string{":method: GET", ":scheme: https", ":authority: site.test", ":path: /path?q", "cookie: a=1", "cookie: b=2"}
			if !slices.Equal(got, want) || !h.StreamEnded() {
				t.Errorf("%q, ended %v", got, h.StreamEnded())
			}
		}
	}, http2.Setting{ID: http2.SettingHeaderTableSize, Val: 0})
}

func TestARequestIsSentAsTheSiteAllows(t *testing.T) {
	const size, grant = 200_000, 50_000
	withPeer(t, func(t *testing.T, c *conn, p *peer) {
		got := start(t.Context(), c, "POST", strings.NewReader(strings.Repeat("x", size)))
		sum := 0
		take := func() (end bool) {
			for f := next[*http2.DataFrame](p); f != nil; f = next[*http2.DataFrame](p) {
				sum += int(f.Length)
				end = f.StreamEnded()
			}
			return end
		}
		want := firstWindow
		for want < size {
			if take(); sum != want {
				t.Fatalf("%d bytes were sent, %d are allowed", sum, want)
			}
			p.WriteWindowUpdate(0, grant)
			if take(); sum != want {
				t.Fatalf("%d bytes were sent, the stream has no window", sum)
			}
			if want += grant; want < size {
				p.WriteWindowUpdate(1, grant)
			} else { // what is granted to all counts for this one, too
				p.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: firstWindow + grant})
			}
		}
		if end := take(); sum != size || !end {
			t.Errorf("%d bytes were sent, ended %v", sum, end)
		}
		p.head(1, true, ":status", "204")
		if a := <-got; a.err != nil || a.resp.StatusCode != 204 {
			t.Errorf("%+v", a)
		}
	})
	// An answer ends the request, too.
	withPeer(t, func(t *testing.T, c *conn, p *peer) {
		got := start(t.Context(), c, "POST", strings.NewReader(strings.Repeat("x", size)))
		p.head(1, true, ":status", "413")
		if a := <-got; a.err != nil || a.resp.StatusCode != 413 {
			t.Errorf("%+v", a)
		}
		if next[*http2.RSTStreamFrame](p) == nil {
			t.Error("the site goes on waiting for the rest")
		}
	})
}

func TestAnAnswerIsTakenAsItIsRead(t *testing.T) {
	withPeer(t, func(t *testing.T, c *conn, p *peer) {
		got := start(t.Context(), c, "GET", nil)
		p.head(1, false, ":status", "103")
		p.head(1, false, ":status", "200", "x", "1", "x", "2")
		resp := (<-got).resp
		if values := resp.Header["X"]; !slices.Equal(values, []string{"1", "2"}) || resp.ContentLength != -1 {
			t.Errorf("%q, %d", values, resp.ContentLength)
		}
		// Three windows, no byte of it before there is room.
		room, sum, credit := streamWindow, 0, 0
		part := bytes.Repeat([]byte("x"), 10_000)
		for range 3 * wideWindow / len(part) {
			if room -= len(part) + 101; room < 0 {
				t.Fatal("the window was not opened again")
			}
			p.WriteDataPadded(1, false, part, make([]byte, 100))
			if _, err := io.ReadFull(resp.Body, part); err != nil {
				t.Fatal(err)
			}
			sum += len(part) + 101
			for f := next[*http2.WindowUpdateFrame](p); f != nil; f = next[*http2.WindowUpdateFrame](p) {
				if f.StreamID == 1 {
					room += int(f.Increment)
				} else {
					credit += int(f.Increment)
				}
			}
		}
		if room > wideWindow || room < wideWindow*3/4 {
			t.Errorf("the site may send %d bytes ahead of a fast reader, want %d at most and not much less", room, wideWindow)
		}
		if credit < sum-connWindow/8 {
			t.Errorf("the connection's window is short by %d of %d", sum-credit, sum)
		}
		p.head(1, true, "trailer", "x")
		if rest, err := io.ReadAll(resp.Body); err != nil || len(rest) > 0 {
			t.Errorf("at the end: %q, %v", rest, err)
		}
		if synctest.Wait(); c.stream(1) != nil {
			t.Error("the stream is still there")
		}
	})
	// What is read slowly does not pile up: with thousands of answers of which
	// nobody can take more, it would in each.
	withPeer(t, func(t *testing.T, c *conn, p *peer) {
		got := start(t.Context(), c, "GET", nil)
		p.head(1, false, ":status", "200")
		resp := (<-got).resp
		room, part := streamWindow, make([]byte, 16384)
		for range 50 {
			for ; room >= len(part); room -= len(part) {
				p.WriteData(1, false, part)
			}
			time.Sleep(windowRate / 3)
			if _, err := io.ReadFull(resp.Body, part); err != nil {
				t.Fatal(err)
			}
			for f := next[*http2.WindowUpdateFrame](p); f != nil; f = next[*http2.WindowUpdateFrame](p) {
				if f.StreamID == 1 {
					room += int(f.Increment)
				}
			}
			if room > streamWindow {
				t.Fatalf("the site may send %d bytes", room)
			}
		}
	})
	// Padding alone, such as that of a heartbeat, uses the window up, too.
	withPeer(t, func(t *testing.T, c *conn, p *peer) {
		start(t.Context(), c, "GET", nil)
		p.head(1, false, ":status", "200")
		room := streamWindow
		for range streamWindow / 100 {
			if room -= 256; room < 0 {
				t.Fatal("the window was not opened again")
			}
			p.WriteDataPadded(1, false, nil, make([]byte, 255))
			for f := next[*http2.WindowUpdateFrame](p); f != nil; f = next[*http2.WindowUpdateFrame](p) {
				if f.StreamID == 1 {
					room += int(f.Increment)
				}
			}
		}
	})
	// A site that does not care for windows is stopped.
	withPeer(t, func(t *testing.T, c *conn, p *peer) {
		got := start(t.Context(), c, "GET", nil)
		p.head(1, false, ":status", "200")
		resp := (<-got).resp
		for range streamWindow/16384 + 1 {
			p.WriteData(1, false, make([]byte, 16384))
		}
		if f := next[*http2.RSTStreamFrame](p); f == nil || f.ErrCode != http2.ErrCodeFlowControl {
			t.Errorf("%v", f)
		}
		if n, err := io.Copy(io.Discard, resp.Body); err == nil || n > streamWindow {
			t.Errorf("%d bytes, %v", n, err)
		}
	})
}

func TestContentLengthOverHTTP2(t *testing.T) {
	for sent, good := range map[string]bool{"": false, "abc": false, "abcd": true, "abcde": false} {
		withPeer(t, func(t *testing.T, c *conn, p *peer) {
			got := start(t.Context(), c, "GET", nil)
			p.head(1, false, ":status", "200", "content-length", "4")
			resp := (<-got).resp
			p.WriteData(1, true, []byte(sent))
			if b, err := io.ReadAll(resp.Body); (err == nil) != good || good && string(b) != sent {
				t.Errorf("%q: %q, %v", sent, b, err)
			}
		})
	}
	withPeer(t, func(t *testing.T, c *conn, p *peer) {
		got := start(t.Context(), c, "HEAD", nil)
		p.head(1, true, ":status", "200", "content-length", "4")
		if _, err := io.ReadAll((<-got).resp.Body); err != nil {
			t.Errorf("HEAD: %v", err)
		}
	})
}

func TestTheSiteIsToldThatAnAnswerIsNotWanted(t *testing.T) {
	cause := errors.New("enough")
	for name, headed := range map[string]bool{"before the head": false, "after it": true} {
		withPeer(t, func(t *testing.T, c *conn, p *peer) {
			ctx, cancel := context.WithCancelCause(t.Context())
			got := start(ctx, c, "GET", nil)
			if headed {
				p.head(1, false, ":status", "200")
				synctest.Wait()
			}
			cancel(cause)
			a := <-got
			if headed {
				_, a.err = a.resp.Body.Read(make([]byte, 1))
			}
			if !errors.Is(a.err, cause) {
				t.Errorf("%s: %v", name, a.err)
			}
			if f := next[*http2.RSTStreamFrame](p); f == nil || f.ErrCode != http2.ErrCodeCancel {
				t.Errorf("%s: %v", name, f)
			}
			p.WriteData(1, false, []byte("late")) // was on its way
			start(t.Context(), c, "GET", nil)
			if h := next[*http2.MetaHeadersFrame](p); h == nil || h.StreamID != 3 {
				t.Errorf("%s: the connection does not go on", name)
			}
		})
	}
}

func TestWhatNoSiteMaySend(t *testing.T) {
	for name, break_ := range map[string]func(p *peer){
		"push":                  func(p *peer) { p.WritePushPromise(http2.PushPromiseParam{StreamID: 1, PromiseID: 2, EndHeaders: true}) },
		"a stream of its own":   func(p *peer) { p.head(2, false, ":status", "200") },
		"a stream never opened": func(p *peer) { p.WriteData(99, false, []byte("x")) },
		"too large a window":    func(p *peer) { p.WriteWindowUpdate(0, 1<<31-1) },
		"a wrong setting":       func(p *peer) { p.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: 1}) },
	} {
		withPeer(t, func(t *testing.T, c *conn, p *peer) {
			got := start(t.Context(), c, "GET", nil)
			break_(p)
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
	for name, break_ := range map[string]func(p *peer){
		"no status":       func(p *peer) { p.head(1, false, "x", "y") },
		"a wrong one":     func(p *peer) { p.head(1, false, ":status", "abc") },
		"data first":      func(p *peer) { p.WriteData(1, false, []byte("x")) },
		"interim and end": func(p *peer) { p.head(1, true, ":status", "103") },
		"a long head": func(p *peer) {
			long := []string{":status", "200"}
			for i := range 300 {
				long = append(long, fmt.Sprint("x", i), strings.Repeat("x", 4000))
			}
			p.block.Reset()
			for i := 0; i < len(long); i += 2 {
				p.hpack.WriteField(hpack.HeaderField{Name: long[i], Value: long[i+1], Sensitive: true})
			}
			rest := p.block.Bytes()
			part := rest[:16384]
			rest = rest[16384:]
			p.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: part})
			for len(rest) > 0 {
				part := rest[:min(len(rest), 16384)]
				rest = rest[len(part):]
				p.WriteContinuation(1, len(rest) == 0, part)
			}
		},
	} {
		withPeer(t, func(t *testing.T, c *conn, p *peer) {
			got := start(t.Context(), c, "GET", nil)
			break_(p)
			synctest.Wait()
			select {
			case a := <-got:
				if a.err == nil {
					t.Errorf("%s: %+v", name, a)
				}
			default:
				t.Errorf("%s: the request goes on", name)
			}
		})
	}
}

func TestASiteMustBeginWithItsSettings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		p := newPeer(theirs)
		c, err := newConn(ours, New(Options{}), origin{})
		if err != nil {
			t.Fatal(err)
		}
		p.WritePing(false, [8]byte{})
		if next[*http2.GoAwayFrame](p) == nil || c.free() {
			t.Error("it goes on")
		}
		theirs.Close()
	})
}

func TestPingsAreAnswered(t *testing.T) {
	withPeer(t, func(t *testing.T, c *conn, p *peer) {
		p.WritePing(false, [8]byte{1, 2})
		if f := next[*http2.PingFrame](p); f == nil || !f.IsAck() || f.Data != [8]byte{1, 2} {
			t.Errorf("%v", f)
		}
		// Ours are asked for only after a while without a frame, and no answer is death.
		start(t.Context(), c, "GET", nil)
		for range 3 {
			time.Sleep(pingAfter)
			f := next[*http2.PingFrame](p)
			if f == nil || f.IsAck() {
				t.Fatalf("%v", f)
			}
			p.WritePing(true, f.Data)
			synctest.Wait()
		}
		time.Sleep(pingAfter + pingTimeout + time.Second)
		if c.free() {
			t.Error("a mute connection is kept")
		}
	})
}

func TestAnUnusedConnectionIsClosed(t *testing.T) {
	withPeer(t, func(t *testing.T, c *conn, p *peer) {
		got := start(t.Context(), c, "GET", nil)
		for range 2 * idleTimeout / pingAfter {
			time.Sleep(pingAfter)
			if f := next[*http2.PingFrame](p); f != nil {
				p.WritePing(true, f.Data)
			}
		}
		if !c.free() {
			t.Fatal("a connection in use was closed")
		}
		p.head(1, true, ":status", "204")
		<-got
		time.Sleep(pingAfter)
		if f := next[*http2.PingFrame](p); f != nil {
			p.WritePing(true, f.Data)
		}
		time.Sleep(idleTimeout - pingAfter - time.Second)
		if !c.free() {
			t.Fatal("it was closed too early")
		}
		time.Sleep(2 * time.Second)
		if c.free() {
			t.Error("it is kept")
		}
	})
}

// TestWhatWasNotActedOnIsSentAgain: over another connection where the site goes
// away, and not for ever where it refuses.
func TestWhatWasNotActedOnIsSentAgain(t *testing.T) {
	for name, c := range map[string]struct {
		refuse func(n int, fr *http2.Framer, id uint32)
		good   bool
		times  int
	}{
		"refused once": {func(n int, fr *http2.Framer, id uint32) {
			if n == 1 {
				fr.WriteRSTStream(id, http2.ErrCodeRefusedStream)
			}
		}, true, 2},
		"gone": {func(n int, fr *http2.Framer, id uint32) {
			if n == 1 {
				fr.WriteGoAway(0, http2.ErrCodeNo, nil)
			}
		}, true, 2},
		"refused always": {func(n int, fr *http2.Framer, id uint32) { fr.WriteRSTStream(id, http2.ErrCodeRefusedStream) }, false, 1 + maxTries},
		"reset":          {func(n int, fr *http2.Framer, id uint32) { fr.WriteRSTStream(id, http2.ErrCodeInternal) }, false, 1},
	} {
		t.Run(name, func(t *testing.T) {
			var times atomic.Int64
			s := newFrameServer(t)
			s.asked = func(fr *http2.Framer, id uint32) bool {
				n := int(times.Add(1))
				c.refuse(n, fr, id)
				return c.good && n > 1
			}
			tr := newTransport(t, s.server)
			req, _ := http.NewRequestWithContext(t.Context(), "POST", s.server.URL, strings.NewReader("body"))
			resp, err := tr.RoundTrip(req)
			if err == nil {
				resp.Body.Close()
			}
			if n := int(times.Load()); (err == nil) != c.good || n != c.times {
				t.Errorf("%v after %d times, want %d", err, n, c.times)
			}
		})
	}
}

// FuzzFrames has a site send anything: the request ends with the connection at
// the latest, and no frame brings the program down.
func FuzzFrames(f *testing.F) {
	var wire bytes.Buffer
	p := &peer{Framer: http2.NewFramer(&wire, nil)}
	p.hpack = hpack.NewEncoder(&p.block)
	p.head(1, false, ":status", "200", "content-length", "3")
	p.WriteDataPadded(1, false, []byte("ab"), []byte("\x00"))
	p.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 7}, http2.Setting{ID: http2.SettingHeaderTableSize, Val: 9})
	p.WriteGoAway(1, http2.ErrCodeNo, []byte("bye"))
	p.WriteWindowUpdate(1, 5)
	p.head(1, true, "x", "y")
	p.WriteRSTStream(1, http2.ErrCodeCancel)
	f.Add(wire.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		ours, theirs := net.Pipe()
		go io.Copy(io.Discard, theirs)
		c, err := newConn(ours, New(Options{}), origin{})
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			http2.NewFramer(theirs, nil).WriteSettings()
			theirs.Write(b)
			theirs.Close()
		}()
		req, _ := http.NewRequestWithContext(t.Context(), "POST", "https://site.test", strings.NewReader("body"))
		resp, err := c.RoundTrip(req)
		if err == nil {
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
		ours.Close()
	})
}
