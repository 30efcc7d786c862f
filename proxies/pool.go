// Package proxies holds the ways out to the internet and decides which one a stream may use, and when.
//
// The main type is Pool. Pool.Lease chooses an exit for a request; Lease.DialContext opens connections through it, and fits
// http.Transport.DialContext. The pool counts connections against each exit's cap, remembers which exits fail and rests them,
// and learns from every dial by itself and from what Lease.Report is told.
//
// Errors are sorted by layer (see DialError.Layer), because remedies are.
//
// The package deliberately knows neither credentials of targets, nor cookies, nor what is read through a connection, and it
// never retries: who leases decides what a failure means for its stream. The cap of an exit is that of one Pool: what must
// share a cap must share the pool.
package proxies

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Config is the settings of a pool. Zero fields mean the defaults they name.
type Config struct {
	// Exits are the ways out; at least one. Names must differ.
	Exits []Exit
	// MaxConnsPerExit is the cap of an exit that names none. Default 8. Direct exits have it too.
	MaxConnsPerExit int
	// Quarantine is how long an exit is out after it has failed, the first time; each further time doubles it, up to
	// MaxQuarantine, and up to a quarter more or less by chance. Defaults 30 s and 30 min.
	Quarantine, MaxQuarantine time.Duration
	// WaitTimeout is the longest wait for a slot. Default 30 s.
	WaitTimeout time.Duration
	// DialTimeout is the longest time from the first packet to the proxy until the tunnel stands. Default 15 s. A dial that
	// its caller's context ends sooner tells the pool nothing about the exit.
	DialTimeout time.Duration
	// KeepAlive is how an idle connection is probed. Default: after 15 s, every 5 s, 3 times.
	KeepAlive net.KeepAliveConfig
	// UserTimeout is how long sent bytes may stay unacknowledged before the kernel breaks a connection (TCP_USER_TIMEOUT,
	// Linux only). Default 30 s.
	UserTimeout time.Duration
	// TLS is used with https proxies, for private certificate authorities. Nil means the system's.
	TLS *tls.Config
	// Seed makes pools with different seeds spread the same keys differently. Keep it the same over restarts.
	Seed string
	// Log gets changes of an exit's health. Nil means none.
	Log *slog.Logger
}

func (c *Config) setDefaults() error {
	if len(c.Exits) == 0 {
		return errors.New("proxies: no exits: give at least one, or Exit{} to leave directly")
	}
	for name, d := range map[string]time.Duration{
		"Quarantine": c.Quarantine, "MaxQuarantine": c.MaxQuarantine, "WaitTimeout": c.WaitTimeout,
		"DialTimeout": c.DialTimeout, "UserTimeout": c.UserTimeout, "MaxConnsPerExit": time.Duration(c.MaxConnsPerExit),
	} {
		if d < 0 {
			return fmt.Errorf("proxies: %s must not be negative", name)
		}
	}
	c.MaxConnsPerExit = cmp.Or(c.MaxConnsPerExit, 8)
	c.Quarantine = cmp.Or(c.Quarantine, 30*time.Second)
	c.MaxQuarantine = max(cmp.Or(c.MaxQuarantine, 30*time.Minute), c.Quarantine)
	c.WaitTimeout = cmp.Or(c.WaitTimeout, 30*time.Second)
	c.DialTimeout = cmp.Or(c.DialTimeout, 15*time.Second)
	c.UserTimeout = cmp.Or(c.UserTimeout, 30*time.Second)
	if c.KeepAlive == (net.KeepAliveConfig{}) {
		c.KeepAlive = net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

// Pool chooses exits, counts their connections and remembers their health. It has no goroutine and needs no closing. Its
// methods may be called concurrently.
type Pool struct {
	config Config
	dialer *dialer

	mu     sync.Mutex // guards everything below, and all fields of exits, accounts and leases that change
	exits  []*exit
	seq    uint64  // counts leases and quarantines, to tell which came first
	picked []*exit // scratch of choose
	readd  []*exit // scratch of usable
	notes  []note  // to be logged when mu is free
}

// exit is an Exit and what the pool knows about it.
type exit struct {
	Exit
	hash     uint64
	account  *account
	slots    slots
	leases   int
	bytesIn  atomic.Int64
	bytesOut atomic.Int64
	health
}

// note is a log line that waits until the mutex is free, since a log handler may block.
type note struct {
	level slog.Level
	text  string
	attrs []slog.Attr
}

func (p *Pool) note(level slog.Level, text string, attrs ...slog.Attr) {
	p.notes = append(p.notes, note{level, text, attrs})
}

// unlock frees the mutex and then logs what was noted.
func (p *Pool) unlock() {
	notes := p.notes
	p.notes = nil
	p.mu.Unlock()
	for _, n := range notes {
		p.config.Log.LogAttrs(context.Background(), n.level, n.text, n.attrs...)
	}
}

// New checks the configuration and makes a pool. It opens no connection and starts nothing. Its errors name exits by place and
// name, never by URL.
func New(c Config) (*Pool, error) {
	if err := c.setDefaults(); err != nil {
		return nil, err
	}
	p := &Pool{config: c, dialer: newDialer(c)}
	accounts := map[string]*account{}
	names := map[string]bool{}
	urls := map[string]int{}
	var errs []error
	for i, x := range c.Exits {
		fail := func(format string, args ...any) {
			errs = append(errs, fmt.Errorf("proxies: exit %d %s: "+format, append([]any{i + 1, x.Name}, args...)...))
		}
		if err := x.validate(); err != nil {
			fail("%w", err)
			continue
		}
		id := "direct"
		if x.URL == nil {
			x.Kind = Direct
		} else {
			x.URL = cloneURL(x.URL)
			id = x.URL.String()
		}
		if first, ok := urls[id]; ok {
			fail("is the same as exit %d: list it once, or its cap would count twice", first)
			continue
		}
		urls[id] = i + 1
		if x.Name == "" {
			// Sticky sessions of one gateway share host and port; they are told apart by their place among these.
			x.Name = x.label()
			for n := 2; names[x.Name]; n++ {
				x.Name = fmt.Sprintf("%s#%d", x.label(), n)
			}
		}
		if names[x.Name] {
			fail("another exit has this name: names must differ")
			continue
		}
		names[x.Name] = true
		x.MaxConns = cmp.Or(x.MaxConns, c.MaxConnsPerExit)
		a := accounts[x.account()]
		if a == nil {
			a = &account{}
			accounts[x.account()] = a
		}
		p.exits = append(p.exits, &exit{Exit: x, hash: mix(hashString(x.Name)), account: a, slots: newSlots(x.MaxConns), health: health{rests: map[string]rest{}}})
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return p, nil
}

// jitter is d, up to a quarter more or less.
func jitter(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (0.75 + rand.Float64()/2))
}

// State is what the pool thinks of an exit.
type State string

const (
	StateOK          State = "ok"
	StateQuarantined State = "quarantined" // it failed and is out until ExitStats.Until
	StateProbing     State = "probing"     // its quarantine is over; one lease may try it
	StateRefused     State = "refused"     // the proxy refuses its account, which is not tried before ExitStats.Until
)

// ExitStats is a row of the table of exits.
type ExitStats struct {
	Name              string
	Kind              Kind
	Conns             int // connections open or being opened
	Cap               int // how many there may be now: the configured cap, or fewer after the proxy said that it is full
	Waiting           int // dials waiting for a slot
	Leases            int
	State             State
	Until             time.Time // end of the state, zero without one
	Resting           []string  // targets the exit rests for, sorted
	LastError         string    // of the last dial that failed; empty if none
	BytesIn, BytesOut int64     // through the exit, with what the proxy protocol and TLS add
}

// Stats lists all exits in the order of Config.Exits.
func (p *Pool) Stats() []ExitStats {
	p.mu.Lock()
	defer p.unlock()
	now := time.Now()
	rows := make([]ExitStats, len(p.exits))
	for i, e := range p.exits {
		r := ExitStats{
			Name: e.Name, Kind: e.Kind, Conns: e.slots.used, Cap: e.slots.cap(now), Waiting: e.slots.waiting, Leases: e.leases,
			State: StateOK, LastError: e.lastErr, BytesIn: e.bytesIn.Load(), BytesOut: e.bytesOut.Load(),
		}
		switch {
		case e.account.refused(now) != nil:
			r.State, r.Until = StateRefused, e.account.until
		case now.Before(e.until):
			r.State, r.Until = StateQuarantined, e.until
		case !e.until.IsZero():
			r.State = StateProbing
		}
		for t, rest := range e.rests {
			if now.Before(rest.until) {
				r.Resting = append(r.Resting, t)
			}
		}
		slices.SortFunc(r.Resting, strings.Compare)
		rows[i] = r
	}
	return rows
}
