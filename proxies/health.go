package proxies

import (
	"log/slog"
	"math"
	"time"
)

const (
	strikes  = 3               // failures in a row that put an exit into quarantine
	weight   = 0.2             // of the newest result in the average of failures
	halfLife = 5 * time.Minute // after which that average counts half, so that an unused exit gets its chance
)

// health is what the pool has seen of an exit.
type health struct {
	ewma     float64 // average of failures, 0 to 1, as of ewmaAt
	ewmaAt   time.Time
	failed   int  // failed dials in a row
	mute     bool // the last of them did not reach the proxy: another session of it would not, either
	silent   int  // reports of silence with none of health between
	level    int  // how often the quarantine has doubled
	until    time.Time
	outSeq   uint64 // Pool.seq when the quarantine began
	probe    *Lease // the one lease that may try the exit after its quarantine
	burnt    bool   // the address failed: the next lease takes another generation
	rests    map[string]rest
	lastErr  string
	lastFree time.Time // when the last quarantine ended well
}

// rest is how long an exit is not used for one target, which refused it.
type rest struct {
	until time.Time
	level int
}

// out says whether the exit is in quarantine, or after it with its probe under way.
func (h *health) out(now time.Time) bool {
	return now.Before(h.until) || h.probe != nil
}

// failures is the average of failures now.
func (h *health) failures(now time.Time) float64 {
	if h.ewma == 0 {
		return 0
	}
	return h.ewma * math.Exp2(-float64(now.Sub(h.ewmaAt))/float64(halfLife))
}

func (h *health) average(result float64, now time.Time) {
	f := h.failures(now)
	h.ewma, h.ewmaAt = f+weight*(result-f), now
}

// resting says whether the exit rests for the target.
func (h *health) resting(target string, now time.Time) bool {
	return len(h.rests) > 0 && now.Before(h.rests[target].until)
}

// growth is Quarantine doubled level times, at most MaxQuarantine, with jitter.
func (p *Pool) growth(level int) time.Duration {
	d := p.config.Quarantine
	for ; level > 0 && d < p.config.MaxQuarantine; level-- {
		d *= 2
	}
	return min(jitter(d), p.config.MaxQuarantine)
}

// quarantine puts the exit out. It is called with the mutex held, as are all functions below.
func (p *Pool) quarantine(e *exit, why string, now time.Time) {
	if !e.lastFree.IsZero() && now.Sub(e.lastFree) > p.config.MaxQuarantine {
		e.level = 0
	}
	d := p.growth(e.level)
	e.level++
	e.until = now.Add(d)
	e.failed, e.silent = 0, 0
	e.burnt = e.session.rotates() && !e.mute
	e.probe = nil
	p.seq++
	e.outSeq = p.seq
	p.note(slog.LevelWarn, "exit quarantined", slog.Any("exit", e.Exit), slog.Duration("for", d.Round(time.Millisecond)), slog.String("reason", why))
}

// strike counts a failure that lease l met; n counts failures of its sort in a row. Once the exit is out, only leases taken
// since then say something new about it.
func (p *Pool) strike(l *Lease, n *int, why string, now time.Time) {
	e := l.exit
	e.average(1, now)
	if !e.until.IsZero() {
		if l.seq > e.outSeq {
			p.quarantine(e, why, now)
		}
		return
	}
	if *n++; *n >= strikes {
		p.quarantine(e, why, now)
	}
}

// works notes that the exit worked for lease l: it ends a quarantine older than the lease.
func (p *Pool) works(l *Lease, now time.Time) {
	e := l.exit
	e.average(0, now)
	e.failed, e.mute = 0, false
	if e.until.IsZero() || l.seq < e.outSeq {
		return
	}
	e.until, e.probe, e.lastFree = time.Time{}, nil, now
	p.note(slog.LevelInfo, "exit back from quarantine", slog.Any("exit", e.Exit))
}

// restFor has the exit not used for the target that refused it.
func (p *Pool) restFor(e *exit, target string, now time.Time) {
	for t, r := range e.rests {
		if t != target && now.Sub(r.until) > p.config.MaxQuarantine {
			delete(e.rests, t)
		}
	}
	r := e.rests[target]
	if now.Before(r.until) {
		return // other leases had the same answer
	}
	if now.Sub(r.until) > p.config.MaxQuarantine {
		r.level = 0
	}
	d := p.growth(r.level)
	e.rests[target] = rest{until: now.Add(d), level: r.level + 1}
	p.note(slog.LevelWarn, "exit rests for target", slog.Any("exit", e.Exit), slog.String("target", target), slog.Duration("for", d.Round(time.Millisecond)))
}

// refused is the refusal in force, or nil.
func (a *account) refused(now time.Time) *DialError {
	if a.refusal == nil || !a.trying && !now.Before(a.until) {
		return nil
	}
	again := *a.refusal
	again.retryAfter = max(a.until.Sub(now), time.Second)
	return &again
}

// refuse stops the account until one dial may try again, after MaxQuarantine.
func (p *Pool) refuse(a *account, err *DialError, now time.Time) {
	if a.refusal == nil {
		p.note(slog.LevelError, "proxy refuses the account", slog.Any("exit", err.Exit), slog.String("error", err.Error()))
	}
	a.refusal, a.until = err, now.Add(p.config.MaxQuarantine)
}

// dialled learns from the result of a dial that began at begun.
func (p *Pool) dialled(l *Lease, err *DialError, begun, now time.Time) {
	e := l.exit
	if err == nil {
		l.failed = false
		e.account.refusal = nil
		p.works(l, now)
		return
	}
	e.lastErr = err.Error()
	switch err.layer {
	case LayerAuth:
		p.refuse(e.account, err, now)
		return
	case LayerCapacity:
		p.full(e, err.retryAfter, begun, now)
	case LayerTarget:
		p.works(l, now)
	case LayerIdentity:
		if !e.since.IsZero() {
			p.rotate(e, "its address is gone", now)
			break
		}
		fallthrough // a session that never worked is no better than a dead exit
	case LayerExit:
		l.failed = true
		e.mute = err.Status == 0
		p.strike(l, &e.failed, err.Error(), now)
		if err.Status == 0 {
			return // the proxy may not have come to look at the password
		}
	}
	e.account.refusal = nil
}

// full lowers the cap of an exit whose proxy has no room. Behind a provider's gateway it is the account that has none.
func (p *Pool) full(e *exit, wait time.Duration, begun, now time.Time) {
	s, what := e.slots, slog.Any("exit", e.Exit)
	if e.session != nil {
		s, what = e.account.slots, slog.String("account", e.account.name)
	}
	before := s.cap(now)
	s.cut(begun, now, wait)
	if after := s.cap(now); after < before {
		p.note(slog.LevelInfo, "proxy has no room, cap lowered", what, slog.Int("cap", after), slog.Duration("wait", wait))
	}
}
