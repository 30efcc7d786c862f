package framework

import (
	"context"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Limits paces what the whole process does to one host, whichever target
// names it. The zero value is ready to use and polite: two connection
// attempts a second, four at once. Its methods may be called concurrently.
type Limits struct {
	// ConnectsPerSecond is the pace of connection attempts to a host, Burst
	// how many may be made at once; zero means 2 and 4.
	ConnectsPerSecond float64
	Burst             int
	// StreamsPerHost is how many streams may be open to a host at once; zero
	// means any number.
	StreamsPerHost int

	mu    sync.Mutex
	hosts map[string]*rate.Limiter
	gates map[string]*gate
	lines map[string]int // connections that streams hold of a host
}

// Change has the limits be those of to from now on, also for who waits
// already. What to has counted makes no difference.
func (l *Limits) Change(to *Limits) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ConnectsPerSecond, l.Burst, l.StreamsPerHost = to.ConnectsPerSecond, to.Burst, to.StreamsPerHost
	for _, lim := range l.hosts {
		pace, burst := l.pace()
		lim.SetLimit(pace)
		lim.SetBurst(burst)
	}
	for _, g := range l.gates {
		g.change(l.StreamsPerHost)
	}
}

// pace is what the limits say of connection attempts.
func (l *Limits) pace() (rate.Limit, int) {
	pace, burst := rate.Limit(l.ConnectsPerSecond), l.Burst
	if pace == 0 {
		pace = 2
	}
	if burst == 0 {
		burst = 4
	}
	return pace, burst
}

// join counts the lines of a stream that begins, and with a minus takes them
// back.
func (l *Limits) join(host string, lines int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lines == nil {
		l.lines = map[string]int{}
	}
	if l.lines[host] += lines; l.lines[host] == 0 {
		delete(l.lines, host)
	}
}

// turn is how long all lines of the host need to connect anew, one after the
// other, as the pace allows.
func (l *Limits) turn(host string) time.Duration {
	pace := l.limiter(host)
	l.mu.Lock()
	defer l.mu.Unlock()
	queued := l.lines[host] - pace.Burst()
	if queued <= 0 {
		return 0
	}
	return time.Duration(float64(queued) / float64(pace.Limit()) * float64(time.Second))
}

// Wait blocks until one more connection attempt to the host is allowed.
func (l *Limits) Wait(ctx context.Context, host string) error { return l.limiter(host).Wait(ctx) }

// gate counts the open streams of a host.
func (l *Limits) gate(host string) *gate {
	l.mu.Lock()
	defer l.mu.Unlock()
	g := l.gates[host]
	if g == nil {
		g = &gate{what: "host " + host, limit: l.StreamsPerHost}
		if l.gates == nil {
			l.gates = map[string]*gate{}
		}
		l.gates[host] = g
	}
	return g
}

func (l *Limits) limiter(host string) *rate.Limiter {
	l.mu.Lock()
	defer l.mu.Unlock()
	lim := l.hosts[host]
	if lim == nil {
		lim = rate.NewLimiter(l.pace())
		if l.hosts == nil {
			l.hosts = map[string]*rate.Limiter{}
		}
		l.hosts[host] = lim
	}
	return lim
}
