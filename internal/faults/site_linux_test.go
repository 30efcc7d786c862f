package faults

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
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

// source is what a feed does for those who lose the thread.
type source struct {
	ids bool // events carry their number as id
	// replay: it goes on after Last-Event-ID or, without ids, begins each
	// connection with the last events.
	replay bool
}

func (s source) String() string { return fmt.Sprintf("ids=%v,replay=%v", s.ids, s.replay) }

// sources are all there are: the columns of the table.
var sources = []source{{true, true}, {true, false}, {false, true}, {false, false}}

// site is a feed of numbered events over real sockets. Event n happens n times
// every after the start, whether anybody listens or not.
type site struct {
	source
	every   time.Duration // the time between two events
	tail    int           // how many events a connection begins with that replays without ids
	trickle time.Duration // between two bytes of a line that drips
	start   time.Time
	server  *http.Server
	addr    string

	mu     sync.Mutex
	conns  []*wire // open streams, oldest first
	closed span    // when the market was closed
	answer http.HandlerFunc
	refuse map[string]bool // tokens
	banned string          // an exit
	extra  int             // events before the cursor that a replay repeats
	tokens int             // how many were given out
}

type span struct{ from, to time.Time }

// wire is one open stream.
type wire struct {
	conn  net.Conn // the site's end
	since time.Time
	token string
	exit  string
	ctx   context.Context
	mute  atomic.Bool // no bytes at all
	still atomic.Bool // comments, but no events
	drip  atomic.Bool // one byte at a time, slowly
	end   atomic.Bool // a clean end
	cut   atomic.Bool // an end inside an event

	// Once they have been looked for: the proxy that carries it, and that one's
	// end towards the client.
	via    *forward
	tunnel net.Conn
}

type connKey struct{}

func newSite(t *testing.T, source source, p pace) *site {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &site{
		source: source, every: p.every, tail: p.tail, trickle: p.trickle,
		start: time.Now(), addr: l.Addr().String(), refuse: map[string]bool{},
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/stream", s.stream)
	mux.HandleFunc("/token", s.grant)
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
	at := s.start.Add(time.Duration(n) * s.every)
	if c := s.closed; !c.from.IsZero() && at.After(c.from) {
		at = at.Add(c.to.Sub(c.from))
	}
	return at
}

// next is the number of the event that happens next.
func (s *site) next() int {
	n := int(time.Since(s.start)/s.every) + 1
	for n > 1 && time.Until(s.at(n-1)) > 0 {
		n--
	}
	return n
}

func (s *site) stream(w http.ResponseWriter, r *http.Request) {
	token, exit := r.Header.Get("Authorization"), strings.Split(r.RemoteAddr, ":")[0]
	s.mu.Lock()
	answer, refused, banned, extra := s.answer, s.refuse[token], s.banned == exit, s.extra
	s.mu.Unlock()
	switch {
	case answer != nil:
		answer(w, r)
		return
	case banned:
		http.Error(w, "not you", http.StatusForbidden)
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
	} else if s.replay && !s.ids {
		n = max(n-s.tail, 1)
	}
	s.mu.Lock()
	c.since = time.Now()
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

// grant gives out a token of OAuth 2, opaque and without an expiry.
func (s *site) grant(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	s.tokens++
	n := s.tokens
	s.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, `{"access_token":"token-%d","token_type":"bearer"}`, n)
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
				case <-time.After(s.trickle):
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

// reset closes a socket with an RST.
func (s *stage) reset(c net.Conn) {
	if err := c.(*net.TCPConn).SetLinger(0); err != nil {
		s.t.Error(err)
	}
	c.Close()
}

// oldest is the open stream that was opened first, nil without one.
func (s *site) oldest() *wire {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.conns) == 0 {
		return nil
	}
	return s.conns[0]
}

// lines is how many streams are open.
func (s *site) lines() int { return len(s.opened(time.Time{})) }

// any returns one of the open streams that nothing has happened to, nil without
// one.
func (s *site) any(rng *rand.Rand) *wire {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, i := range rng.Perm(len(s.conns)) {
		if !s.conns[i].faulty() {
			return s.conns[i]
		}
	}
	return nil
}

// sound is how many streams are open; -1 if one of them is faulty.
func (s *site) sound() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.answer != nil || slices.ContainsFunc(s.conns, (*wire).faulty) {
		return -1
	}
	return len(s.conns)
}

func (c *wire) faulty() bool {
	return c.mute.Load() || c.still.Load() || c.drip.Load() || c.end.Load() || c.cut.Load() || c.ctx.Err() != nil
}

// opened is when the open streams were opened that were opened after then, in
// order.
func (s *site) opened(then time.Time) (times []time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.conns {
		if c.since.After(then) {
			times = append(times, c.since)
		}
	}
	slices.SortFunc(times, time.Time.Compare)
	return times
}

// lift ends a ban and forgives a token, after so long.
func (s *site) lift(d time.Duration, w *wire) {
	time.AfterFunc(d, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.banned = ""
		delete(s.refuse, w.token)
	})
}

// answerFor answers requests with h for so long.
func (s *site) answerFor(d time.Duration, h http.HandlerFunc) {
	s.mu.Lock()
	s.answer = h
	s.mu.Unlock()
	time.AfterFunc(d, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.answer = nil
	})
}
