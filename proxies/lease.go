package proxies

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"time"
)

// Request says what an exit is wanted for. All fields may be empty.
type Request struct {
	// Key binds: the same key gets the same exit, also after a restart, as long as that exit may be used and has room. It
	// also names who waits and who holds slots, in errors; it must not hold a secret. Empty: the exit with the least to do.
	Key string
	// Kind is the kind of exit wanted, empty for any.
	Kind Kind
	// Fallback is taken when no exit of Kind is in good health, empty for none.
	Fallback Kind
	// Target is the host the lease is for. An exit that a target has refused rests for that target only.
	Target string
	// Prefer is the name of an exit to take whenever it is of the kind in question and may be used, full or not: the one a
	// credential is bound to.
	Prefer string
	// Avoid are names of exits to take only when no other may be used: the one a stream has just left.
	Avoid []string
}

// Outcome is what the holder of a lease saw of its exit. Dials need not be reported: the pool sees them itself.
type Outcome int

const (
	// Unused says nothing about the exit.
	Unused Outcome = iota
	// Healthy: data came through.
	Healthy
	// ExitFailed: the exit is to blame, beyond doubt. It goes into quarantine at once. Where the failure is one of dialling
	// with this lease, which the pool has counted already, the report adds nothing: a quarantine takes three of these in a row.
	ExitFailed
	// ExitSilent: connections stand and nothing comes. It counts as one failure, since the feed may simply be quiet; three
	// such reports without a Healthy between them put the exit into quarantine.
	ExitSilent
	// TargetRefused: the target turns this exit away (403, a challenge). The exit rests for the lease's target only, as long
	// as a quarantine would last.
	TargetRefused
)

// Lease is the right to hold connections through one exit. It ends with Release, and by itself with the exit's lifetime. Its
// methods may be called concurrently.
type Lease struct {
	pool    *Pool
	exit    *exit
	key     string
	target  string
	seq     uint64    // Pool.seq when it was made
	expires time.Time // less the margin
	end     time.Time // the exit's own
	ctx     context.Context
	cancel  context.CancelCauseFunc

	failed   bool // the last dial failed in the exit's layer; guarded by the pool's mutex
	released bool // likewise
}

// Lease chooses an exit and gives the right to use it. It does not wait and does not dial: a slot is taken by each dial. ctx
// is only looked at once and does not bind the lease. The error is an *ExhaustedError (errors.Is ErrExhausted), the *DialError
// with which the proxy refused the account when no other exit is left, or the context's.
func (p *Pool) Lease(ctx context.Context, r Request) (*Lease, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	r.Target = strings.ToLower(r.Target)
	p.mu.Lock()
	defer p.unlock()
	now := time.Now()
	e, err := p.choose(r, now)
	if err != nil {
		return nil, err
	}
	if why := e.worn(r, now); why != "" {
		e = p.rotate(e, why, now)
	}
	p.seq++
	l := &Lease{pool: p, exit: e, key: r.Key, target: r.Target, seq: p.seq}
	l.ctx, l.cancel = context.WithCancelCause(context.Background())
	if e.Lifetime > 0 {
		l.end = now.Add(e.Lifetime)
		if e.session.rotates() && !e.since.IsZero() {
			l.end = e.since.Add(e.Lifetime) // the session's clock runs from its first connection
		}
		// Streams that were leased together must not all hand over together.
		l.expires = l.end.Add(-jitter(min(e.Lifetime/10, 30*time.Second)))
	}
	if !e.until.IsZero() && !now.Before(e.until) && e.probe == nil {
		e.probe = l
	}
	e.leases++
	return l, nil
}

// Exit is the exit leased, with its name and cap filled in. The URL must not be changed.
func (l *Lease) Exit() Exit { return l.exit.Exit }

// Removed ends when the exit is taken out of the pool (Pool.Update). The lease goes on, but its holder should move to another.
func (l *Lease) Removed() context.Context { return l.exit.removed }

// Expires is when the holder should have moved to another lease: a margin (a tenth of the exit's lifetime, at most 30 s, up
// to a quarter more or less) before the exit ends by itself. Zero means never.
func (l *Lease) Expires() time.Time { return l.expires }

// DialContext opens a connection through the exit; the proxy resolves names. It waits for a slot first, in a fair queue: in
// order within a key, keys in turn. The connection holds its slot until it is closed. It fits http.Transport.DialContext, of
// a transport with no Proxy. HTTP proxies are asked for a tunnel also where the destination speaks plain text; some allow
// that to port 443 only, and say so with 403.
//
// The error is a *WaitError (no slot came), a *DialError, wraps ErrLeaseEnded, or is ctx's own.
func (l *Lease) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	if err := checkAddr(network, addr); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(l.ctx, func() { cancel(context.Cause(l.ctx)) })()

	if err := l.wait(ctx, l.exit.slots, ""); err != nil {
		return nil, err
	}
	// All connections of an exit are the account's: who waits here takes nothing from those who could go on.
	if err := l.wait(ctx, l.exit.account.slots, l.exit.account.name); err != nil {
		l.free(l.exit.slots)
		return nil, err
	}
	// The slots are held by the connection, and by the dial until the pool knows its result: a waiter must not send a password
	// that has just been refused.
	var holds atomic.Int32
	holds.Store(1)
	release := func() {
		if holds.Add(-1) == 0 {
			l.free(l.exit.account.slots, l.exit.slots)
		}
	}
	defer release()
	begun := time.Now()
	trying, err := l.begin(ctx, begun)
	if err != nil {
		return nil, err
	}
	echoed := l.pool.echo(ctx, l.exit, begun)
	c, seen, err := l.pool.dialer.dial(ctx, l.exit.Exit, network, addr, func(c net.Conn) net.Conn {
		holds.Add(1)
		return newConn(c, l.exit, release)
	})
	l.pool.mu.Lock()
	if err == nil {
		if moved := l.pool.meet(l.exit, cmp.Or(seen, echoed), addr); moved != nil {
			err = moved
		}
	}
	if derr, ok := err.(*DialError); ok || err == nil {
		l.pool.dialled(l, derr, begun, time.Now())
	}
	if trying {
		l.exit.account.trying = false
	}
	l.pool.unlock()
	if err != nil {
		if c != nil {
			c.Close()
		}
		return nil, err
	}
	return c, nil
}

// begin looks again whether the lease may dial, since the wait for a slot may have been long. trying is true for the one dial
// that tries whether a refused account is good again.
func (l *Lease) begin(ctx context.Context, now time.Time) (trying bool, err error) {
	l.pool.mu.Lock()
	defer l.pool.unlock()
	if err := l.may(ctx, now); err != nil {
		return false, err
	}
	a := l.exit.account
	a.trying = a.refusal != nil
	return a.trying, nil
}

// may says why the lease may not dial now. The mutex is held.
func (l *Lease) may(ctx context.Context, now time.Time) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if l.released || !l.end.IsZero() && !now.Before(l.end) {
		return fmt.Errorf("exit %v: %w", l.exit.Exit, ErrLeaseEnded)
	}
	if refused := l.exit.account.refused(now); refused != nil {
		return refused
	}
	if over := l.exit.overBudget(now); over != nil {
		return over
	}
	return nil
}

// wait takes a slot of the exit's or the account's, or says why there is none.
func (l *Lease) wait(ctx context.Context, s *slots, account string) error {
	p := l.pool
	p.mu.Lock()
	now := time.Now()
	if err := l.may(ctx, now); err != nil {
		p.unlock()
		return err
	}
	if s.waiting == 0 && s.free(now) {
		s.take(l.key)
		p.unlock()
		return nil
	}
	w := s.join(l.key)
	s.run(now)
	p.unlock()

	timeout := time.NewTimer(p.config.WaitTimeout)
	defer timeout.Stop()
	var err error
	select {
	case <-w.ready:
		return nil
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-timeout.C:
	}
	p.mu.Lock()
	defer p.unlock()
	end := time.Now()
	werr := &WaitError{Exit: l.exit.Exit, Account: account, Waited: end.Sub(now), Cap: s.cap(end), Holders: holders(s.held), Err: err}
	if !s.leave(w) {
		if err == nil {
			return nil // the slot came at the last moment
		}
		s.put(l.key)
	}
	s.run(end)
	return werr
}

// free gives slots back, to the next waiters if there are any.
func (l *Lease) free(all ...*slots) {
	l.pool.mu.Lock()
	defer l.pool.unlock()
	now := time.Now()
	for _, s := range all {
		s.put(l.key)
		s.run(now)
	}
	l.exit.used = now
	if l.exit.gone {
		l.pool.config.Commons.sweep()
	}
}

// Report tells the pool what was seen, without ending the lease.
func (l *Lease) Report(o Outcome) {
	l.pool.mu.Lock()
	defer l.pool.unlock()
	if !l.released {
		l.report(o)
	}
}

// Release ends the lease and tells the pool what was seen. Dials under way fail with ErrLeaseEnded. Connections that are open
// stay open, and hold their slots, until their owner closes them. Only the first call does anything.
func (l *Lease) Release(o Outcome) {
	l.pool.mu.Lock()
	defer l.pool.unlock()
	if l.released {
		return
	}
	l.report(o)
	l.released = true
	l.exit.leases--
	if l.exit.probe == l {
		l.exit.probe = nil // the next lease tries
	}
	// The functions this runs are on goroutines of their own, and may wait for the mutex.
	l.cancel(fmt.Errorf("exit %v: %w", l.exit.Exit, ErrLeaseEnded))
}

func (l *Lease) report(o Outcome) {
	p, e, now := l.pool, l.exit, time.Now()
	switch o {
	case Healthy:
		p.works(l, now)
		e.silent = 0
		if e.until.IsZero() {
			e.level = 0
		}
		if !e.resting(l.target, now) {
			delete(e.rests, l.target)
		}
	case ExitFailed:
		if e.overBudget(now) != nil || l.failed || !e.until.IsZero() && l.seq < e.outSeq {
			return // known already
		}
		e.average(1, now)
		p.quarantine(e, "reported", now)
	case ExitSilent:
		p.strike(l, &e.silent, "silent", now)
	case TargetRefused:
		p.restFor(e, l.target, now)
	}
}
