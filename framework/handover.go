package framework

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"github.com/holdline/scrape/auth"
)

// A handover replaces a connection whose end can be foreseen: the successor is
// opened first, its events wait until the old line has reached its first one
// or is dead, and then the old connection is closed. Where that is not
// possible the old connection is closed first: a planned break.

const (
	// handoverRetry is the pause after a handover that came to nothing.
	handoverRetry = 5 * time.Second
	// leaseMargin is how long before the end of a lease its handover begins:
	// long enough for a login through a browser.
	leaseMargin = 5 * time.Second
)

// plan arranges the handovers that can be foreseen for the connection. The
// function it returns calls them off.
func (r *runner) plan(ctx context.Context, cancel context.CancelFunc, l *line, a *attempt) (off func()) {
	announcer := announcing(a.conn)
	at, cause := a.id.renewAt(), CauseRenewal
	if end := a.id.lease.expires(); !end.IsZero() {
		if end = end.Add(-leaseMargin); at.IsZero() || end.Before(at) {
			at, cause = end, CauseLease
		}
	}
	removed := a.id.lease.removed()
	if at.IsZero() && announcer == nil && removed.Done() == nil {
		return func() {}
	}
	if !at.IsZero() {
		at = r.inTurn(at)
	}
	p := &plans{}
	change := func(cause Cause) {
		own, done := p.begin(ctx)
		if own == nil {
			return
		}
		defer close(done)
		for {
			over, again := r.handover(own, ctx, cancel, l, a, cause)
			if over || sleep(own, again) != nil {
				return
			}
		}
	}
	unheard := func() bool { return true }
	if announcer != nil {
		unheard = announcer.OnLeaving(func() { change(CauseGoAway) })
	}
	undue := func() bool { return true }
	if !at.IsZero() {
		undue = time.AfterFunc(max(time.Until(at), 0), func() { change(cause) }).Stop
	}
	// An exit that was taken out of its pool is left like one whose time is up.
	kept := func() bool { return true }
	if removed.Done() != nil {
		kept = context.AfterFunc(removed, func() { change(CauseLease) })
	}
	return func() {
		unheard()
		undue()
		kept()
		p.end()
	}
}

// plans are the handovers that are arranged for a connection. One of them is
// enough. Thousands of streams wait with nothing under way.
type plans struct {
	mu    sync.Mutex
	over  bool
	abort context.CancelFunc // of the one under way; nil when there is none
	done  chan struct{}      // closed when that has ended
}

// begin has the first one begin, and the others do nothing: own is nil then.
// The caller closes done.
func (p *plans) begin(ctx context.Context) (own context.Context, done chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over {
		return nil, nil
	}
	p.over, p.done = true, make(chan struct{})
	own, p.abort = context.WithCancel(ctx)
	return own, p.done
}

// end calls them off.
func (p *plans) end() {
	p.mu.Lock()
	p.over = true
	abort, done := p.abort, p.done
	p.mu.Unlock()
	if abort != nil {
		abort()
		<-done // it ends soon: its context has ended
	}
}

// inTurn is when a line begins a change that is due at a time: earlier by
// chance, so that all lines of the host are done by then. They take half of the
// time that is left at most, since the successor's clock runs from the first.
func (r *runner) inTurn(due time.Time) time.Time {
	early := min(r.Limits.turn(r.Host), time.Until(due)/2)
	if early <= 0 {
		return due
	}
	return due.Add(-rand.N(early))
}

// handover tries one planned change and tells whether there is nothing left
// to do, or how long to wait before it is tried again. It runs beside the line
// that is to be replaced. ctx ends with that line's connection, stream with the
// stream, whose cancel is handed on.
func (r *runner) handover(ctx, stream context.Context, cancel context.CancelFunc, l *line, a *attempt, cause Cause) (done bool, again time.Duration) {
	r.mu.Lock()
	waiting := l.waiting
	r.mu.Unlock()
	if waiting {
		return false, handoverRetry // this line is a successor itself and has not joined yet
	}
	var id *identity
	var err error
	if cause == CauseGoAway {
		id = a.id.again() // its transport opens another connection
	} else if cause == CauseLease {
		id, err = l.ids.rotate(ctx, a.id, poolOutcome(nil))
	} else {
		id, err = l.ids.reauthenticate(ctx, a.id, false)
	}
	if err != nil {
		if ctx.Err() == nil {
			r.Log.Warn("a planned change has to wait", "cause", cause, "error", err)
		}
		return false, retryOf(err)
	}
	if cause != CauseGoAway && (id == a.id || id.credential != nil && id.credential == a.id.credential && id.lease == a.id.lease) {
		id.release()
		return false, handoverRetry // the keeper could not do better yet
	}
	if cause == CauseRenewal {
		r.stats.renewed()
		r.Log.Info("credential renewed before its end", "exit", id.lease.exit(), "generation", id.credential.Generation)
	}
	if r.Handover == HandoverBreak {
		id.release()
		l.shut(cause, false)
		return true, 0
	}
	succ := r.newLine(l.ids)
	r.mu.Lock()
	succ.old, succ.succeeds = l, cause
	r.mu.Unlock()
	b := &attempt{id: id, began: time.Now()}
	// The successor outlives this handover, but its opening does not.
	opening, abort := context.WithCancel(stream)
	kept := context.AfterFunc(ctx, abort)
	if err = r.queue(opening, succ, b); err == nil {
		err = r.open(opening, succ, b, 0)
	}
	if !kept() && err == nil {
		b.conn.Close()
		err = context.Cause(ctx)
	}
	if err != nil {
		abort()
		if b.watch != nil {
			b.watch.Stop()
		}
		b.free()
		b.id.release()
		if ctx.Err() != nil {
			return true, 0
		}
		if !crowded(err) {
			r.Log.Warn("a planned change has to wait", "cause", cause, "error", err)
			return false, handoverRetry
		}
		r.Log.Info("no room for an overlap: closing the old connection first", "cause", cause, "error", err)
		l.shut(cause, false)
		return true, 0
	}
	r.stats.rotated(a.id, id)
	r.stats.reconnect(cause)
	r.mu.Lock()
	r.await(stream, succ)
	r.mu.Unlock()
	r.wg.Go(func() {
		defer abort()
		r.hold(stream, cancel, succ, b)
	})
	return true, 0
}

// retryOf is when a change is tried again that failed for want of an identity.
func retryOf(err error) time.Duration {
	var hold *auth.HoldError
	if errors.As(err, &hold) && !hold.Until.IsZero() {
		return max(handoverRetry, time.Until(hold.Until))
	}
	return handoverRetry
}

// crowded tells whether a successor failed for want of room: a cap of the
// site's, of the proxy's or of ours.
func crowded(err error) bool {
	o := outcomeOf(err)
	return o.Status == http.StatusTooManyRequests || o.Status == http.StatusConflict || o.Layer == LayerProxyCapacity || o.Layer == LayerLimit
}
