package framework

import (
	"context"
	"fmt"
	"time"

	"github.com/holdline/scrape/internal/watch"
)

// slot is room for an event.
type slot struct {
	Event
	digits [20]byte // of its number: see runner.sequenced
}

// pump reads a connection until it ends. The caller leaves it.
func (r *runner) pump(ctx context.Context, cancel context.CancelFunc, l *line, a *attempt) error {
	if !ending(a.conn) {
		defer context.AfterFunc(ctx, func() { a.conn.Close() })()
	}
	r.mu.Lock()
	r.enter(l)
	r.mu.Unlock()
	defer r.plan(ctx, cancel, l, a)()
	r.Log.Debug("connected", "exit", a.id.lease.exit(), "cursor", string(a.from))
	var err error
	apart(func() { err = r.noteOpen(ctx, a) })
	if err != nil {
		return err
	}
	if r.feed == nil {
		return r.read(ctx, l, a, func(bool) error { return nil })
	}
	return r.read(ctx, l, a, r.feed.lender(func(after func(bool) error) error {
		l.guest = true
		defer func() { l.guest = false }()
		return r.read(ctx, l, a, after)
	}))
}

// read takes the events of a connection until it ends. When it has taken all
// that had come it calls after, with whether the line holds them.
func (r *runner) read(ctx context.Context, l *line, a *attempt, after func(held bool) error) error {
	for {
		if err := a.next(); err != nil {
			return l.reason(err)
		}
		held, err := r.take(ctx, l, a)
		if err == nil {
			err = after(held)
		}
		if err != nil {
			return err
		}
	}
}

// next waits for the next event.
func (a *attempt) next() error {
	if a.read {
		return nil
	}
	if n := a.events - a.told; n > 0 {
		a.watch.Events(int(n))
		a.told = a.events
	}
	if a.burst == nil {
		a.burst = make([]slot, 1)
	}
	if err := a.conn.Next(&a.burst[0].Event); err != nil {
		return err
	}
	a.read = true
	return nil
}

// maxBurst bounds what is taken at once, so that others get their turn.
const maxBurst = 32

// take takes the event that was read and those that came with it, so that lock,
// watch and account are paid once for all of them. It runs on the goroutine
// that reads the line. held says that the line waits for its place.
func (r *runner) take(ctx context.Context, l *line, a *attempt) (held bool, err error) {
	if !r.lock(l) {
		return false, errReturned
	}
	if l.guest {
		r.feed.guest = true
	}
	defer func() {
		if r.stats.publish(); l.guest {
			r.feed.guest = false
		}
		r.mu.Unlock()
	}()
	conn, _ := a.conn.(*httpConnection)
	a.read = false
	if r.steady = r.calm(l); r.steady {
		l.count.known = false // nobody looks at the numbers
	}
	at := &a.burst[0]
	for n := 1; ; n++ {
		if err := r.takeOne(ctx, l, a, at); err != nil {
			return false, err
		}
		if n == maxBurst || conn == nil {
			return l.waiting, nil
		}
		if l.guest { // which keeps what it takes
			if n == len(a.burst) {
				a.burst = append(a.burst, slot{})
			}
			at = &a.burst[n]
		}
		switch more, err := conn.buffered(&at.Event); {
		case err != nil:
			return false, l.reason(err)
		case !more:
			return l.waiting, nil
		}
	}
}

// takeOne takes one event. It runs under r.mu.
func (r *runner) takeOne(ctx context.Context, l *line, a *attempt, s *slot) (err error) {
	ev := &s.Event
	if ev.Aside {
		return r.aside(ctx, l, ev)
	}
	r.sequenced(ev, s.digits[:0])
	if types := a.def.types; types == nil || types[ev.Type] {
		if err = r.offer(ctx, l, ev); err == nil {
			a.events++
		}
		if !a.awake && l.news.Load() {
			a.awake = true
			a.watch.Within(a.def.StaleAfter, a.def.QuietAfter) // it is not quiet any more
			r.Log.Debug("brings news", "exit", a.id.lease.exit())
		}
	} else {
		r.stats.ignored.Add(1)
		switch ev.ignored = ev.Sequenced; {
		case ev.ignored:
			err = r.offer(ctx, l, ev)
		case len(ev.ID) > 0:
			r.splice.Sparse() // it has an id that those kept lack
		}
	}
	a.missed = a.missed || err != nil
	return err
}

// lock locks r.mu for the goroutine that reads the line. A guest does not wait:
// who has the lock may be waiting for the guest to take what was delivered.
func (r *runner) lock(l *line) bool {
	if l.guest && !r.mu.TryLock() {
		return false
	}
	if !l.guest {
		r.mu.Lock()
	}
	return true
}

// unlock ends what may have delivered events on another goroutine than that of
// their line.
func (r *runner) unlock() {
	r.stats.publish()
	r.mu.Unlock()
	if r.feed != nil {
		r.feed.wake()
	}
}

// reason puts what was done to the connection on purpose in the place of the
// error that came of it.
func (l *line) reason(err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.closed():
		return errReplaced
	case l.failure != nil:
		return l.failure
	case l.planned != "":
		return errPlanned
	case l.silence == watch.Silence:
		return fmt.Errorf("%w for %v", errSilent, l.waited.Round(time.Millisecond))
	case l.silence == watch.Quiet:
		return fmt.Errorf("%w for %v", errQuiet, l.waited.Round(time.Millisecond))
	}
	return err
}
