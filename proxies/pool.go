// Package proxies holds the ways out to the internet and decides which one a stream may use, and when.
//
// The main type is Pool. Pool.Lease chooses an exit for a request; Lease.DialContext opens connections through it, and fits
// http.Transport.DialContext. The pool counts connections against each exit's cap, remembers which exits fail and rests them,
// and learns from every dial by itself and from what Lease.Report is told.
//
// Exits are written by hand, read from a list (ParseList), or made of what is wanted of a Provider, whose sessions rotate by
// generations and keep their names over a restart.
//
// Errors are sorted by layer (see DialError.Layer), because remedies are.
//
// The package deliberately knows neither credentials of targets, nor cookies, nor what is read through a connection, and it
// never retries: who leases decides what a failure means for its stream. Caps are counted in a Commons, which pools share.
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
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
)

// Config is the settings of a pool. Zero fields mean the defaults they name.
type Config struct {
	// Exits are the ways out; at least one. Names must differ.
	Exits []Exit
	// MaxConnsPerExit is the cap of an exit that names none. Default 8. Direct exits have it too, all of a Commons together.
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
	// Seed makes pools with different seeds spread the same keys differently, and sessions of providers have other names. Keep
	// it the same over restarts.
	Seed string
	// Name tells the pools of a Commons apart, and has their sessions differ.
	Name string
	// Commons is what the pool shares with others. Nil means nothing.
	Commons *Commons
	// Echo is the URL of a page that answers with the address its visitor comes from. It is asked through an exit before
	// connections, at most once a minute, to notice when the address has changed. Empty means that only proxies that tell the
	// address by themselves are believed.
	Echo string
	// Log gets changes of an exit's health. Nil means none.
	Log *slog.Logger
}

func (c *Config) setDefaults() error {
	if len(c.Exits) == 0 {
		return errNoExits
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
	if c.Commons == nil {
		c.Commons = &Commons{}
	}
	if c.Echo != "" {
		if u, err := url.Parse(c.Echo); err != nil || u.Host == "" {
			return errors.New("proxies: Echo is no URL such as https://example.com/ip")
		}
	}
	return nil
}

// Pool chooses exits, counts their connections and remembers their health. It has no goroutine, and needs no closing where it
// is the last to use its Commons. Its methods may be called concurrently.
type Pool struct {
	config Config
	dialer *dialer

	mu     *sync.Mutex // that of Config.Commons; guards everything below, and all fields of exits, accounts and leases that change
	exits  []*exit
	closed bool
	seq    uint64  // counts leases and quarantines, to tell which came first
	picked []*exit // scratch of choose
	readd  []*exit // scratch of usable
	notes  []note  // to be logged when mu is free
}

// exit is an Exit and what the pool knows about it. Another generation of it is another one.
type exit struct {
	Exit              // its Name tells the generation
	base       string // Exit.Name without it
	generation int
	hash       uint64
	id         string // of its address in Commons
	*address
	account *account
	leases  int
	memory  *memory
	since   time.Time // the first connection of this generation
	seen    string    // the address it leaves from
	asked   time.Time // when that was asked for last
	used    time.Time // when a connection was closed last
	gone    bool      // not in the pool any more
	removed context.Context
	remove  context.CancelFunc
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
	p := &Pool{config: c, dialer: newDialer(c), mu: &c.Commons.mu}
	if err := p.Update(c.Exits); err != nil {
		return nil, err
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
	StateSpent       State = "spent"       // its budget, or its account's, is used up until ExitStats.Until
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
	BytesToday        int64     // of them, both ways, since midnight UTC
	Account           string    // what the account is called
	Address           string    // the address the exit leaves from, where it is known
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
			State: StateOK, LastError: e.lastErr, BytesIn: e.meter.in.Load(), BytesOut: e.meter.out.Load(), BytesToday: e.meter.spent(now),
			Account: e.account.name, Address: e.seen,
		}
		switch {
		case e.overBudget(now) != nil:
			r.State, r.Until = StateSpent, midnight(now)
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
