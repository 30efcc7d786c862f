package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
)

// h2Site serves HTTP/2 and counts its connections.
func h2Site(t *testing.T, h http.HandlerFunc) (s *httptest.Server, conns *atomic.Int64) {
	conns = new(atomic.Int64)
	s = httptest.NewUnstartedServer(h)
	s.EnableHTTP2 = true
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			conns.Add(1)
		}
	}
	s.StartTLS()
	t.Cleanup(s.Close)
	return s, conns
}

// feed says one thing and then holds the line until end is closed.
func feed(end <-chan struct{}) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, r.Proto)
		w.(http.Flusher).Flush()
		select {
		case <-end:
		case <-r.Context().Done():
		}
	}
}

func readProto(t *testing.T, resp *http.Response) {
	t.Helper()
	b := make([]byte, len("HTTP/2.0"))
	if _, err := io.ReadFull(resp.Body, b); err != nil || string(b) != "HTTP/2.0" {
		t.Fatalf("read %q, %v", b, err)
	}
}

func TestManyStreamsShareOneConnection(t *testing.T) {
	end := make(chan struct{})
	s, conns := h2Site(t, feed(end))
	tr := newTransport(t, s)
	readProto(t, get(t, tr, s.URL))
	var wg sync.WaitGroup
	for range 50 {
		resp := get(t, tr, s.URL)
		wg.Go(func() {
			if got, err := io.ReadAll(resp.Body); err != nil || string(got) != "HTTP/2.0" {
				t.Errorf("read %q, %v", got, err)
			}
		})
	}
	close(end)
	wg.Wait()
	if n := conns.Load(); n != 1 {
		t.Errorf("51 streams took %d connections", n)
	}
}

func TestRequestsThatDialTogetherShareOneConnection(t *testing.T) {
	end := make(chan struct{})
	s, conns := h2Site(t, feed(end))
	tr := newTransport(t, s)
	// Nobody gets through before all have dialled.
	var dialled sync.WaitGroup
	dialled.Add(10)
	tr.options.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, network, addr)
		dialled.Done()
		dialled.Wait()
		return c, err
	}
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() { readProto(t, get(t, tr, s.URL)) })
	}
	wg.Wait()
	waitFor(t, func() bool { return conns.Load() == 10 }) // the site may see one last that is closed already
	tr.mu.Lock()
	kept := len(tr.conns)
	tr.mu.Unlock()
	if kept != 1 {
		t.Errorf("%d of 10 connections were kept, want 1", kept)
	}
	close(end)
}

func TestMoreStreamsThanAConnectionTakes(t *testing.T) {
	end := make(chan struct{})
	s := httptest.NewUnstartedServer(feed(end))
	s.EnableHTTP2 = true
	s.Config.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: 3}
	s.StartTLS()
	defer s.Close()
	tr := newTransport(t, s)
	var bodies []io.ReadCloser
	for range 8 {
		resp := get(t, tr, s.URL)
		readProto(t, resp)
		bodies = append(bodies, resp.Body)
	}
	close(end)
	for _, b := range bodies {
		if _, err := io.ReadAll(b); err != nil {
			t.Error(err)
		}
		b.Close()
	}
	tr.CloseIdleConnections()
	waitFor(t, func() bool {
		tr.mu.Lock()
		defer tr.mu.Unlock()
		return len(tr.conns) == 0
	})
}

// waitFor waits for what another goroutine is about to do.
func waitFor(t *testing.T, done func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for !done() {
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			t.Fatal("it never happened")
		}
	}
}

func TestGoAwayIsAnnouncedWhileTheStreamGoesOn(t *testing.T) {
	say, end := make(chan string), make(chan struct{})
	s, conns := h2Site(t, func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "HTTP/2.0")
		w.(http.Flusher).Flush()
		if r.URL.Path == "/first" {
			for text := range say {
				io.WriteString(w, text)
				w.(http.Flusher).Flush()
			}
		}
		<-end
	})
	tr := newTransport(t, s)
	first := get(t, tr, s.URL+"/first")
	readProto(t, first)
	leaving := make(chan struct{})
	first.Body.(*Body).OnLeaving(func() { close(leaving) })
	unheard := first.Body.(*Body).OnLeaving(func() { t.Error("what was called off was called") })
	if first.Body.(*Body).Leaving() || !unheard() {
		t.Fatal("the server has announced nothing yet")
	}

	// The handler is that of a stream that never ends: the server waits for
	// it in vain.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	shut := make(chan error)
	go func() { shut <- s.Config.Shutdown(ctx) }()
	<-leaving

	say <- "still here"
	b := make([]byte, len("still here"))
	if _, err := io.ReadFull(first.Body, b); err != nil || string(b) != "still here" {
		t.Fatalf("after the announcement: %q, %v", b, err)
	}
	close(say)
	cancel()
	<-shut
	s.CloseClientConnections()
	_, err := io.ReadAll(first.Body)
	if _, ok := errors.AsType[*GoAwayError](err); !ok {
		t.Errorf("the end is %v, want a *GoAwayError", err)
	}
	close(end)
	if n := conns.Load(); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
}

// TestAfterGoAwayRequestsTakeANewConnection uses a server of frames, which
// stays when it has said that it leaves.
func TestAfterGoAwayRequestsTakeANewConnection(t *testing.T) {
	ln := newFrameServer(t)
	tr := newTransport(t, ln.server)
	first := get(t, tr, ln.server.URL)
	one := <-ln.conns
	if err := one.fr.WriteGoAway(one.stream, http2.ErrCodeNo, nil); err != nil {
		t.Fatal(err)
	}
	waitFor(t, first.Body.(*Body).Leaving)
	get(t, tr, ln.server.URL)
	select {
	case <-ln.conns:
	case <-time.After(30 * time.Second):
		t.Fatal("no new connection")
	}
	if err := one.fr.WriteData(one.stream, true, []byte("end")); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(first.Body); err != nil || string(got) != "end" {
		t.Errorf("a stream that ended in good order after the announcement: %q, %v", got, err)
	}
}

// frameServer answers each request with a head and hands the connection out.
type frameServer struct {
	server *httptest.Server
	conns  chan *frameConn
	asked  func(fr *http2.Framer, id uint32) bool // whether to answer; nil answers all
}

type frameConn struct {
	fr     *http2.Framer
	conn   net.Conn
	stream uint32
}

func newFrameServer(t *testing.T) *frameServer {
	s := &frameServer{conns: make(chan *frameConn, 8)}
	s.server = httptest.NewUnstartedServer(nil)
	s.server.EnableHTTP2 = true
	s.server.Config.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){"h2": s.serve}
	s.server.StartTLS()
	t.Cleanup(s.server.CloseClientConnections)
	return s
}

func (s *frameServer) serve(_ *http.Server, c *tls.Conn, _ http.Handler) {
	preface := make([]byte, len(http2.ClientPreface))
	if _, err := io.ReadFull(c, preface); err != nil {
		return
	}
	f := &frameConn{fr: http2.NewFramer(c, c), conn: c}
	f.fr.WriteSettings()
	for {
		frame, err := f.fr.ReadFrame()
		if err != nil {
			return
		}
		if h, ok := frame.(*http2.HeadersFrame); ok {
			if f.stream = h.StreamID; s.asked != nil && !s.asked(f.fr, h.StreamID) {
				continue
			}
			// :status 200 of the static table (RFC 7541, appendix A).
			f.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: h.StreamID, BlockFragment: []byte{0x88}, EndHeaders: true})
			s.conns <- f
		}
	}
}

// TestADeadConnectionIsFoundByPing has the server answer, and then read on and
// say nothing at all: the client's pings remain unanswered.
func TestADeadConnectionIsFoundByPing(t *testing.T) {
	withPeer(t, func(t *testing.T, c *conn, p *peer) {
		if sum := c.t.pingAfter + c.t.pingTimeout; c.t.pingAfter <= 0 || sum > 30*time.Second {
			t.Errorf("by default a dead connection is found after %v", sum)
		}
		got := start(t.Context(), c, "GET", nil)
		p.head(1, false, ":status", "200")
		// Bounded by the bubble: without pings it would never end.
		if _, err := io.ReadAll((<-got).resp.Body); !errors.Is(err, errMute) {
			t.Errorf("a dead connection ended with %v", err)
		} else if _, ok := errors.AsType[*GoAwayError](err); ok {
			t.Errorf("a dead connection is no announcement: %v", err)
		}
	})
}

func TestAbandonClosesADeadConnectionAndSparesALivingOne(t *testing.T) {
	for _, c := range []struct{ alive, since bool }{{false, false}, {true, false}, {true, true}} {
		alive, since := c.alive, c.since
		s := newFrameServer(t)
		tr := newTransport(t, s.server)
		mute, other := get(t, tr, s.server.URL), get(t, tr, s.server.URL)
		c := <-s.conns
		<-s.conns
		over := make(chan error, 1)
		go func() { _, err := io.ReadAll(mute.Body); over <- err }()
		b := mute.Body.(*Body)
		waitFor(t, func() bool { return b.since.at() != 0 })
		at := b.since.at()
		waitFor(t, func() bool { return now() > at })
		say := func() {
			if err := c.fr.WriteData(c.stream, false, []byte("x")); err != nil { // on the other stream
				t.Fatal(err)
			}
			if _, err := other.Body.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
		}
		if alive {
			say()
		}
		b.Abandon()
		if err := <-over; err == nil {
			t.Error("an abandoned body ended cleanly")
		}
		if !alive {
			if _, err := other.Body.Read(make([]byte, 1)); err == nil {
				t.Error("the dead connection goes on")
			}
		}
		if since {
			at := b.conn.doubted.Load()
			waitFor(t, func() bool { return now() > at })
			say()
		}
		get(t, tr, s.server.URL)
		if fresh := (<-s.conns).conn != c.conn; fresh == since {
			t.Errorf("alive %v, also since then %v: the next request took a fresh connection: %v", alive, since, fresh)
		}
	}
}

func TestConnectionsCloseWhenTheirLastStreamEnds(t *testing.T) {
	s, _ := h2Site(t, feed(nil))
	tr := newTransport(t, s)
	resp := get(t, tr, s.URL)
	readProto(t, resp)
	tr.CloseIdleConnections()
	open := func() int {
		tr.mu.Lock()
		defer tr.mu.Unlock()
		return len(tr.conns)
	}
	if open() != 1 {
		t.Fatal("a connection in use was closed")
	}
	began := time.Now()
	resp.Body.Close()
	waitFor(t, func() bool { return open() == 0 })
	if took := time.Since(began); took > idleTimeout/2 {
		t.Errorf("an unused connection was kept for %v", took)
	}
}

func TestHeaderTimeout(t *testing.T) {
	for _, start := range []func(*httptest.Server){(*httptest.Server).Start, (*httptest.Server).StartTLS} {
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
		s.EnableHTTP2 = true
		start(s)
		defer s.Close()
		tr := New(Options{DialContext: new(net.Dialer).DialContext, HeaderTimeout: 50 * time.Millisecond, TLS: s.Client().Transport.(*http.Transport).TLSClientConfig})
		defer tr.CloseIdleConnections()
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		req, _ := http.NewRequestWithContext(ctx, "GET", s.URL, nil)
		resp, err := tr.RoundTrip(req)
		if err == nil {
			resp.Body.Close()
		}
		if err == nil || ctx.Err() != nil {
			t.Errorf("a head that never comes was waited for: %v", err)
		}
	}
}

func TestMomentsAreNeverZero(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s since
		if s.begin(); s.at() == 0 {
			t.Error("a read that began at once counts as none")
		}
		if s.end(); s.at() != 0 {
			t.Error("a read that ended counts as one")
		}
	})
}
