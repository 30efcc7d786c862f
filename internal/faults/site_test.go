package faults

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// every is the time between two events of the site's feed.
const every = 10 * time.Millisecond

// site is a feed of numbered events over real sockets. Event n happens n times
// every after the start, whether anybody listens or not.
type site struct {
	ids    bool // events carry their number as id
	replay bool // Last-Event-ID is honoured
	start  time.Time
	server *http.Server
	addr   string

	mu     sync.Mutex
	conns  []*wire // open streams, oldest first
	closed span    // when the market was closed
	answer http.HandlerFunc
	refuse map[string]bool // tokens
	extra  int             // events before the cursor that a replay repeats
}

type span struct{ from, to time.Time }

// wire is one open stream.
type wire struct {
	conn  net.Conn // the site's end
	token string
	exit  string
	ctx   context.Context
	mute  atomic.Bool // no bytes at all
	still atomic.Bool // comments, but no events
	drip  atomic.Bool // one byte at a time, slowly
	end   atomic.Bool // a clean end
	cut   atomic.Bool // an end inside an event
}

type connKey struct{}

func newSite(t *testing.T, l net.Listener, ids, replay bool) *site {
	t.Helper()
	s := &site{ids: ids, replay: replay, start: time.Now(), addr: l.Addr().String(), refuse: map[string]bool{}}
	mux := http.NewServeMux()
	mux.HandleFunc("/stream", s.stream)
	s.server = &http.Server{Handler: mux, ConnContext: func(ctx context.Context, c net.Conn) context.Context {
		return context.WithValue(ctx, connKey{}, c)
	}}
	served := make(chan error, 1)
	go func() { served <- s.server.Serve(l) }()
	t.Cleanup(func() {
		s.server.Close()
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	return s
}

// at is when event n happens. While the market is closed none does.
func (s *site) at(n int) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := s.start.Add(time.Duration(n) * every)
	if c := s.closed; !c.from.IsZero() && at.After(c.from) {
		at = at.Add(c.to.Sub(c.from))
	}
	return at
}

// next is the number of the event that happens next.
func (s *site) next() int {
	n := int(time.Since(s.start)/every) + 1
	for n > 1 && time.Until(s.at(n-1)) > 0 {
		n--
	}
	return n
}

func (s *site) stream(w http.ResponseWriter, r *http.Request) {
	token, exit := r.Header.Get("Authorization"), strings.Split(r.RemoteAddr, ":")[0]
	s.mu.Lock()
	answer, refused, extra := s.answer, s.refuse[token], s.extra
	s.mu.Unlock()
	switch {
	case answer != nil:
		answer(w, r)
		return
	case refused:
		http.Error(w, "the token is not good any more", http.StatusUnauthorized)
		return
	}
	c := &wire{conn: r.Context().Value(connKey{}).(net.Conn), token: token, exit: exit, ctx: r.Context()}
	n := s.next()
	if last := r.Header.Get("Last-Event-ID"); last != "" && s.replay {
		if from, err := strconv.Atoi(last); err == nil {
			n = max(from+1-extra, 1)
		}
	}
	s.mu.Lock()
	s.conns = append(s.conns, c)
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.conns = slices.DeleteFunc(s.conns, func(o *wire) bool { return o == c })
		s.mu.Unlock()
	}()
	w.Header().Set("Content-Type", "text/event-stream")
	w.WriteHeader(http.StatusOK)
	s.send(w, c, n)
}

// send writes events from n on until the stream ends.
func (s *site) send(w http.ResponseWriter, c *wire, n int) {
	flush := http.NewResponseController(w)
	_ = flush.Flush()
	for ; ; n++ {
		if wait := time.Until(s.at(n)); wait > 0 {
			select {
			case <-time.After(wait):
			case <-c.ctx.Done():
				return
			}
		}
		if c.ctx.Err() != nil {
			return
		}
		text := fmt.Sprintf("data: {\"n\":%d}\n\n", n)
		if s.ids {
			text = fmt.Sprintf("id: %d\n%s", n, text)
		}
		switch {
		case c.mute.Load():
			<-c.ctx.Done() // this stream sends nothing more, ever
			return
		case c.end.Load():
			return
		case c.cut.Load():
			_, _ = io.WriteString(w, text[:len(text)-2])
			return
		case c.still.Load():
			text = ": still here\n\n"
		}
		if c.drip.Load() {
			for i := range len(text) {
				_, _ = io.WriteString(w, text[i:i+1])
				_ = flush.Flush()
				select {
				case <-time.After(100 * time.Millisecond):
				case <-c.ctx.Done():
					return
				}
			}
			continue
		}
		if _, err := io.WriteString(w, text); err != nil {
			return
		}
		if err := flush.Flush(); err != nil {
			return
		}
	}
}

// first waits for an open stream and returns the oldest.
func (s *site) first(t *testing.T) *wire {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		s.mu.Lock()
		if len(s.conns) > 0 {
			defer s.mu.Unlock()
			return s.conns[0]
		}
		s.mu.Unlock()
	}
	t.Fatal("nobody has opened the stream")
	return nil
}

// lines is how many streams are open.
func (s *site) lines() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

// answerFor answers requests with h for so long.
func (s *site) answerFor(t *testing.T, d time.Duration, h http.HandlerFunc) {
	s.mu.Lock()
	s.answer = h
	s.mu.Unlock()
	timer := time.AfterFunc(d, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.answer = nil
	})
	t.Cleanup(func() { timer.Stop() })
}

// forward is a CONNECT proxy that leaves from an address of its own.
type forward struct {
	addr   string
	mu     sync.Mutex
	status int // refuse with it
	open   []tunnel
}

// tunnel is what the proxy holds of one: its ends towards the client and the
// site.
type tunnel struct{ down, up net.Conn }

func newForward(t *testing.T, from string) *forward {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &forward{addr: l.Addr().String()}
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		status := f.status
		f.mu.Unlock()
		if status != 0 {
			w.WriteHeader(status)
			return
		}
		up, err := dialer.DialContext(r.Context(), "tcp", r.Host)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		down, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			up.Close()
			return
		}
		f.mu.Lock()
		f.open = append(f.open, tunnel{down, up})
		f.mu.Unlock()
		_, _ = io.WriteString(down, "HTTP/1.1 200 OK\r\n\r\n")
		go func() { _, _ = io.Copy(up, down); up.Close() }()
		_, _ = io.Copy(down, up)
		down.Close()
	})}
	go server.Serve(l)
	t.Cleanup(func() {
		server.Close()
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, c := range f.open {
			c.down.Close()
		}
	})
	return f
}

// carries is the proxy's end, towards the client, of the tunnel whose other end
// the site sees; nil when it is not one of this proxy's.
func (f *forward) carries(site net.Conn) net.Conn {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.open {
		if c.up.LocalAddr().String() == site.RemoteAddr().String() {
			return c.down
		}
	}
	return nil
}

func (f *forward) refuse(status int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.status = status
}
