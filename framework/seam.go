package framework

import (
	"context"
	"slices"
	"time"

	"github.com/holdline/scrape/internal/splice"
)

// A connection that begins beside another one, or whose events have no ids to
// tell what was delivered before, or after a restart no ids to tell whether it
// was long ago, waits until its place in the stream is found: where another line may still bring what comes before its first event,
// a cursor must not pass it. What it brings meanwhile is held, within bounds.

const (
	// maxHeld and maxHeldBytes bound what a line holds while it waits.
	maxHeld, maxHeldBytes = 4096, 4 << 20
	// joinTimeout bounds how long it waits for another line to reach it, and
	// replayTimeout for a replay, where there is no other.
	joinTimeout, replayTimeout = 10 * time.Second, time.Second
	// deepReplay is how many events a line brings meanwhile that seems to begin
	// long before what is remembered.
	deepReplay = 500
)

// held is what a waiting line has brought.
type held struct {
	events   []Event  // the first one is of a kept type
	contents []uint64 // their hashes
	tokens   []uint64 // the names in the splice of those of kept types
	size     int
	tries    int      // how often its place was looked for, which costs
	beside   []beside // the lines that delivered when the wait began
}

func (h *held) add(ev *Event, content, token uint64) {
	kept := *ev
	kept.ID, kept.Data = slices.Clone(ev.ID), slices.Clone(ev.Data)
	h.events = append(h.events, kept)
	h.contents = append(h.contents, content)
	if !ev.ignored {
		h.tokens = append(h.tokens, token)
	}
	h.size += len(ev.ID) + len(ev.Data)
}

// after is the index of what follows the first events of kept types, so many.
func (h *held) after(kept int) (i int) {
	for ; kept > 0; i++ {
		if !h.events[i].ignored {
			kept--
		}
	}
	return i
}

func (h *held) full() bool { return len(h.events) >= maxHeld || h.size >= maxHeldBytes }

// abreast tells whether another line is delivering. It runs under r.mu.
func (r *runner) abreast(l *line) bool {
	return slices.ContainsFunc(r.connected, func(o *line) bool { return o != l && !o.waiting && o.seam.Begun() })
}

// stray tells whether the place of a line has to be found before this event of
// its can be taken. It runs under r.mu.
func (r *runner) stray(l *line, ev *Event, content uint64) bool {
	switch {
	case ev.ignored, r.splice.Empty():
		return false
	case !l.seam.Begun() && r.splice.Unsure() && !r.splice.Reached(ev.ID, content):
		return true
	case r.skips(ev) && r.abreast(l):
		return true
	case r.splice.Sequential():
		return r.splice.Stray(&l.seam, ev.ID, content)
	case r.doubted(l, ev, content):
		l.doubted = true
		return true
	default:
		return !l.seam.Begun() && r.abreast(l) && !r.splice.Reached(ev.ID, content)
	}
}

// skips tells whether the event's number says that some are missing before it,
// which a slower line may still bring.
func (r *runner) skips(ev *Event) bool {
	return ev.Sequenced && r.sequence.known && ev.Sequence > r.sequence.last+1
}

// doubted tells whether the line begins with, or falls back to, a number that is
// missing, or came from the history. What it brings next shows whether it is
// that one, or another event with the same number, since the site has begun its
// numbers anew.
func (r *runner) doubted(l *line, ev *Event, content uint64) bool {
	if n, ok := r.number(ev); !ok || !r.gone(n) || l.seam.Begun() && (!l.count.known || n+farBack > l.count.last) {
		return false
	}
	return !r.met(l, ev, content)
}

// gone tells whether the number is missing, or was filled.
func (r *runner) gone(n uint64) bool {
	return r.missing.lacks(n, true) != nil || r.missing.filled(n, true)
}

// met tells whether the event was delivered, or is the one after all of those
// that were: the line goes by their count.
func (r *runner) met(l *line, ev *Event, content uint64) bool {
	return r.splice.Met(ev.ID, content) || l.doubted && ev.Sequenced && r.follows(ev.Sequence, true)
}

// contradicts tells whether the event has the number of another one that was
// delivered.
func (r *runner) contradicts(ev *Event) bool {
	n, ok := r.number(ev)
	last, counts := r.lastNumber()
	return ok && counts && n <= last && !r.gone(n)
}

// beside tells whether the event, with which a further line begins while
// nothing has stopped, is not beyond what another line has delivered: that one
// may have begun a little later. It runs under r.mu.
func (r *runner) beside(l *line, ev *Event, content uint64) bool {
	return !l.joined && l.succeeds == "" && r.lostCause == "" && r.abreast(l) && (l.reaches || r.splice.Met(ev.ID, content))
}

// await makes the line wait. It runs under r.mu.
func (r *runner) await(ctx context.Context, l *line) {
	l.waiting, l.side, l.since = true, false, r.splice.End()
	for _, o := range r.connected {
		if o != l && !o.waiting {
			l.held.beside = append(l.held.beside, beside{o, o.seam.Number, o.heard})
		}
	}
	r.waiting = append(r.waiting, l)
	r.limit(ctx, l)
}

// limit begins the time that a line may wait. It runs under r.mu.
func (r *runner) limit(ctx context.Context, l *line) {
	atMost := replayTimeout
	switch {
	case l.old != nil || r.abreast(l):
		l.side, atMost = true, joinTimeout
	case l.doubted:
		atMost = joinTimeout
	}
	var timer *time.Timer
	timer = time.AfterFunc(atMost, func() {
		r.mu.Lock()
		defer r.unlock()
		switch {
		case !l.waiting || l.deadline != timer:
		case atMost == replayTimeout && r.abreast(l):
			r.limit(ctx, l) // another line has come that may reach it
		default:
			if err := r.decide(ctx, l); err != nil {
				r.fail(l, err)
			}
		}
	})
	l.deadline = timer
}

// admit ends the wait of a line. It runs under r.mu.
func (r *runner) admit(l *line) held {
	h := l.held
	l.waiting, l.doubted, l.held = false, false, held{}
	l.deadline.Stop()
	l.deadline = nil
	r.waiting = slices.DeleteFunc(slices.Clone(r.waiting), func(w *line) bool { return w == l })
	return h
}

// wait holds an event of a line until it may join. It runs under r.mu.
func (r *runner) wait(ctx context.Context, l *line, ev *Event, content uint64) error {
	if ev.ignored && len(l.held.events) == 0 {
		return nil // the other line passes its number
	}
	l.held.add(ev, content, r.splice.Token(ev.ID, content))
	switch {
	case !r.splice.Sequential() && (r.splice.Reached(ev.ID, content) || r.met(l, ev, content)):
		l.reaches = r.met(l, ev, content)
		if l.reaches && r.sound(r.splice.Position(ev.ID, content)) {
			l.count.sure, l.count.shown = true, true
		}
		return r.join(ctx, l, splice.Fit{})
	case l.held.full(), l.doubted && r.contradicts(ev):
		return r.decide(ctx, l)
	}
	return r.try(ctx, l)
}

// try lets a waiting line join if its place is clear. It runs under r.mu.
func (r *runner) try(ctx context.Context, l *line) error {
	if l.pursuit.busy() {
		return nil
	}
	l.held.tries++
	if seldom := l.held.tries > 64 && l.held.tries%16 != 0; seldom || !l.waiting || !r.splice.Sequential() {
		return nil
	}
	if fit := r.align(l, false); fit.OK {
		return r.fits(ctx, l, fit)
	}
	return r.refind(ctx, l, false)
}

// delivered lets the lines join that wait for what has just been delivered. It
// runs under r.mu.
func (r *runner) delivered(ctx context.Context) error {
	if r.joining {
		return nil // what the joining line holds goes first
	}
	for _, w := range r.waiting { // joining replaces the slice
		if !w.waiting {
			continue
		}
		var err error
		switch {
		case r.splice.Sequential():
			err = r.try(ctx, w)
		case len(w.held.events) > 0 && r.splice.Reached(w.held.events[0].ID, w.held.contents[0]):
			err = r.join(ctx, w, splice.Fit{})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// decide lets a line join with what is known, because it has waited long
// enough or nothing more can come to know. It runs under r.mu.
func (r *runner) decide(ctx context.Context, l *line) error {
	if l.pursuit.busy() {
		return r.interrupted(ctx, l)
	}
	if len(l.held.events) == 0 {
		if r.abreast(l) {
			// Open side by side for so long, it has missed nothing.
			r.splice.Place(&l.seam, r.splice.End(), true)
		}
		return r.join(ctx, l, splice.Fit{})
	}
	var fit splice.Fit
	if r.splice.Sequential() {
		fit = r.align(l, l.side && r.kept(l))
		if fit.OK {
			return r.fits(ctx, l, fit)
		}
		if found, err := r.pursue(ctx, l, &fit); found || err != nil {
			return err
		}
	}
	return r.join(ctx, l, fit)
}

// kept tells whether another line has brought something since the wait of this
// one began: one that has not may be dead for long. So has one of a slow feed
// that brought its last event after a connection was opened that begins with
// now, and shortly before that one's first; but where events repeat, the next
// one may equal the last. It runs under r.mu.
func (r *runner) kept(l *line) bool {
	slow := !l.resumes && !l.joined && r.head != l.seam.Number && r.splice.End() > l.opened &&
		l.held.events[0].Time.Sub(r.lastEvent) < joinTimeout
	return r.splice.End() > l.since || slow && r.splice.Distinct()
}

// join lets a waiting line deliver: what it held, without what fits among the
// events delivered before. A line that it takes over from is closed. It runs
// under r.mu.
func (r *runner) join(ctx context.Context, l *line, fit splice.Fit) (err error) {
	if r.splice.Unsure() && (l.reaches || len(l.held.events) >= deepReplay) {
		r.splice.Deepen(&l.seam)
	}
	h := r.admit(l)
	r.joining = true
	defer func() {
		r.joining = false
		if err == nil {
			err = r.delivered(ctx)
		}
	}()
	if l.old != nil {
		l.old.shut("", true)
		r.closed(l.old)
		r.parts(l.old)
		l.old = nil
	}
	r.shown(l)
	if l.remains {
		r.leaving = l
		defer func() { r.leaving = nil; r.parts(l) }()
		err = r.remained(ctx, l, h, fit)
	} else {
		err = r.release(ctx, l, h, fit)
	}
	l.missed = l.missed || err != nil
	return err
}

// release delivers what a line has held. It runs under r.mu.
func (r *runner) release(ctx context.Context, l *line, h held, fit splice.Fit) error {
	if !r.splice.Sequential() || len(h.events) == 0 {
		return r.acceptAll(ctx, l, h.events, h.contents)
	}
	l.doubtful, l.again = fit.Doubtful, l.again || fit.Again > 0
	r.splice.Doubt(&l.seam, fit.Doubtful)
	before, late, again := h.after(fit.Before), h.after(fit.Before+fit.Late), h.after(fit.Before+fit.Late+fit.Again)
	r.doubled(l, h.events[:before]...)
	r.splice.Place(&l.seam, r.splice.End(), fit.OK && fit.Doubtful == 0)
	began, misplaced := r.splice.End(), h.events[before:late]
	if !fit.OK && began > l.since {
		misplaced = h.events // the other line may have brought what follows them
	}
	for i := range misplaced {
		misplaced[i].Late = true
	}
	if err := r.acceptAll(ctx, l, h.events[before:late], h.contents[before:late]); err != nil {
		return err
	}
	if fit.Late > 0 {
		r.splice.Insert(began, fit.Onto)
	}
	r.doubled(l, h.events[late:again]...)
	if fit.OK {
		l.brought(fit.Again > 0 && fit.Next > l.opened)
		r.splice.Place(&l.seam, fit.Next, true)
	}
	if err := r.acceptAll(ctx, l, h.events[again:], h.contents[again:]); err != nil {
		return err
	}
	if !fit.OK && began > l.since && ctx.Err() != nil {
		// All are stopped: no line goes on behind these, where the end may not be.
		r.splice.Insert(began, l.since)
	}
	if !fit.OK && !fit.Equal && r.abreast(l) {
		// What it brings next may have been delivered, too: it is not trusted
		// before its place has been found.
		r.splice.Lose(&l.seam)
	}
	return nil
}

func (r *runner) acceptAll(ctx context.Context, l *line, events []Event, contents []uint64) error {
	for i := range events {
		if err := r.accept(ctx, l, &events[i], contents[i]); err != nil {
			return err
		}
	}
	return nil
}

// enter notes that the line has a connection. It runs under r.mu.
func (r *runner) enter(l *line) {
	r.connected = append(r.connected, l)
	r.shown(l)
}

// shown has the stream called live while the line delivers. It runs under r.mu.
func (r *runner) shown(l *line) {
	if !l.live && !l.waiting && slices.Contains(r.connected, l) {
		l.live = true
		r.stats.live(l.exit)
	}
}

// closed notes that the line has no connection any more. It runs under r.mu.
func (r *runner) closed(l *line) {
	r.connected = slices.DeleteFunc(r.connected, func(o *line) bool { return o == l })
	if l.live {
		l.live = false
		r.stats.left()
	}
}
