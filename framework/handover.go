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
	// maxHandoverRetry bounds the pause, which doubles, where somebody asked
	// for the change: nothing ends without it.
	maxHandoverRetry = time.Minute
)

// plan arranges the handovers of the connection: those that can be foreseen,
// and what Worker.Rotate and Worker.Update ask for. The function it returns
// calls them off.
func (r *runner) plan(ctx context.Context, cancel context.CancelFunc, l *line, a *attempt) (off func()) {
	p := &plans{}
	change := func(cause Cause, again bool) {
		own, done := p.begin(ctx, again)
		if own == nil {
			return
		}
		go func() {
			defer close(done)
			if again && sleep(own, handoverRetry) != nil {
				return
			}
			for wait := handoverRetry; ; wait = min(2*wait, maxHandoverRetry) {
				over, retry := r.handover(own, ctx, cancel, l, a, cause)
				if cause == CausePlanned { // it may never come to anything
					retry = max(retry, wait)
				}
				if over || sleep(own, retry) != nil {
					return
				}
			}
		}()
	}
	r.mu.Lock()
	l.change = change
	if a.def != r.now() {
		change(CausePlanned, false)
	}
	r.mu.Unlock()
	var calls []func() bool
	if announcer := announcing(a.conn); announcer != nil {
		calls = append(calls, announcer.OnLeaving(func() { change(CauseGoAway, false) }))
	}
	at, cause := a.id.renewAt(), CauseRenewal
	if end := a.id.lease.expires(); !end.IsZero() {
		if end = end.Add(-leaseMargin); at.IsZero() || end.Before(at) {
			at, cause = end, CauseLease
		}
	}
	if !at.IsZero() {
		at = r.inTurn(at)
		calls = append(calls, time.AfterFunc(max(time.Until(at), 0), func() { change(cause, false) }).Stop)
	}
	// An exit that was taken out of its pool is left like one whose time is up.
	if removed := a.id.lease.removed(); removed.Done() != nil {
		calls = append(calls, context.AfterFunc(removed, func() { change(CauseLease, false) }))
	}
	return func() {
		for _, stop := range calls {
			stop()
		}
		r.mu.Lock()
		l.change = nil
		r.mu.Unlock()
		p.end()
	}
}

// plans are the handovers that are arranged for a connection. One of them is
// enough. Thousands of streams wait with nothing under way.
type plans struct {
	mu    sync.Mutex
	over  bool
	abort context.CancelFunc // of the last one that began; nil when none has
	done  chan struct{}      // closed when that has ended
}

// begin has the first one begin, and the others do nothing: own is nil then.
// With again one more begins, since the successor of the first one came to
// nothing. The caller closes done.
func (p *plans) begin(ctx context.Context, again bool) (own context.Context, done chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over || p.done != nil && !again {
		return nil, nil
	}
	p.done = make(chan struct{})
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
	def := r.now()
	early := min(def.Limits.turn(def.Host), time.Until(due)/2)
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
	waiting, def := l.waiting, r.now()
	surplus := l.slot >= def.Lines
	leave := surplus && r.held(def) && r.dismiss(l)
	r.mu.Unlock()
	switch {
	case leave:
		l.shut("", true)
		return true, 0
	case waiting || surplus:
		return false, handoverRetry // this line is a successor itself and has not joined yet, or the only one that delivers
	}
	ids := def.Identities.slot(l.slot)
	id, err := r.follow(ctx, def, ids, l, a, cause)
	if err != nil {
		if ctx.Err() == nil && err != errNoBetter {
			r.Log.Warn("a planned change has to wait", "cause", cause, "error", err)
		}
		return false, retryOf(err)
	}
	if def.Handover == HandoverBreak {
		id.release()
		if cause == CausePlanned { // all of the host's at once would wait long for their turns
			if early := def.Limits.turn(def.Host); early > 0 && sleep(ctx, rand.N(early)) != nil {
				return true, 0
			}
		}
		l.shut(cause, false)
		return true, 0
	}
	succ := r.newLine(l.slot, ids)
	r.mu.Lock()
	succ.old, succ.succeeds = l, cause
	r.mu.Unlock()
	b := &attempt{def: def, id: id, began: time.Now()}
	// The successor outlives this handover, but its opening does not.
	opening, abort := context.WithCancel(stream)
	kept := context.AfterFunc(ctx, abort)
	if err = r.queue(opening, succ, b); err == nil {
		if err = r.open(opening, succ, b, 0); err != nil {
			err = r.succeedAnew(opening, succ, b, err)
		}
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
	r.slots[succ.slot]++
	r.mu.Unlock()
	r.wg.Go(func() {
		defer abort()
		r.hold(stream, cancel, succ, b)
	})
	return true, 0
}

// errNoBetter says that the keeper could not do better yet.
var errNoBetter = errors.New("there is no better identity yet")

// follow returns the identity of the connection that takes the place of a's.
func (r *runner) follow(ctx context.Context, def *definition, ids *Identities, l *line, a *attempt, cause Cause) (id *identity, err error) {
	switch {
	case ids != l.ids:
		return ids.acquire(ctx)
	case a.def.turn != def.turn:
		return ids.another(ctx, a.id)
	case cause == CausePlanned:
		return a.id.again(), nil // all that it was asked for is another way to read
	case cause == CauseGoAway:
		return a.id.again(), nil // its transport opens another connection
	case cause == CauseLease:
		id, err = ids.rotate(ctx, a.id, poolOutcome(nil))
	default:
		id, err = ids.reauthenticate(ctx, a.id, false)
	}
	if err != nil {
		return nil, err
	}
	if id == a.id || id.credential != nil && id.credential == a.id.credential && id.lease == a.id.lease {
		id.release()
		return nil, errNoBetter
	}
	if cause == CauseRenewal {
		r.stats.renewed()
		r.Log.Info("credential renewed before its end", "exit", id.lease.exit(), "generation", id.credential.Generation)
	}
	return id, nil
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
