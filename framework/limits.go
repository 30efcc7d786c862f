package framework

import (
	"context"
	"sync"

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
		pace, burst := rate.Limit(l.ConnectsPerSecond), l.Burst
		if pace == 0 {
			pace = 2
		}
		if burst == 0 {
			burst = 4
		}
		lim = rate.NewLimiter(pace, burst)
		if l.hosts == nil {
			l.hosts = map[string]*rate.Limiter{}
		}
		l.hosts[host] = lim
	}
	return lim
}
