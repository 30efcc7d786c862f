package auth

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
)

// refusalRest is how long after the last of refusalLimit refusals a new start
// tries once more: a program that is started again and again must not lock the
// account.
const refusalRest = time.Hour

// History is what a Keeper remembers of its logins from one run to the next, so
// that a program that ends and begins all the time hammers no login form, and
// what was learnt need not be learnt again. It holds no secret.
type History struct {
	// Attempts are when logins began within the last hour, oldest first.
	Attempts []time.Time
	// Took is how long the last good login took.
	Took time.Duration
	// Refusal is the last of those in a row with which the site refused the
	// account. Holds are failures in a row by exit, or of "" where the
	// credential is bound to none.
	Refusal Hold
	Holds   map[string]Hold
	// Lived is how long the last credential lasted that the site refused,
	// Lifetime what was learnt of it; 0 is not known.
	Lived, Lifetime time.Duration
}

// Hold is a failure that keeps the next login waiting.
type Hold struct {
	// Times is how often in a row it failed, Since when it did last.
	Times int
	Since time.Time
	// Until is when the next login may be tried. It is zero where none was to
	// be tried any more.
	Until time.Time
	// Why is the failure.
	Why string
}

func (h hold) kept(times int) Hold {
	if h.err == nil {
		return Hold{}
	}
	return Hold{Times: times, Since: h.since.Round(0), Until: h.until.Round(0), Why: h.err.Error()}
}

// history is what is to be kept. k.mu is held.
func (k *Keeper) history(now time.Time) History {
	k.ageAttempts(now)
	h := History{Took: k.lastTook, Refusal: k.refusal.kept(k.refused), Lived: k.lived, Lifetime: k.lifetime}
	for _, at := range k.attempts {
		h.Attempts = append(h.Attempts, at.Round(0))
	}
	for exit, s := range k.slots {
		if now.Before(s.hold.until) {
			if h.Holds == nil {
				h.Holds = map[string]Hold{}
			}
			h.Holds[exit] = s.hold.kept(s.failures)
		}
	}
	return h
}

// relive takes up what an earlier run has kept. k.mu is held.
func (k *Keeper) relive(h History, now time.Time) {
	for _, at := range h.Attempts {
		if !at.After(now) { // the clock was another one
			k.attempts = append(k.attempts, at)
		}
	}
	k.lastTook, k.lived, k.lifetime = h.Took, h.Lived, h.Lifetime
	took := func(h Hold, why string) hold {
		// Nothing waits longer than it could have been told to wait just now.
		return hold{since: h.Since, until: earliest(h.Until, now.Add(refusalRest)), err: errors.New(why)}
	}
	if r := h.Refusal; r.Times >= refusalLimit {
		k.refused = refusalLimit - 1
		r.Until = r.Since.Add(refusalRest)
		k.refusal = took(r, fmt.Sprintf("the site refused the last %d logins, also before this start; correct the user name or password, or log in by hand: %s", r.Times, r.Why))
	} else if r.Times > 0 {
		k.refused, k.refusal = r.Times, took(r, r.Why)
	}
	for _, exit := range slices.Sorted(maps.Keys(h.Holds)) {
		if len(k.slots) == maxHeld {
			break
		}
		s := k.slotFor(exit, now)
		s.failures, s.hold = h.Holds[exit].Times, took(h.Holds[exit], h.Holds[exit].Why)
	}
}

func earliest(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// remember keeps the history as it is.
func (k *Keeper) remember() {
	k.keeping.Lock()
	defer k.keeping.Unlock()
	k.rememberHeld()
}

// rememberHeld is remember with k.keeping held.
func (k *Keeper) rememberHeld() {
	if k.config.Store == nil {
		return
	}
	k.mu.Lock()
	h := k.history(time.Now())
	k.mu.Unlock()
	if err := k.config.Store.Remember(h); err != nil {
		k.mu.Lock()
		say := k.once("what was learnt of logins is not kept for the next run: a program that is started again and again may log in too often", "error", err)
		k.mu.Unlock()
		k.warn(say)
	}
}
