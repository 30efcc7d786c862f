package transport

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
)

// TestTheAnswerIsReadWhileTheRequestIsSent has a site give back what it gets
// as it comes: it takes no more before its answer is read.
func TestTheAnswerIsReadWhileTheRequestIsSent(t *testing.T) {
	body := strings.Repeat("0123456789", 100_000)
	scripted(t, func(t *testing.T, s *script, tr *Transport) {
		if got, err := ask(tr, "POST", body); err != nil || got != body {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		// Sites that answer early often close the connection soon after.
		wantAnswer(t, tr, "POST", "body")
		wantAnswer(t, tr, "POST", "body")
		if s.conns != 2 {
			t.Errorf("%d connections, want 2", s.conns)
		}
	}, func(c net.Conn, r *bufio.Reader) {
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", req.ContentLength)
		io.Copy(c, req.Body)
		says(ok)(c, r)
	}, says(ok, ok))
}

// waiting is a body that has no end before it is closed.
type waiting struct {
	closed chan struct{}
	once   sync.Once
}

func (w *waiting) Read([]byte) (int, error) {
	<-w.closed
	return 0, errors.New("closed")
}

func (w *waiting) Close() error {
	w.once.Do(func() { close(w.closed) })
	return nil
}

// TestABodyThatWaitsIsClosed: what ends a request ends the one who sends its
// body, too. The bubble would not end otherwise.
func TestABodyThatWaitsIsClosed(t *testing.T) {
	post := func(ctx context.Context) *http.Request {
		req, _ := http.NewRequestWithContext(ctx, "POST", "https://site.test", &waiting{closed: make(chan struct{})})
		return req
	}
	for name, answers := range map[string]bool{"answered": true, "cancelled": false} {
		scripted(t, func(t *testing.T, s *script, tr *Transport) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			time.AfterFunc(time.Second, cancel)
			req := post(ctx)
			req.URL.Scheme = "http"
			resp, err := tr.RoundTrip(req)
			if (err == nil) != answers {
				t.Fatalf("%s: %v", name, err)
			}
			if answers {
				resp.Body.Close()
			}
		}, func(c net.Conn, r *bufio.Reader) {
			if http.ReadRequest(r); answers {
				io.WriteString(c, ok)
			}
			io.Copy(io.Discard, r)
		})
		withPeer(t, func(t *testing.T, c *conn, p *peer) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			got := make(chan answered, 1)
			go func() {
				resp, err := c.RoundTrip(post(ctx))
				got <- answered{resp, err}
			}()
			synctest.Wait()
			if answers {
				p.head(1, true, ":status", "200")
			} else {
				cancel()
			}
			if a := <-got; (a.err == nil) != answers {
				t.Errorf("%s: %v", name, a.err)
			}
			want := map[bool]http2.ErrCode{true: http2.ErrCodeNo, false: http2.ErrCodeCancel}[answers]
			if f := next[*http2.RSTStreamFrame](p); f == nil || f.ErrCode != want {
				t.Errorf("%s: %v", name, f)
			}
		})
	}
}

// slow is a body that takes its time.
type slow struct{ left int }

func (s *slow) Read(p []byte) (int, error) {
	if s.left == 0 {
		return 0, io.EOF
	}
	time.Sleep(time.Second)
	s.left--
	p[0] = 'x'
	return 1, nil
}

func TestTheHeadIsWaitedForFromTheEndOfTheRequest(t *testing.T) {
	const limit = 10 * time.Second
	check := func(t *testing.T, rt http.RoundTripper, answers bool) {
		t.Helper()
		began := time.Now()
		req, _ := http.NewRequestWithContext(t.Context(), "POST", "http://site.test", &slow{left: 20})
		resp, err := rt.RoundTrip(req)
		if answers {
			if err != nil {
				t.Error(err)
			}
		} else if took := time.Since(began); err == nil || took != 20*time.Second+limit {
			t.Errorf("%v after %v", err, took)
		}
		if err == nil {
			resp.Body.Close()
		}
	}
	for _, answers := range []bool{true, false} {
		scripted(t, func(t *testing.T, s *script, tr *Transport) { check(t, tr, answers) }, func(c net.Conn, r *bufio.Reader) {
			if said(r); answers {
				io.WriteString(c, ok)
			}
			r.Peek(1)
		})
		withPeer(t, func(t *testing.T, c *conn, p *peer) {
			c.t.options.HeaderTimeout = limit
			go func() {
				for f := range p.frames {
					if d, ok := f.(*http2.DataFrame); ok && d.StreamEnded() && answers {
						p.head(1, true, ":status", "200")
					}
					if f, ok := f.(*http2.PingFrame); ok && !f.IsAck() {
						p.WritePing(true, f.Data)
					}
				}
			}()
			check(t, c, answers)
		})
	}
}

// TestAnswersWithoutABody announce the length of what they would have.
func TestAnswersWithoutABody(t *testing.T) {
	for _, c := range []struct {
		method, status, data string
		good                 bool
	}{
		{"GET", "304", "", true}, {"GET", "204", "", true}, {"HEAD", "200", "", true},
		{"GET", "200", "", false}, {"HEAD", "200", "x", false}, {"GET", "304", "x", false},
	} {
		withPeer(t, func(t *testing.T, conn *conn, p *peer) {
			got := start(t.Context(), conn, c.method, nil)
			p.head(1, c.data == "", ":status", c.status, "content-length", "4")
			if c.data != "" {
				p.WriteData(1, true, []byte(c.data))
			}
			resp := (<-got).resp
			if b, err := io.ReadAll(resp.Body); (err == nil) != c.good || len(b) > 0 || resp.ContentLength != 4 {
				t.Errorf("%+v: %q, %v, length %d", c, b, err, resp.ContentLength)
			}
		})
	}
	// Encodings of nothing are nothing.
	for _, encoding := range strings.Split(AcceptEncoding, ", ") {
		scripted(t, func(t *testing.T, s *script, tr *Transport) {
			for range 2 {
				if got, err := ask(tr, "GET", ""); err != nil || got != "" {
					t.Errorf("%s: %q, %v", encoding, got, err)
				}
			}
		}, says("HTTP/1.1 304 Not Modified\r\nContent-Encoding: "+encoding+"\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Encoding: "+encoding+"\r\n\r\n"))
	}
}

// TestAStreamIsResetOnce by either side: sites count what clients reset.
func TestAStreamIsResetOnce(t *testing.T) {
	for name, end := range map[string]func(p *peer, cancel func()){
		"cancelled":         func(_ *peer, cancel func()) { cancel() },
		"wrong":             func(p *peer, _ func()) { p.WriteData(1, false, []byte("x")) },
		"reset by the site": func(p *peer, _ func()) { p.WriteRSTStream(1, http2.ErrCodeInternal) },
	} {
		withPeer(t, func(t *testing.T, c *conn, p *peer) {
			ctx, cancel := context.WithCancel(t.Context())
			got := start(ctx, c, "POST", strings.NewReader(strings.Repeat("x", 1<<20)))
			end(p, cancel)
			if a := <-got; a.err == nil {
				t.Fatalf("%s: %+v", name, a)
			}
			cancel()
			resets, want := 0, 1
			for next[*http2.RSTStreamFrame](p) != nil {
				resets++
			}
			if strings.HasSuffix(name, "site") {
				want = 0
			}
			if resets != want {
				t.Errorf("%s: %d resets, want %d", name, resets, want)
			}
		})
	}
}

// hooked is a context whose end is never waited for.
type hooked struct {
	context.Context
	done   chan struct{}
	during func()
	stops  atomic.Int64
}

func (h *hooked) Done() <-chan struct{} { return h.done }
func (h *hooked) Value(any) any         { return nil }
func (h *hooked) AfterFunc(func()) func() bool {
	h.during()
	return func() bool { h.stops.Add(1); return true }
}

// TestAnAnswerThatEndsAtOnceLetsGoOfItsContext: a long-lived context would
// keep each of them.
func TestAnAnswerThatEndsAtOnceLetsGoOfItsContext(t *testing.T) {
	withPeer(t, func(t *testing.T, c *conn, p *peer) {
		ctx := &hooked{Context: t.Context(), done: make(chan struct{})}
		ctx.during = func() {
			p.head(1, true, ":status", "204")
			for c.stream(1) != nil {
				time.Sleep(time.Millisecond)
			}
		}
		req, _ := http.NewRequestWithContext(ctx, "GET", "https://site.test", nil)
		if _, err := c.RoundTrip(req); err != nil {
			t.Fatal(err)
		}
		if n := ctx.stops.Load(); n != 1 {
			t.Errorf("it was called off %d times, want once", n)
		}
	})
}

// TestClosingWhatRestsSparesWhatBegins closes idle connections all the time.
func TestClosingWhatRestsSparesWhatBegins(t *testing.T) {
	s, _ := h2Site(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") })
	tr := newTransport(t, s)
	over := make(chan struct{})
	var closer, askers sync.WaitGroup
	closer.Go(func() {
		for {
			select {
			case <-over:
				return
			default:
				tr.CloseIdleConnections()
			}
		}
	})
	for range 4 {
		askers.Go(func() {
			for range 300 {
				req, _ := http.NewRequestWithContext(t.Context(), "GET", s.URL, nil)
				resp, err := tr.RoundTrip(req)
				if err != nil {
					t.Error(err)
					return
				}
				if got, err := io.ReadAll(resp.Body); err != nil || string(got) != "ok" {
					t.Errorf("%q, %v", got, err)
					return
				}
			}
		})
	}
	askers.Wait()
	close(over)
	closer.Wait()
}

// clogged is a connection that takes its time to be closed, as TLS does with a
// site that does not read.
type clogged struct {
	net.Conn
	closing, free chan struct{}
}

func (c *clogged) Close() error {
	close(c.closing)
	<-c.free
	return c.Conn.Close()
}

func TestAConnectionThatClosesSlowlyHoldsNobodyUp(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") }))
	defer s.Close()
	tr := newTransport(t, nil)
	dial := tr.options.DialContext
	slow := &clogged{closing: make(chan struct{}), free: make(chan struct{})}
	tr.options.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		tr.options.DialContext = dial
		var err error
		slow.Conn, err = dial(ctx, network, addr)
		return slow, err
	}
	first := get(t, tr, s.URL)
	tr.CloseIdleConnections()
	var wg sync.WaitGroup
	wg.Go(func() { io.ReadAll(first.Body) })
	<-slow.closing
	second := make(chan *http.Response)
	go func() { second <- get(t, tr, s.URL) }()
	select {
	case <-second:
	case <-time.After(10 * time.Second):
		t.Error("another request waits for the connection to be closed")
	}
	close(slow.free)
	wg.Wait()
}

// TestASiteThatTakesNothing says so before it is asked.
func TestASiteThatTakesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		p := newPeer(theirs)
		c, err := newConn(ours, New(Options{}), origin{})
		if err != nil {
			t.Fatal(err)
		}
		p.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 0})
		synctest.Wait()
		req, _ := http.NewRequestWithContext(t.Context(), "GET", "https://site.test", nil)
		_, err = c.RoundTrip(req)
		if f, ok := errors.AsType[full](err); !ok || !errors.Is(f.why, errNone) {
			t.Errorf("%v: it would be asked for ever", err)
		}
		theirs.Close()
	})
}

// dials counts who dials: now, and at the same time at most.
type dials struct{ now, together atomic.Int64 }

// limited is a site that takes few requests over a connection, each of which
// lasts a while, and counts who dials.
func limited(t *testing.T, hold time.Duration) (tr *Transport, url string, d *dials) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "ok")
		w.(http.Flusher).Flush()
		if r.URL.Path == "/hold" {
			<-r.Context().Done()
		}
	}))
	s.EnableHTTP2 = true
	s.Config.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: 3}
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // handshakes that are called off
	s.StartTLS()
	t.Cleanup(s.Close)
	tr = newTransport(t, s)
	d = &dials{}
	dial := tr.options.DialContext
	tr.options.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		n := d.now.Add(1)
		defer d.now.Add(-1)
		for old := d.together.Load(); n > old && !d.together.CompareAndSwap(old, n); old = d.together.Load() {
		}
		select { // so that whoever dials too meets this one
		case <-time.After(hold):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		return dial(ctx, network, addr)
	}
	return tr, s.URL, d
}

func TestOneConnectionIsMadeForAllThatWait(t *testing.T) {
	tr, url, d := limited(t, 10*time.Millisecond)
	var wg sync.WaitGroup
	all := func(path string) {
		for range 20 {
			wg.Go(func() {
				req, _ := http.NewRequestWithContext(t.Context(), "GET", url+path, nil)
				resp, err := tr.RoundTrip(req)
				if err != nil {
					t.Error(err)
					return
				}
				t.Cleanup(func() { resp.Body.Close() })
				io.ReadFull(resp.Body, make([]byte, 2))
			})
		}
		wg.Wait()
	}
	all("/hold")                                         // nobody knows yet what the site speaks, nor how much it takes
	waitFor(t, func() bool { return d.now.Load() == 0 }) // those whose requests others have carried meanwhile
	d.together.Store(0)
	all("/hold")
	if n := d.together.Load(); n != 1 {
		t.Errorf("%d connections were being made at the same time", n)
	}
}

// TestADialThatFailsFailsForAllThatWait: where each dialled in its turn the last
// of many would wait for as many time-outs. Who comes later tries anew, and so
// does the next one where a dial was called off.
func TestADialThatFailsFailsForAllThatWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const many, timeout = 100, 15 * time.Second
		cause := errors.New("no answer within the dial timeout")
		dials := 0
		tr := New(Options{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			dials++ // one at a time, see below
			select {
			case <-time.After(timeout):
				return nil, cause
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
		}})
		tr.learn(origin{true, "site.test:443"}, 100)
		ask := func(ctx context.Context) error {
			req, _ := http.NewRequestWithContext(ctx, "GET", "https://site.test/", nil)
			_, err := tr.RoundTrip(req)
			return err
		}
		ctx, cancel := context.WithCancel(t.Context())
		began := time.Now()
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := ask(ctx); !errors.Is(err, context.Canceled) {
				t.Errorf("the one that was called off: %v", err)
			}
		})
		synctest.Wait()
		for range many {
			wg.Go(func() {
				if err := ask(t.Context()); !errors.Is(err, cause) {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		cancel()
		wg.Wait()
		if took := time.Since(began); took != timeout || dials != 2 {
			t.Errorf("%v, %d dials", took, dials)
		}
		if err := ask(t.Context()); !errors.Is(err, cause) || dials != 3 {
			t.Errorf("who comes later: %v, %d dials", err, dials)
		}
	})
}

func TestWhoWaitsForTheDialOfAnotherWaitsNoLongerThanItsContext(t *testing.T) {
	tr, url, _ := limited(t, 0)
	for range 3 {
		readOK(t, get(t, tr, url+"/hold"))
	}
	var to origin
	tr.mu.Lock()
	for c := range tr.conns {
		to = c.to
	}
	tr.mu.Unlock()
	made, _ := tr.begin(to, new(*dialing))
	if made == nil {
		t.Fatal("somebody dials")
	}
	defer made(nil)
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(10*time.Millisecond, func() { cancel(cause) })
	req, _ := http.NewRequestWithContext(ctx, "GET", url, nil)
	if _, err := tr.RoundTrip(req); !errors.Is(err, cause) {
		t.Error(err)
	}
}

func readOK(t *testing.T, resp *http.Response) {
	t.Helper()
	b := make([]byte, 2)
	if _, err := io.ReadFull(resp.Body, b); err != nil || string(b) != "ok" {
		t.Fatalf("%q, %v", b, err)
	}
}

// TestAnswersThatNobodyReadsHoldUpNoOther has as many as fill the window of the
// connection, and says how much of them waits in memory.
func TestAnswersThatNobodyReadsHoldUpNoOther(t *testing.T) {
	const many = connWindow/streamWindow + 10
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "ok")
		if r.URL.Path == "/much" {
			w.Write(make([]byte, wideWindow))
		}
	}))
	s.EnableHTTP2 = true
	s.Config.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: 2 * many}
	s.StartTLS()
	t.Cleanup(s.Close) // after those of the answers
	tr := newTransport(t, s)
	var unread []*stream
	for range many {
		unread = append(unread, get(t, tr, s.URL+"/much").Body.(*Body).wire.ReadCloser.(*stream))
	}
	for _, o := range unread {
		waitFor(t, func() bool {
			o.mu.Lock()
			defer o.mu.Unlock()
			return o.room == 0
		})
	}
	readOK(t, get(t, tr, s.URL))
	held := 0
	for _, o := range unread {
		for c := o.first; c != nil; c = c.next {
			held += cap(c.b)
		}
	}
	if held > many*streamWindow*5/4 {
		t.Errorf("%d bytes are held for %d", held, many*streamWindow)
	}
	// They come whole when they are read at last.
	if b, err := io.ReadAll(unread[0]); err != nil || len(b) != 2+wideWindow {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}
