package framework

import (
	"context"
	"errors"
	"net/http"
)

// A site may refuse to go on from a cursor: it has expired there, or the site
// does not know it any more. Asked for the same again it answers the same for
// ever, so in the end a connection is opened without one.
//
// The cursor itself is only replaced when the first new event has been
// appended, in the journal as in memory: whatever happens before, the site is
// asked for it once more.

const (
	// maxRefusals is how many answers in a row that may be about the cursor, or
	// about anything else, are put up with before the site is asked without one.
	maxRefusals = 3
	// spared is how many requests the cursor is trusted for after the same
	// answer has come to a request without one.
	spared = 8
)

// doubtful tells whether the status may be about the cursor: not valid, not
// found, not met, too long in the query, not to be satisfied, not understood,
// too long in the header (RFC 9110, section 15.5; RFC 6585, section 5).
func doubtful(status int) bool {
	switch status {
	case http.StatusBadRequest, http.StatusNotFound, http.StatusPreconditionFailed, http.StatusRequestURITooLong,
		http.StatusRequestedRangeNotSatisfiable, http.StatusUnprocessableEntity, http.StatusRequestHeaderFieldsTooLarge:
		return true
	}
	return false
}

// reach is how much of what is known of a stream's place the next connection
// is opened with.
type reach byte

const (
	reachBack   reach = iota // from before the cursor, where that is wanted
	reachCursor              // from the cursor
	reachNone                // from where the site has newcomers begin
)

// refusal is what a line knows of a cursor that the site refuses. The runner's
// mutex guards it.
type refusal struct {
	layer  Layer // the answer …
	status int
	times  int // … to so many connections in a row that were asked to go on from a cursor
	spare  int // of them tell nothing: it has come without a cursor, too

	reach reach
	// doubted: without a cursor the site is only asked whether it answers, and
	// then once more with it. asked: it did.
	doubted, asked bool
	// opened: a connection was opened without the cursor that the stream had
	// then. Another one is tried again.
	opened bool
	cursor Cursor
}

// errNewcomer ends a connection that was opened without the cursor, to see
// whether the cursor is what the site refuses: it may have been a hiccup that
// is over, and the cursor good.
var errNewcomer = errors.New("without the cursor the site answers: it is asked once more with it")

// begins is where the next connection of the line begins. It runs under r.mu.
func (r *runner) begins(l *line) Cursor {
	f := &l.refusal
	if f.opened && r.cursor != f.cursor {
		*f = refusal{}
	}
	switch {
	case f.reach == reachNone:
		return ""
	case f.reach == reachCursor:
		return r.cursor
	case l.back != "":
		return l.back
	}
	return r.resumeFrom()
}

// refused counts the connections in a row that were asked to go on from a
// cursor and came to the same end.
func (f *refusal) refused(o *Outcome, carried bool) int {
	same := o.Layer == f.layer && o.Status == f.status
	switch {
	case f.reach == reachNone && same:
		*f = refusal{layer: o.Layer, status: o.Status, spare: spared} // the cursor is not the cause
		return 0
	case f.reach == reachNone && o.Layer == LayerTarget:
		*f = refusal{} // nothing is won without the cursor
		return 0
	case !carried:
		return 0
	case !same:
		*f = refusal{layer: o.Layer, status: o.Status}
	}
	f.times++
	return max(0, f.times-f.spare)
}

// letGo has the next connections of the line opened without the cursor that
// was refused: from the cursor itself, where one before it was, or else without
// any. It runs under r.mu.
func (r *runner) letGo(l *line, a *attempt, o *Outcome) {
	f := &l.refusal
	if f.reach == reachBack && r.cursor != "" && a.from != r.cursor && (!a.latest || a.events > 0) {
		f.reach = reachCursor
		return
	}
	f.reach = reachNone
	f.doubted = !f.asked && (f.spare > 0 || doubtful(o.Status) && o.Refused >= maxRefusals)
}

// answered notes that the site has answered with the stream. The error says
// that the connection was only to find out whether it would.
func (r *runner) answered(l *line) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	f := &l.refusal
	switch {
	case f.reach != reachNone: // what becomes of it tells
	case f.doubted:
		f.doubted, f.asked, f.reach = false, true, reachCursor
		return errNewcomer
	case !f.opened:
		f.opened, f.cursor = true, r.cursor
		text, log := "the site refuses the cursor: going on without it, from where the site has newcomers begin", r.Log.Warn
		if l.old != nil || r.abreast(l) {
			text, log = "the site refuses the cursor: a connection beside the one that delivers begins without it", r.Log.Info
		}
		if r.warned != r.cursor { // by another line
			log(text, "cursor", excerpt(r.cursor), "status", f.status)
		}
		r.warned = r.cursor
		r.known = true // there was something before what comes
	}
	l.back, l.anew = "", f.reach == reachNone
	return nil
}

// excerpt is as much of a cursor or an event as a log line shows.
func excerpt[T Cursor | []byte](text T) string {
	const most = 128
	return string(text[:min(len(text), most)])
}

// succeedAnew opens the connection of a successor once more, without a cursor,
// where that may be what the site refuses: nothing is missed by it, since the
// old line delivers.
func (r *runner) succeedAnew(ctx context.Context, l *line, a *attempt, err error) error {
	if !a.carried {
		return err
	}
	o := outcomeOf(err)
	o.Refused = maxRefusals
	if v := a.def.verdict(o); v.Remedy != Forget || ctx.Err() != nil {
		return err
	}
	a.watch.Stop()
	if err := a.def.Limits.Wait(ctx, a.def.Host); err != nil {
		return err
	}
	r.mu.Lock()
	l.refusal = refusal{layer: o.Layer, status: o.Status, reach: reachNone}
	r.mu.Unlock()
	return r.open(ctx, l, a, 0)
}
