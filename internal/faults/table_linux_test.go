package faults

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdline/scrape/auth"
	"github.com/holdline/scrape/framework"
	"github.com/holdline/scrape/internal/journal"
	"github.com/holdline/scrape/proxies"
)

// stage is one stream held through one fault: a site, two exits, a credential,
// a journal and a sink, all real.
type stage struct {
	t     *testing.T
	site  *site
	exits []*forward
	keeps *tokens
	from  time.Time // when the fault was made
}

// tokens is a site's tokens: opaque, without an expiry that could be known.
type tokens struct {
	mu sync.Mutex
	n  int
}

func (k *tokens) Bound() auth.Binding { return auth.BoundToExit }

func (k *tokens) Obtain(context.Context, auth.Via, *auth.Credential) (*auth.Credential, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.n++
	return &auth.Credential{Header: http.Header{"Authorization": {fmt.Sprintf("token-%d", k.n)}}}, nil
}

// fault is a row of the table.
type fault struct {
	name string
	do   func(s *stage, w *wire)
	// closed: for so long there are no events to be missed.
	closed time.Duration
	// single: it concerns one connection, not the site.
	single bool
}

const trouble = time.Second // how long the site is in trouble, where that ends by itself

var faults = []fault{
	{name: "mute: bytes stop, the socket stays", single: true, do: func(s *stage, w *wire) { w.mute.Store(true) }},
	{name: "deaf: the kernel drops every segment", single: true, do: func(s *stage, w *wire) { deafen(s.t, s.tunnel(w)) }},
	{name: "dropped: nftables drops the packets", single: true, do: func(s *stage, w *wire) { drop(s.t, s.tunnel(w)) }},
	{name: "vanish: the peer is gone without FIN or RST", single: true, do: func(s *stage, w *wire) { vanish(s.t, s.tunnel(w)) }},
	{name: "RST", single: true, do: func(s *stage, w *wire) { reset(s.t, w.conn) }},
	{name: "clean EOF", single: true, do: func(s *stage, w *wire) { w.end.Store(true) }},
	{name: "EOF inside an event", single: true, do: func(s *stage, w *wire) { w.cut.Store(true) }},
	{name: "drip: one byte every 100 ms", single: true, do: func(s *stage, w *wire) { w.drip.Store(true) }},
	{name: "stall under heartbeats", single: true, do: func(s *stage, w *wire) { w.still.Store(true) }},
	{name: "401 and a new token", do: func(s *stage, w *wire) { s.revoke(w); w.end.Store(true) }},
	{name: "403 for this exit", do: func(s *stage, w *wire) {
		s.site.answerFor(s.t, time.Hour, func(rw http.ResponseWriter, r *http.Request) {
			if strings.HasPrefix(r.RemoteAddr, w.exit+":") {
				http.Error(rw, "not you", http.StatusForbidden)
				return
			}
			s.site.mu.Lock()
			s.site.answer = nil
			s.site.mu.Unlock()
			s.site.stream(rw, r)
		})
		w.end.Store(true)
	}},
	{name: "407 from the proxy", do: func(s *stage, w *wire) {
		for _, f := range s.exits {
			f.refuse(http.StatusProxyAuthRequired)
			time.AfterFunc(trouble, func() { f.refuse(0) })
		}
		reset(s.t, s.tunnel(w))
	}},
	{name: "429 with Retry-After: 1", do: func(s *stage, w *wire) {
		s.site.answerFor(s.t, trouble, func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("Retry-After", "1")
			rw.WriteHeader(http.StatusTooManyRequests)
		})
		w.end.Store(true)
	}},
	{name: "500 for a while", do: func(s *stage, w *wire) {
		s.site.answerFor(s.t, trouble, func(rw http.ResponseWriter, _ *http.Request) {
			http.Error(rw, "oops", http.StatusInternalServerError)
		})
		w.end.Store(true)
	}},
	{name: "login page with 200", do: func(s *stage, w *wire) {
		s.site.answerFor(s.t, trouble, func(rw http.ResponseWriter, _ *http.Request) {
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
	{name: "the proxy closes the tunnel", single: true, do: func(s *stage, w *wire) { s.tunnel(w).Close() }},
	{name: "token dead without a word", do: func(s *stage, w *wire) { s.revoke(w); w.mute.Store(true) }},
	{name: "market closed for the night", closed: 3 * time.Second, do: func(s *stage, w *wire) {
		s.site.mu.Lock()
		defer s.site.mu.Unlock()
		s.site.closed = span{time.Now(), time.Now().Add(3 * time.Second)}
	}},
}

// tunnel is the proxy's end of the connection that carries the stream.
func (s *stage) tunnel(w *wire) net.Conn {
	for _, f := range s.exits {
		if c := f.carries(w.conn); c != nil {
			return c
		}
	}
	s.t.Fatal("no tunnel carries the stream")
	return nil
}

func (s *stage) revoke(w *wire) {
	s.site.mu.Lock()
	defer s.site.mu.Unlock()
	s.site.refuse[w.token] = true
}

// TestNoContentEndsTheStream is the one row that is not survived: with 204 the
// site says that there is no more.
func TestNoContentEndsTheStream(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := newSite(t, l, true, true)
	stream := &framework.Stream{
		Target:  &framework.SSE{Request: framework.Request{URL: "http://" + s.addr + "/stream"}},
		MinWait: 10 * time.Millisecond,
	}
	n := 0
	for _, err := range stream.Events(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if n++; n == 5 {
			s.answerFor(t, time.Hour, func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(http.StatusNoContent) })
			s.first(t).end.Store(true)
		}
	}
	if n < 5 {
		t.Errorf("%d events before the end, want at least 5", n)
	}
}

// row is what became of the events.
type row struct {
	sent, once, doubled, missed int
	gaps                        []framework.Gap
	detect, back                time.Duration
}

// hold holds one stream through one fault, by so many lines.
func hold(t *testing.T, f fault, ids, replay bool, lines int) row {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &stage{t: t, site: newSite(t, l, ids, replay), keeps: &tokens{}}
	s.exits = []*forward{newForward(t, "127.0.0.21"), newForward(t, "127.0.0.22")}
	var exits []proxies.Exit
	for _, x := range s.exits {
		e, err := proxies.ParseExit("http://user:password@" + x.addr)
		if err != nil {
			t.Fatal(err)
		}
		exits = append(exits, e)
	}
	pool, err := proxies.New(proxies.Config{Exits: exits, Quarantine: 200 * time.Millisecond, MaxQuarantine: 400 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	j, err := journal.Open(t.Context(), journal.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	sink := &collector{}
	keeper := auth.NewKeeper(auth.Config{Name: "site", Source: s.keeps, AttemptsPerHour: -1})
	stale, quiet, settled := 300*time.Millisecond, 800*time.Millisecond, 300*time.Millisecond
	if lines > 1 {
		// A line that a busy machine holds up must not pass for a second fault,
		// and the first one has to be noticed although the stream goes on.
		stale, quiet, settled = 2*time.Second, 3*time.Second, 5*time.Second
	}
	stream := &framework.Stream{
		Name:   "faults/feed",
		Target: &framework.SSE{Request: framework.Request{URL: "http://" + s.site.addr + "/stream"}},
		Host:   s.site.addr,
		Identities: framework.NewIdentities(framework.IdentityConfig{
			Key: "faults", Pool: pool, Keeper: keeper, Hosts: []string{s.site.addr},
		}),
		Lines:      lines,
		StaleAfter: stale,
		QuietAfter: quiet,
		MinWait:    50 * time.Millisecond,
		MaxWait:    500 * time.Millisecond,
		Limits:     &framework.Limits{ConnectsPerSecond: 100, Burst: 100},
	}
	w, err := framework.NewWorker(framework.Config{
		Journal: j, Streams: []*framework.Stream{stream},
		Sinks: []framework.SinkConfig{{ID: "faults/memory", New: func() (framework.Sink, error) { return sink, nil }, BatchEvery: 5 * time.Millisecond}},
	})
	if err != nil {
		t.Fatal(err)
	}
	over := make(chan error, 1)
	go func() { over <- w.Run(t.Context()) }()

	wait(t, "every line", func() bool { return s.site.lines() == lines })
	before := sink.len()
	wait(t, "the first events", func() bool { return sink.len() >= before+30 })
	open := s.site.first(t)
	s.from = time.Now()
	f.do(s, open)
	resumed := s.from.Add(f.closed)
	wait(t, "the stream to go on after the fault", func() bool {
		last := sink.last()
		return last.After(resumed.Add(settled)) && time.Since(last) < 200*time.Millisecond && sink.after(resumed) > 50
	})
	stats := w.Stats().Streams[0]
	w.Drain()
	if err := <-over; err != nil {
		t.Fatal(err)
	}
	r := sink.judge(t, s, w.Stats().Streams[0].Gaps)
	r.detect = time.Duration(stats.SilenceDetect.Max * float64(time.Millisecond))
	return r
}

func wait(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !done(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// collector is a sink that remembers numbers and when they were received.
type collector struct {
	mu   sync.Mutex
	pos  framework.Position
	seen []received
}

type received struct {
	n  int
	at time.Time
}

func (c *collector) Open(_ context.Context, info framework.SinkInfo) (framework.Position, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pos.Journal == "" {
		c.pos = framework.Position{Journal: info.Journal, Partition: info.Partition}
	}
	return c.pos, nil
}

func (c *collector) Write(_ context.Context, b *framework.Batch) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range b.Records {
		var body struct{ N int }
		if err := json.Unmarshal(r.Data, &body); err != nil {
			return fmt.Errorf("record %v: %w", r.Key, err)
		}
		c.seen = append(c.seen, received{body.N, r.Time})
	}
	c.pos = b.To
	return nil
}

func (c *collector) Close() error { return nil }

func (c *collector) len() int { c.mu.Lock(); defer c.mu.Unlock(); return len(c.seen) }

func (c *collector) last() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.seen) == 0 {
		return time.Time{}
	}
	return c.seen[len(c.seen)-1].at
}

func (c *collector) after(at time.Time) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.seen {
		if s.at.After(at) {
			n++
		}
	}
	return n
}

// judge compares what was received with what happened between the first and
// the last event received.
func (c *collector) judge(t *testing.T, s *stage, gaps []framework.Gap) row {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	r := row{gaps: gaps}
	count := map[int]int{}
	first, last := c.seen[0].n, c.seen[0].n
	for _, e := range c.seen {
		count[e.n]++
		first, last = min(first, e.n), max(last, e.n)
	}
	for n := first; n <= last; n++ {
		r.sent++
		switch got := count[n]; {
		case got == 0:
			r.missed++
		case got == 1:
			r.once++
		default:
			r.doubled++
		}
	}
	// Back is when events flow again after the longest stall that the fault
	// caused.
	var stall time.Duration
	seen := slices.SortedFunc(slices.Values(c.seen), func(a, b received) int { return a.at.Compare(b.at) })
	for i := 1; i < len(seen); i++ {
		if d := seen[i].at.Sub(seen[i-1].at); seen[i].at.After(s.from) && d > stall {
			stall, r.back = d, seen[i].at.Sub(s.from)
		}
	}
	return r
}

func TestFaultTable(t *testing.T) {
	t.Logf("| fault | source | sent | once | doubled | missed | written down | noticed ms | back ms |")
	for _, f := range faults {
		for _, source := range []struct{ ids, replay bool }{{true, true}, {true, false}, {false, true}, {false, false}} {
			name := fmt.Sprintf("%s/ids=%v,replay=%v", f.name, source.ids, source.replay)
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				r := hold(t, f, source.ids, source.replay, 1)
				var missing uint64
				possible := 0
				for _, g := range r.gaps {
					missing += g.Missing
					if g.State == framework.GapPossible {
						possible++
					}
				}
				t.Logf("| %s | ids %v, replay %v | %d | %d | %d | %d | %d known, %d possible | %d | %d |", f.name, source.ids, source.replay,
					r.sent, r.once, r.doubled, r.missed, missing, possible, r.detect.Milliseconds(), r.back.Milliseconds())
				resumes := source.ids && source.replay // without ids there is no cursor to resume from
				switch {
				case resumes && (r.missed > 0 || r.doubled > 0):
					t.Errorf("a source that replays lost %d and doubled %d", r.missed, r.doubled)
				case source.ids && r.doubled > 0:
					t.Errorf("%d doubled although ids tell events apart", r.doubled)
				case possible == 0 && int(missing) != r.missed:
					// (Before the numbers are known to count, a gap is only possible.)
					t.Errorf("%d are missing and %d were written down", r.missed, missing)
				case int(missing) > r.missed:
					t.Errorf("%d were written down as missing and %d are", missing, r.missed)
				}
			})
		}
	}
}

// TestSecondLineCoversTheFirst holds streams by two lines through the faults
// that concern one connection: nothing is missed, also where the site does not
// replay, and nothing comes twice.
func TestSecondLineCoversTheFirst(t *testing.T) {
	for _, f := range faults {
		if !f.single {
			continue
		}
		for _, replay := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/replay=%v", f.name, replay), func(t *testing.T) {
				t.Parallel()
				r := hold(t, f, true, replay, 2)
				t.Logf("%d sent, %d once, %d doubled, %d missed, back after %d ms", r.sent, r.once, r.doubled, r.missed, r.back.Milliseconds())
				if r.missed > 0 || r.doubled > 0 || slices.ContainsFunc(r.gaps, func(g framework.Gap) bool { return g.State.Open() }) {
					t.Errorf("%d missed, %d doubled, gaps %+v", r.missed, r.doubled, r.gaps)
				}
			})
		}
	}
}
