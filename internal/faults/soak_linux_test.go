package faults

import (
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"runtime"
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

var soakFor = flag.Duration("faults.soak", 6*time.Second, "how long TestSoak goes on")

// faultEvery is the time between two faults of the soak: some hundred times as
// often as in earnest.
const faultEvery = 20 * time.Millisecond

// soaked is what a soak has come to at some moment, with every line held.
type soaked struct {
	at                          time.Duration
	faults                      int
	events, reconnects          uint64
	logins, rotations, silences uint64
	heap                        uint64
	descriptors, goroutines     int
}

// TestSoak holds streams through a fault every twenty milliseconds, of every
// kind: nothing is missed or doubled, and memory, descriptors and goroutines
// stay what they are. It is not parallel: what it measures is of the process.
func TestSoak(t *testing.T) {
	var (
		sites  []*stage
		counts = &tally{next: map[string]int{}, ahead: map[string]map[int]bool{}}
		worker = framework.Config{Sinks: []framework.SinkConfig{{
			ID: "faults/tally", New: func() (framework.Sink, error) { return counts, nil }, BatchEvery: 5 * time.Millisecond,
		}}}
		lines []int
	)
	p := short(1)
	p.every = 5 * time.Millisecond
	for i := range 6 {
		s := newStage(t, source{ids: true, replay: true}, p, 3)
		s.site.start = s.site.start.Add(-5000 * p.every) // what fills the window of every stream
		var exits []proxies.Exit
		for _, x := range s.exits {
			e, err := proxies.ParseExit("http://user:password@" + x.addr)
			if err != nil {
				t.Fatal(err)
			}
			exits = append(exits, e)
		}
		pool, err := proxies.New(proxies.Config{Exits: exits, Quarantine: 50 * time.Millisecond, MaxQuarantine: 100 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		sites, lines = append(sites, s), append(lines, 1+i%2)
		worker.Streams = append(worker.Streams, &framework.Stream{
			Name:   fmt.Sprintf("faults/feed%d", i),
			Target: &framework.SSE{Request: framework.Request{URL: "http://" + s.site.addr + "/stream"}},
			Host:   s.site.addr,
			Identities: framework.NewIdentities(framework.IdentityConfig{
				Key: fmt.Sprint("faults", i), Pool: pool, Hosts: []string{s.site.addr},
				Keeper: auth.NewKeeper(auth.Config{Name: "site", Source: &tokens{}, AttemptsPerHour: -1}),
			}),
			From: "0", Lines: lines[i], StaleAfter: 200 * time.Millisecond, QuietAfter: 300 * time.Millisecond,
			MinWait: 5 * time.Millisecond, MaxWait: 50 * time.Millisecond,
			Limits: &framework.Limits{ConnectsPerSecond: 1000, Burst: 1000},
		})
	}
	j, err := journal.Open(t.Context(), journal.Config{Dir: t.TempDir(), Retain: 2 * time.Second, RetainBytes: 8 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	worker.Journal = j
	w, err := framework.NewWorker(worker)
	if err != nil {
		t.Fatal(err)
	}
	over := make(chan error, 1)
	go func() { over <- w.Run(t.Context()) }()

	rng := rand.New(rand.NewPCG(7, 7))
	began := time.Now()
	made := 0
	var samples []soaked
	for n := range 7 {
		if n > 0 {
			made += storm(rng, sites, *soakFor/6)
		}
		calm(t, sites, lines)
		samples = append(samples, measure(w, began, made))
	}
	w.Drain()
	if err := <-over; err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	b.WriteString("| after | faults | events | reconnects | logins | rotations | silences | heap KiB | descriptors | goroutines |\n|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n")
	for _, s := range samples {
		fmt.Fprintf(&b, "| %v | %d | %d | %d | %d | %d | %d | %d | %d | %d |\n", s.at.Round(100*time.Millisecond), s.faults, s.events,
			s.reconnects, s.logins, s.rotations, s.silences, s.heap>>10, s.descriptors, s.goroutines)
	}
	t.Logf("\n%s", b.String())
	publish(t, b.String())

	// The first storms fill caches and pools.
	first, last := samples[2], samples[len(samples)-1]
	if last.goroutines > first.goroutines+8 || last.descriptors > first.descriptors+8 {
		t.Errorf("%d goroutines and %d descriptors have become %d and %d", first.goroutines, first.descriptors, last.goroutines, last.descriptors)
	}
	// The journal's server holds now more and now less: what is held for good
	// shows in the least of several moments.
	half := len(samples) / 2
	before, after := leastHeap(samples[1:half]), leastHeap(samples[half:])
	if after > before+before/4+2<<20 {
		t.Errorf("%d KiB of heap have become %d", before>>10, after>>10)
	}
	if last.reconnects < uint64(made)/2 || last.logins < 20 || last.rotations < 10 || last.silences < 20 {
		t.Errorf("after %d faults only %+v: the test tests little", made, last)
	}
	counts.check(t, len(sites))
}

func leastHeap(samples []soaked) uint64 {
	return slices.MinFunc(samples, func(a, b soaked) int { return cmp.Compare(a.heap, b.heap) }).heap
}

// storm makes faults for so long, and goes on until there are a quarter of those
// that an idle machine would have had, and tells how many.
func storm(rng *rand.Rand, sites []*stage, d time.Duration) (made int) {
	kinds := []func(s *stage, w *wire){
		func(_ *stage, w *wire) { w.mute.Store(true) },
		func(_ *stage, w *wire) { w.still.Store(true) },
		func(_ *stage, w *wire) { w.end.Store(true) },
		func(_ *stage, w *wire) { w.cut.Store(true) },
		func(s *stage, w *wire) { s.reset(w.conn) },
		func(s *stage, w *wire) { w.tunnel.Close() },
		func(s *stage, w *wire) { vanish(s.t, w.tunnel) },
		func(s *stage, w *wire) { s.revoke(w); w.end.Store(true) },
		func(s *stage, w *wire) { s.revoke(w); w.mute.Store(true) },
		func(s *stage, w *wire) { s.ban(w); s.site.lift(100*time.Millisecond, w); w.end.Store(true) },
		func(s *stage, w *wire) {
			s.site.answerFor(30*time.Millisecond, func(rw http.ResponseWriter, _ *http.Request) { http.Error(rw, "oops", http.StatusInternalServerError) })
			w.end.Store(true)
		},
	}
	for until := time.Now().Add(d); time.Now().Before(until) || made < int(d/faultEvery)/4; time.Sleep(faultEvery) {
		s := sites[rng.IntN(len(sites))]
		if w := s.site.any(rng); w != nil && s.carried(w) {
			kinds[rng.IntN(len(kinds))](s, w)
			made++
		}
	}
	return made
}

// calm waits until every line is held and nothing else is open.
func calm(t *testing.T, sites []*stage, lines []int) {
	t.Helper()
	since := time.Now()
	for deadline := time.Now().Add(time.Minute); time.Since(since) < 400*time.Millisecond; time.Sleep(5 * time.Millisecond) {
		for i, s := range sites {
			if s.site.sound() != lines[i] {
				since = time.Now()
			}
		}
		if time.Now().After(deadline) {
			t.Fatal("not every line comes back")
		}
	}
}

func measure(w *framework.Worker, began time.Time, made int) soaked {
	runtime.GC()
	runtime.GC() // what the first one has finalized
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	s := soaked{at: time.Since(began), faults: made, heap: m.HeapAlloc, goroutines: runtime.NumGoroutine()}
	if fds, err := os.ReadDir("/proc/self/fd"); err == nil {
		s.descriptors = len(fds)
	}
	for _, st := range w.Stats().Streams {
		s.events += st.Events
		s.logins += st.Logins
		s.rotations += st.Rotations
		s.silences += st.Silences
		for _, n := range st.Reconnects {
			s.reconnects += n
		}
	}
	return s
}

// tally is a sink that counts on: it remembers only what is out of turn.
type tally struct {
	mu      sync.Mutex
	pos     framework.Position
	next    map[string]int
	ahead   map[string]map[int]bool
	doubled int
}

func (c *tally) Open(_ context.Context, info framework.SinkInfo) (framework.Position, error) {
	if c.pos.Journal == "" {
		c.pos = framework.Position{Journal: info.Journal, Partition: info.Partition}
	}
	return c.pos, nil
}

func (c *tally) Write(_ context.Context, b *framework.Batch) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range b.Records {
		var body struct{ N int }
		if err := json.Unmarshal(r.Data, &body); err != nil {
			return fmt.Errorf("record %v: %w", r.Key, err)
		}
		next, ok := c.next[r.Stream]
		if !ok {
			next = body.N
			c.ahead[r.Stream] = map[int]bool{}
		}
		ahead := c.ahead[r.Stream]
		switch {
		case body.N < next || ahead[body.N]:
			c.doubled++
		default:
			ahead[body.N] = true
		}
		for ; ahead[next]; next++ {
			delete(ahead, next)
		}
		c.next[r.Stream] = next
	}
	c.pos = b.To
	return nil
}

func (c *tally) Close() error { return nil }

func (c *tally) check(t *testing.T, streams int) {
	t.Helper()
	if len(c.next) != streams {
		t.Errorf("%d streams of %d have brought events", len(c.next), streams)
	}
	if c.doubled > 0 {
		t.Errorf("%d events are doubled, or earlier than the first", c.doubled)
	}
	for stream, ahead := range c.ahead {
		if len(ahead) > 0 {
			t.Errorf("%s: event %d is missing", stream, c.next[stream])
		}
	}
}
