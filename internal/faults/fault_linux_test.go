package faults

import (
	"fmt"
	"net/http"
	"testing"
	"time"
)

// pace is how fast everything goes: the feed, its troubles, and the patience
// of who holds it.
type pace struct {
	every      time.Duration // between two events
	tail       int           // how many events a connection begins with that replays without ids
	trickle    time.Duration // between two bytes of a line that drips
	trouble    time.Duration // how long the site is in trouble
	retryAfter int           // seconds that the site asks to wait
	night      time.Duration // how long the market is closed
	warm       time.Duration // how long the stream is held before the fault

	stale, quiet   time.Duration // of the stream
	min, max       time.Duration // between two connections
	refused        time.Duration // until the pool tries a refused password again
	lasts, pending time.Duration // how long the stream has to go on afterwards, and how long that may take
	stall          time.Duration // the longest pause between two events that is none
}

// short is for every run of the tests, long as it is in earnest: the settings
// of the program are left as they come, but for quiet_after, which has none.
func short(lines int) pace {
	p := pace{
		every: 10 * time.Millisecond, tail: 800, trickle: 100 * time.Millisecond,
		trouble: time.Second, retryAfter: 1, night: 2 * time.Second, warm: 300 * time.Millisecond,
		stale: 300 * time.Millisecond, quiet: 800 * time.Millisecond,
		min: 50 * time.Millisecond, max: 500 * time.Millisecond, refused: 400 * time.Millisecond,
		lasts: 300 * time.Millisecond, pending: 30 * time.Second, stall: 150 * time.Millisecond,
	}
	if lines > 1 {
		// A line that a busy machine holds up must not pass for a second fault.
		p.stale, p.quiet = 2*time.Second, 3*time.Second
		p.trickle *= 2 // an event takes longer than that
	}
	return p
}

func long(int) pace {
	return pace{
		every: 50 * time.Millisecond, tail: 2400, trickle: time.Second,
		trouble: time.Minute, retryAfter: 10, night: 5 * time.Minute, warm: 75 * time.Second,
		quiet: 5 * time.Second, refused: 10 * time.Second, lasts: 5 * time.Second, pending: 15 * time.Minute, stall: 700 * time.Millisecond,
	}
}

// stage is one stream held through one fault: a site and its exits, all real.
type stage struct {
	t     *testing.T
	pace  pace
	site  *site
	exits []*forward
	alone bool      // one exit and one token are all there is: what is refused is forgiven after a while
	from  time.Time // when the fault was made
}

func newStage(t *testing.T, source source, p pace, exits int) *stage {
	s := &stage{t: t, pace: p, site: newSite(t, source, p), alone: exits == 1}
	for i := range exits {
		s.exits = append(s.exits, newForward(t, fmt.Sprintf("127.0.0.%d", 21+i)))
	}
	return s
}

// fault is a row of the table.
type fault struct {
	name string
	do   func(s *stage, w *wire)
	// closed: there are no events to be missed meanwhile.
	closed bool
	// single: it concerns one connection, not the site.
	single bool
	// ends: it is not survived, since the site says that there is no more.
	ends bool
	// here: it needs the client in this process, other another exit.
	here, other bool
}

var faults = []fault{
	{name: "mute: bytes stop, the socket stays", single: true, do: func(_ *stage, w *wire) { w.mute.Store(true) }},
	{name: "deaf: the kernel drops every segment", single: true, here: true, do: func(s *stage, w *wire) {
		for !deafen(s.t, w.tunnel) { // a busy machine has had it taken for dead
			w = s.first()
		}
	}},
	{name: "dropped: nftables drops the packets", single: true, do: func(s *stage, w *wire) { drop(s.t, w.tunnel) }},
	{name: "vanish: the peer is gone without FIN or RST", single: true, do: func(s *stage, w *wire) { vanish(s.t, w.tunnel) }},
	{name: "RST", single: true, do: func(s *stage, w *wire) { s.reset(w.conn) }},
	{name: "clean EOF", single: true, do: func(_ *stage, w *wire) { w.end.Store(true) }},
	{name: "EOF inside an event", single: true, do: func(_ *stage, w *wire) { w.cut.Store(true) }},
	{name: "drip: one byte at a time", single: true, do: func(_ *stage, w *wire) { w.drip.Store(true) }},
	{name: "stall under heartbeats", single: true, do: func(_ *stage, w *wire) { w.still.Store(true) }},
	{name: "204: there is no more", ends: true, do: func(s *stage, w *wire) {
		s.site.answerFor(time.Hour, func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(http.StatusNoContent) })
		w.end.Store(true)
	}},
	{name: "401: the token is dead", do: func(s *stage, w *wire) { s.revoke(w); w.end.Store(true) }},
	{name: "403 for the exit", do: func(s *stage, w *wire) { s.ban(w); w.end.Store(true) }},
	{name: "407: the proxy's account is refused", other: true, do: func(s *stage, w *wire) {
		w.via.refuse(http.StatusProxyAuthRequired)
		s.reset(w.tunnel)
	}},
	{name: "407 from every proxy for a while", here: true, do: func(s *stage, w *wire) {
		for _, f := range s.exits {
			f.refuse(http.StatusProxyAuthRequired)
			time.AfterFunc(s.pace.trouble, func() { f.refuse(0) })
		}
		s.reset(w.tunnel)
	}},
	{name: "429 with Retry-After", do: func(s *stage, w *wire) {
		s.site.answerFor(s.pace.trouble, func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("Retry-After", fmt.Sprint(s.pace.retryAfter))
			rw.WriteHeader(http.StatusTooManyRequests)
		})
		w.end.Store(true)
	}},
	{name: "500 for a while", do: func(s *stage, w *wire) {
		s.site.answerFor(s.pace.trouble, func(rw http.ResponseWriter, _ *http.Request) {
			http.Error(rw, "oops", http.StatusInternalServerError)
		})
		w.end.Store(true)
	}},
	{name: "login page with 200", do: func(s *stage, w *wire) {
		s.site.answerFor(s.pace.trouble, func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("Content-Type", "text/html")
			fmt.Fprint(rw, "<form>data: please log in</form>")
		})
		w.end.Store(true)
	}},
	{name: "replay with duplicates", do: func(s *stage, w *wire) {
		s.site.mu.Lock()
		s.site.extra = 7
		s.site.mu.Unlock()
		w.end.Store(true)
	}},
	{name: "the proxy closes the tunnel", single: true, do: func(s *stage, w *wire) { w.tunnel.Close() }},
	{name: "token dead without a word", do: func(s *stage, w *wire) { s.revoke(w); w.mute.Store(true) }},
	{name: "market closed for the night", closed: true, do: func(s *stage, _ *wire) {
		s.site.mu.Lock()
		defer s.site.mu.Unlock()
		from := time.Now().Add(2 * s.pace.every) // the next event is under way
		s.site.closed = span{from, from.Add(s.pace.night)}
	}},
}

// carried finds the tunnel that carries the stream; false if it has ended.
func (s *stage) carried(w *wire) bool {
	for _, f := range s.exits {
		if c := f.carries(w.conn); c != nil {
			w.via, w.tunnel = f, c
			return true
		}
	}
	return false
}

// first waits for an open stream and returns the oldest.
func (s *stage) first() *wire {
	s.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if w := s.site.oldest(); w != nil && s.carried(w) {
			return w
		}
	}
	s.t.Fatal("nobody has opened the stream")
	return nil
}

func (s *stage) revoke(w *wire) {
	s.site.mu.Lock()
	defer s.site.mu.Unlock()
	s.site.refuse[w.token] = true
	if s.alone {
		s.site.lift(s.pace.trouble, w)
	}
}

func (s *stage) ban(w *wire) {
	s.site.mu.Lock()
	defer s.site.mu.Unlock()
	s.site.banned = w.exit
	if s.alone {
		s.site.lift(s.pace.trouble, w)
	}
}

// strike makes the fault once every line is held and has brought events for a
// while.
func (s *stage) strike(f fault, lines int, h held) {
	s.t.Helper()
	h.wait("every line", time.Minute, func() bool { return s.site.lines() == lines })
	began, before := time.Now(), h.seen.len()
	h.wait("the first events", time.Minute+s.pace.warm, func() bool {
		s.from = time.Now()
		return h.seen.len() >= before+30 && time.Since(began) > s.pace.warm &&
			s.site.lines() == lines && s.settled(h, time.Time{}) // and none that the client has left already
	})
	f.do(s, s.first())
	resumed := s.from
	if f.closed {
		resumed = resumed.Add(s.pace.night)
	}
	h.wait("the stream to go on after the fault", s.pace.pending, func() bool {
		if f.ends {
			return h.ended()
		}
		last := h.seen.last()
		return last.After(resumed.Add(s.pace.lasts)) && time.Since(last) < 10*s.pace.every+time.Second/2 &&
			h.seen.after(resumed) > 50 && (f.closed || s.settled(h, s.from))
	})
}

// settled tells whether the stream has been opened since then and the open
// connections are in their places: one that is still looking for its place cannot
// tell, when all is stopped, whether it has missed anything.
func (s *stage) settled(h held, then time.Time) bool {
	opened := s.site.opened(then)
	if h.news == nil {
		return len(opened) > 0 // the only line: what is received comes by it
	}
	news := h.news()
	for i, since := range opened {
		later := 0
		for _, at := range news {
			if at.After(since) {
				later++
			}
		}
		if later < len(opened)-i {
			return false
		}
	}
	return len(opened) > 0
}
