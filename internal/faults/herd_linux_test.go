package faults

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/holdline/scrape/framework"
	"github.com/holdline/scrape/internal/journal"
)

// crowd is a site that counts those who knock.
type crowd struct {
	mu    sync.Mutex
	conns map[net.Conn]bool
	open  int
	shut  bool        // requests are refused
	came  []time.Time // connections and, apart from those, requests
	asked []time.Time
}

func (c *crowd) state(conn net.Conn, s http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch s {
	case http.StateNew:
		c.conns[conn] = true
		c.came = append(c.came, time.Now())
	case http.StateClosed:
		delete(c.conns, conn)
	}
}

func (c *crowd) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	c.asked = append(c.asked, time.Now())
	shut := c.shut
	if !shut {
		c.open++
	}
	c.mu.Unlock()
	if shut {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.open--
	}()
	w.Header().Set("Content-Type", "text/event-stream")
	fmt.Fprint(w, "id: 1\ndata: hello\n\n")
	_ = http.NewResponseController(w).Flush()
	<-r.Context().Done()
}

func (c *crowd) has(open int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.open == open
}

// lose resets every connection and refuses requests from now on.
func (c *crowd) lose(t *testing.T) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.shut, c.came, c.asked = true, nil, nil
	for conn := range c.conns {
		if err := conn.(*net.TCPConn).SetLinger(0); err != nil {
			t.Error(err)
		}
		conn.Close()
	}
}

// TestAThousandStreamsKnockNoFasterThanAllowed has 1,000 streams lose their
// site at once, which then refuses them for a second, and counts what the
// site sees of them: connections and requests.
func TestAThousandStreamsKnockNoFasterThanAllowed(t *testing.T) {
	t.Parallel()
	const streams, perSecond, burst = 1000, 300, 50
	site, pulse := &crowd{conns: map[net.Conn]bool{}}, newPulse(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: site, ConnState: site.state}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	defer func() {
		server.Close()
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	}()
	j, err := journal.Open(t.Context(), journal.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	identities := framework.NewIdentities(framework.IdentityConfig{Key: "crowd"})
	limits := &framework.Limits{ConnectsPerSecond: perSecond, Burst: burst}
	config := framework.Config{Journal: j}
	for i := range streams {
		config.Streams = append(config.Streams, &framework.Stream{
			Name:   fmt.Sprintf("crowd/%d", i),
			Target: &framework.SSE{Request: framework.Request{URL: "http://" + l.Addr().String()}},
			Host:   l.Addr().String(), Identities: identities, Limits: limits,
			MinWait: 10 * time.Millisecond, MaxWait: 20 * time.Millisecond, // each alone would knock fifty times a second
		})
	}
	w, err := framework.NewWorker(config)
	if err != nil {
		t.Fatal(err)
	}
	over := make(chan error, 1)
	go func() { over <- w.Run(t.Context()) }()
	await := func(open int, what string) {
		t.Helper()
		for deadline := time.Now().Add(2 * time.Minute); !site.has(open); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("waited in vain for the streams ", what)
			}
		}
	}
	await(streams, "to come")
	site.lose(t)
	await(0, "to go")
	time.AfterFunc(time.Second, func() {
		site.mu.Lock()
		defer site.mu.Unlock()
		site.shut = false
	})
	await(streams, "to come back")
	w.Drain()
	if err := <-over; err != nil {
		t.Fatal(err)
	}
	site.mu.Lock()
	defer site.mu.Unlock()
	if len(site.asked) < streams+perSecond/2 {
		t.Errorf("%d streams asked %d times, and the site was shut for a second: the test tests nothing", streams, len(site.asked))
	}
	// What was allowed while those that it passes through were held up is seen at
	// once: the line, its dialler, the site's listener and its handler.
	late := 4 * max(pulse.heldUp(), time.Second/16)
	allowed := func(within time.Duration) int { return burst + int(perSecond*(within+late).Seconds()) }
	for what, times := range map[string][]time.Time{"connections": site.came, "requests": site.asked} {
		if most := busiest(times, time.Second); most > allowed(time.Second) {
			t.Errorf("%d %s within a second, allowed are %d a second and, all held up for %v, %d", most, what, perSecond, late, allowed(time.Second))
		} else {
			t.Logf("at most %d %s within a second", most, what)
		}
		if took := times[len(times)-1].Sub(times[0]); len(times) > allowed(took) {
			t.Errorf("%d %s in %v, allowed are %d a second", len(times), what, took, perSecond)
		}
	}
}

// busiest is the most that happened within so long.
func busiest(times []time.Time, within time.Duration) (most int) {
	times = slices.SortedFunc(slices.Values(times), time.Time.Compare)
	first := 0
	for i, at := range times {
		for at.Sub(times[first]) >= within {
			first++
		}
		most = max(most, i-first+1)
	}
	return most
}
