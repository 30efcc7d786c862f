package proxies

import (
	"math/rand/v2"
	"slices"
	"time"
)

// choose finds the exit for a request. It is called with the mutex held.
//
// The kind asked for comes before the fall-back, but an exit in good health, of either kind, before one that failed, and any
// exit before one that the request wants to avoid.
func (p *Pool) choose(r Request, now time.Time) (*exit, error) {
	kinds := []Kind{r.Kind, r.Fallback}
	if r.Fallback == "" {
		kinds = kinds[:1]
	}
	for _, avoid := range [][]string{r.Avoid, nil} {
		for _, needHealthy := range []bool{true, false} {
			for _, kind := range kinds {
				if from := p.usable(kind, r.Target, avoid, needHealthy, now); len(from) > 0 {
					return p.pick(from, r, now), nil
				}
			}
		}
		if len(r.Avoid) == 0 {
			break
		}
	}
	return nil, p.exhausted(kinds, r.Target, now)
}

// usable lists the exits of a kind that may be used for target. At least half of the kind (rounded up) is never out: where
// more are in quarantine, those are let in whose quarantine ends first. With needHealthy the list is empty unless some exit
// is not in quarantine.
func (p *Pool) usable(kind Kind, target string, avoid []string, needHealthy bool, now time.Time) []*exit {
	list, outs := p.picked[:0], p.readd[:0]
	all, in := 0, 0
	for _, e := range p.exits {
		if kind != "" && e.Kind != kind || e.account.refused(now) != nil || e.overBudget(now) != nil {
			continue
		}
		all++
		if e.out(now) {
			outs = append(outs, e)
			continue
		}
		in++
		if e.serves(target, avoid, now) {
			list = append(list, e)
		}
	}
	p.picked, p.readd = list, outs
	if needHealthy && len(list) == 0 {
		return nil
	}
	if missing := all - all/2 - in; missing > 0 {
		slices.SortStableFunc(outs, func(a, b *exit) int { return a.until.Compare(b.until) })
		for _, e := range outs[:missing] {
			if e.serves(target, avoid, now) {
				list = append(list, e)
			}
		}
		p.picked = list
	}
	return list
}

// serves tells whether the exit may be used for target. A session may always: it takes another generation where the address
// was refused, or is to be avoided. Not so when the proxy itself cannot be reached.
func (e *exit) serves(target string, avoid []string, now time.Time) bool {
	if e.session.rotates() && !e.mute {
		return true
	}
	return !e.resting(target, now) && !slices.Contains(avoid, e.Name)
}

// pick chooses among exits that are all good enough.
func (p *Pool) pick(from []*exit, r Request, now time.Time) *exit {
	for _, e := range from {
		if e.Name == r.Prefer {
			return e
		}
	}
	best := from[0]
	if r.Key == "" {
		low, ties := best.score(now), 1
		for _, e := range from[1:] {
			switch s := e.score(now); {
			case s < low:
				best, low, ties = e, s, 1
			case s == low:
				if ties++; rand.IntN(ties) == 0 {
					best = e
				}
			}
		}
		return best
	}
	// Rendezvous hashing with bounded load: the highest hash among exits with room. When none has room the fullness decides,
	// so that waiters spread; then keys move, but they would have to wait at home.
	key := mix(hashString(p.config.Seed) ^ mix(hashString(r.Key)))
	full, high := best.fullness(now), mix(best.hash^key)
	for _, e := range from[1:] {
		f, h := e.fullness(now), mix(e.hash^key)
		if f < full || f == full && h > high {
			best, full, high = e, f, h
		}
	}
	return best
}

// load is what the exit carries or is about to: a lease counts as a connection although it has not dialled yet.
func (e *exit) load() int { return max(e.leases, e.slots.used+e.slots.waiting) }

// score is low for an exit that is idle and healthy. After a quarantine the past does not count, or the exit would never be
// tried.
func (e *exit) score(now time.Time) float64 {
	s := float64(e.load()+1) / float64(e.slots.cap(now))
	if now.Before(e.slots.paused) {
		s++
	}
	if !e.until.IsZero() && !now.Before(e.until) {
		return s
	}
	return s * (1 + 8*e.failures(now))
}

// fullness is 0 for an exit with room, else how many times its cap it carries.
func (e *exit) fullness(now time.Time) float64 {
	c := e.slots.cap(now)
	f := float64(e.load()) / float64(c)
	if a := e.account.slots; a.used+a.waiting > 0 {
		f = max(f, float64(a.used+a.waiting)/float64(a.cap(now)))
	}
	if now.Before(e.slots.paused) || now.Before(e.account.slots.paused) {
		return f + 1
	}
	if f < 1 {
		return 0
	}
	return f
}

// exhausted says why no exit was found.
func (p *Pool) exhausted(kinds []Kind, target string, now time.Time) error {
	err := &ExhaustedError{Target: target}
	if kinds[0] != "" {
		err.Kinds = kinds
	}
	var refused *DialError
	var spent *BudgetError
	for _, e := range p.exits {
		if kinds[0] != "" && !slices.Contains(kinds, e.Kind) {
			continue
		}
		if r := e.account.refused(now); r != nil {
			if refused == nil || r.retryAfter < refused.retryAfter {
				refused = r
			}
			continue
		}
		if b := e.overBudget(now); b != nil {
			spent = b
			continue
		}
		if e.resting(target, now) {
			d := e.rests[target].until.Sub(now)
			if err.Resting++; err.Resting == 1 || d < err.retryAfter {
				err.retryAfter = d
			}
		}
	}
	if refused != nil && err.Resting == 0 {
		return refused
	}
	if spent != nil && err.Resting == 0 {
		return spent
	}
	return err
}

// hashString is FNV-1a; the hashes below must never change, or keys would move to other exits with an update.
func hashString(s string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	return h
}

// mix is the finalizer of SplitMix64: every bit of x changes half of the result's.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
