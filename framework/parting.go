package framework

import (
	"cmp"
	"context"
	"slices"

	"github.com/holdline/scrape/internal/splice"
)

// When a connection ends, what waits for it must not wait any longer, and what
// it held itself must not be lost with it: the line that it waited for may be
// dead without anybody knowing yet.

// maxRemains bounds how many connections that have ended still have events
// waiting.
const maxRemains = 8

// parted deals with what waits when the connection of a line has ended, and
// tells whether the line is over, since another one has its place, or why what
// it held could not be delivered.
func (r *runner) parted(ctx context.Context, l *line) (over bool, err error) {
	r.mu.Lock()
	defer r.unlock()
	r.closed(l)
	r.leaving = l
	switch {
	case !l.waiting:
	case l.old != nil:
		r.remain(ctx, l)
		if l.old.change != nil {
			l.old.change(l.succeeds, true)
		}
		l.old, l.missed, over = nil, true, true
		r.Log.Info("the successor's connection ended before it could take over")
	case r.abreast(l):
		r.remain(ctx, l)
	default:
		err = r.decide(ctx, l)
	}
	if err == nil {
		err = r.unseen(context.WithoutCancel(ctx), l)
	}
	r.leaving = nil
	r.parts(l)
	from := r.resumeFrom()
	for _, w := range r.waiting {
		if w.old == l {
			w.old, over = nil, true
		}
		switch {
		case !w.waiting || w.old != nil || r.abreast(w):
		case ctx.Err() != nil && w.side && !r.splice.Sequential():
			// All are stopped: the cursor must not pass what the line that has
			// just been stopped would have brought.
			w.missed = len(r.admit(w).events) > 0
		case r.splice.Sequential() && len(w.held.events) > 0 && !w.remains:
			w.deadline.Stop()
			r.limit(ctx, w) // a replay may be under way
		default:
			if len(w.held.events) > 0 {
				l.back = cmp.Or(l.back, from) // the site may send what lies in between
			}
			if err := r.decide(ctx, w); err != nil {
				r.fail(w, err)
			}
		}
	}
	return over, err
}

// remain has what the line holds wait on when its connection has ended: the line
// that it waits for brings it, too, unless that one is dead. Where a site goes
// on from a cursor the next connection brings it. It runs under r.mu.
func (r *runner) remain(ctx context.Context, l *line) {
	doubted, h := l.doubted, r.admit(l)
	l.missed = len(h.events) > 0
	if !l.missed || !r.splice.Sequential() && !l.resumes {
		return
	}
	var all []*line
	for _, w := range r.waiting {
		if w.remains {
			all = append(all, w)
		}
	}
	if len(all) >= maxRemains {
		if err := r.decide(ctx, all[0]); err != nil {
			r.fail(all[0], err)
		}
	}
	g := &line{
		seam: l.seam, slot: l.slot, ids: l.ids, exit: l.exit,
		again: l.again, joined: l.joined, reaches: l.reaches, count: l.count,
		opened: l.opened, resumes: l.resumes, succeeds: l.succeeds, anew: l.anew,
		waiting: true, remains: true, held: h, doubted: doubted, since: l.since,
	}
	g.count.unsound, g.count.seam = 0, nil // see parts
	r.waiting = append(r.waiting, g)
	r.limit(ctx, g)
}

// remained delivers what a line has held whose connection has ended, if its place
// is found or those that it waited for have brought nothing since: then they are
// dead. Without a place it may be the beginning of a replay, where all of it was
// delivered before.
func (r *runner) remained(ctx context.Context, l *line, h held, fit splice.Fit) error {
	alive := slices.ContainsFunc(h.beside, func(o beside) bool { return o.seam.Number == o.number && o.line.heard > o.heard })
	switch {
	case fit.OK, !alive && !fit.Known:
		return r.release(ctx, l, h, fit)
	case fit.Known:
		r.doubled(l, h.events...)
	}
	return nil
}

// fail ends the connection of a line because what it held could not be
// delivered; of one that has ended, that of another line. It runs under r.mu.
func (r *runner) fail(l *line, err error) {
	if l.remains && len(r.connected) > 0 {
		l = r.connected[0]
	}
	l.fail(err)
}
