package framework

import (
	"context"
	"net/http"
	"slices"
	"sync/atomic"
	"time"
)

// A handover replaces a connection whose end can be foreseen: the successor is
// opened first, its events wait until the old line has reached its first one
// or is dead, and then the old connection is closed. Where that is not
// possible the old connection is closed first: a planned break.

const (
	// maxHeld and maxHeldBytes bound what a successor holds while it waits.
	maxHeld, maxHeldBytes = 4096, 4 << 20
	// joinTimeout bounds how long it waits for the old line to reach it.
	joinTimeout = 10 * time.Second
	// handoverRetry is the pause after a handover that came to nothing.
	handoverRetry = 5 * time.Second
	// leaseMargin is how long before the end of a lease its handover begins:
	// long enough for a login through a browser.
	leaseMargin = 5 * time.Second
)

// heldEvent is a copy of an event that waits.
type heldEvent struct {
	Event
	content uint64
}

// heldFirst tells whether the line waits with this event in front.
func (l *line) heldFirst(id []byte, content uint64) bool {
	return l.waiting && len(l.held) > 0 && len(id) > 0 && l.held[0].content == content && string(l.held[0].ID) == string(id)
}

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
	own, stop := context.WithCancel(ctx)
	var begun atomic.Bool // one change is enough
	done := make(chan struct{})
	change := func(cause Cause) {
		if begun.Swap(true) {
			return
		}
		defer close(done)
		for !r.handover(own, ctx, cancel, l, a, cause) {
			select {
			case <-own.Done():
				return
			case <-time.After(handoverRetry):
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
	kept := context.AfterFunc(removed, func() { change(CauseLease) })
	return func() {
		stop()
		unheard()
		undue()
		kept()
		if begun.Swap(true) {
			<-done // it ends soon: its context has ended
		}
	}
}

// handover tries one planned change and tells whether there is nothing left
// to do. It runs beside the line that is to be replaced. ctx ends with that
// line's connection, stream with the stream, whose cancel is handed on.
func (r *runner) handover(ctx, stream context.Context, cancel context.CancelFunc, l *line, a *attempt, cause Cause) (done bool) {
	r.mu.Lock()
	waiting := l.waiting
	r.mu.Unlock()
	if waiting {
		return false // this line is a successor itself and has not joined yet
	}
	var id *identity
	var err error
	if cause == CauseGoAway {
		id = a.id.again() // its transport opens another connection
	} else if cause == CauseLease {
		id, err = r.Identities.rotate(ctx, a.id, poolOutcome(nil))
	} else {
		id, err = r.Identities.reauthenticate(ctx, a.id, false)
	}
	if err != nil {
		if ctx.Err() == nil {
			r.Log.Warn("a planned change has to wait", "cause", cause, "error", err)
		}
		return false
	}
	if cause != CauseGoAway && (id == a.id || id.credential != nil && id.credential == a.id.credential && id.lease == a.id.lease) {
		id.release()
		return false // the keeper could not do better yet
	}
	if cause == CauseRenewal {
		r.stats.renewed()
		r.Log.Info("credential renewed before its end", "exit", id.lease.exit(), "generation", id.credential.Generation)
	}
	if !r.overlaps() {
		id.release()
		l.shut(cause, false)
		return true
	}
	succ := r.newLine()
	succ.waiting, succ.old, succ.succeeds = true, l, cause
	b := &attempt{id: id, began: time.Now()}
	// The successor outlives this handover, but its opening does not.
	opening, abort := context.WithCancel(stream)
	kept := context.AfterFunc(ctx, abort)
	err = r.open(opening, succ, b, 0)
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
			return true
		}
		if !crowded(err) {
			r.Log.Warn("a planned change has to wait", "cause", cause, "error", err)
			return false
		}
		r.Log.Info("no room for an overlap: closing the old connection first", "cause", cause, "error", err)
		l.shut(cause, false)
		return true
	}
	r.stats.rotated(a.id, id)
	r.stats.reconnect(cause)
	r.mu.Lock()
	r.successor = succ
	r.mu.Unlock()
	succ.deadline = time.AfterFunc(joinTimeout, func() { r.joinAnyway(stream, succ) })
	r.wg.Go(func() {
		defer abort()
		r.hold(stream, cancel, succ, b)
	})
	return true
}

// crowded tells whether a successor failed for want of room: a cap of the
// site's, of the proxy's or of ours.
func crowded(err error) bool {
	o := outcomeOf(err)
	return o.Status == http.StatusTooManyRequests || o.Status == http.StatusConflict || o.Layer == LayerProxyCapacity || o.Layer == LayerLimit
}

// inherit lets a waiting successor take over at once because its old line, l,
// has ended. It tells whether there was one.
func (r *runner) inherit(ctx context.Context, l *line) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.successor
	if s == nil || s.old != l {
		return false
	}
	// An error of the journal is met again at the successor's next event.
	_ = r.join(ctx, s)
	return true
}

// abandon gives up a successor whose connection ended before it could join.
// It tells whether l was one.
func (r *runner) abandon(l *line) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !l.waiting {
		return false
	}
	if r.successor == l {
		r.successor = nil
	}
	r.Log.Info("the successor's connection ended before it could take over")
	return true
}

// overlaps tells whether a successor may run beside the old line.
func (r *runner) overlaps() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch r.Handover {
	case HandoverOverlap:
		return true
	case HandoverBreak:
		return false
	default:
		return r.hasIDs // without ids the events of two lines cannot be told apart
	}
}

// wait holds an event of a successor until it may join. It runs under r.mu.
func (r *runner) wait(ctx context.Context, l *line, ev *Event) error {
	first := len(l.held) == 0
	if first && ev.ignored {
		return nil // the old line passes its number
	}
	content := HashEvent(ev.Type, ev.Data)
	kept := *ev
	kept.ID, kept.Data = slices.Clone(ev.ID), slices.Clone(ev.Data)
	l.held = append(l.held, heldEvent{kept, content})
	l.heldLen += len(ev.ID) + len(ev.Data)
	if first && r.splice.Knows(ev.ID, content) || len(l.held) >= maxHeld || l.heldLen >= maxHeldBytes {
		return r.join(ctx, l)
	}
	return nil
}

// join lets a successor take over: what it held is delivered, the old line is
// closed. It runs under r.mu.
func (r *runner) join(ctx context.Context, l *line) error {
	held := l.held
	l.waiting, l.held, l.heldLen = false, nil, 0
	if r.successor == l {
		r.successor = nil
	}
	l.old.shut("", true)
	l.old = nil
	r.stats.set("live", "")
	for i := range held {
		if err := r.accept(ctx, l, &held[i].Event); err != nil {
			return err
		}
	}
	return nil
}

// joinAnyway ends a wait that has lasted too long, or whose old line is dead.
func (r *runner) joinAnyway(ctx context.Context, l *line) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if l.waiting && r.successor == l && ctx.Err() == nil {
		// An error of the journal is met again at the next event.
		_ = r.join(ctx, l)
	}
}
