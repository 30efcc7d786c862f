package watch

import (
	"math"
	"sync"
	"time"
)

// What a [Rhythm] goes by.
const (
	// Unlearnt is the limit while next to nothing has been learnt.
	Unlearnt = 45 * time.Second
	// floor is the shortest limit: a packet lost three times in a row, or a
	// collector's pause, must not look like death.
	floor = time.Second
	// ceiling is the longest limit. A pause beyond it is a night and not a
	// part of the rhythm.
	ceiling = 30 * time.Minute
	// What was learnt counts in full for one stretch of waiting and is
	// forgotten after the second. A stretch of few pauses lasts longer.
	shortStretch = 15 * time.Minute
	longStretch  = time.Hour
	few          = 32
	// rarely is how many false alarms a second of waiting may bring: one in a
	// thousand days.
	rarely = 1e-3 / (24 * 60 * 60)
	// longest is how many pauses a span keeps.
	longest = 18
)

// Rhythm learns from the pauses of a stream how long its next one may be. It
// lives as long as the stream, takes some 200 bytes, and may be used
// concurrently. The zero Rhythm has learnt nothing.
//
// It is an accrual detector (Hayashibara et al., "The φ accrual failure
// detector", 2004): the limit is where suspicion reaches a fixed level. Feeds
// come in bursts, so the level is not sought in a normal distribution of all
// pauses but in the tail of the longest, taken for exponential above the 6th,
// 10th and 18th longest, whichever asks for most. The very longest pause
// counts for little: one exception is no rhythm, two are.
type Rhythm struct {
	mu          sync.Mutex
	now, before span
	limit       time.Duration
	reckoned    time.Duration // how much waiting limit was reckoned from

	stretch time.Duration // shortStretch to longStretch; 0 is shortStretch

	given  time.Duration // what was waited in vain since the last byte
	alarms int           // connections given up for it
}

// span is what was seen in one stretch of time.
type span struct {
	waited time.Duration
	pauses int
	top    [longest]float32 // the longest pauses, in seconds, longest first
}

// Add takes a pause that has ended with a byte.
func (r *Rhythm) Add(pause time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.alarms > 0 {
		// Was the line dead, or the feed only quiet? Where a fresh line is
		// quieter than usual, too, it was all one pause.
		if usual := max(r.now.top[longest-1], r.before.top[longest-1]); r.alarms > 1 || pause.Seconds() > float64(usual) {
			pause += r.given
			// A false alarm: what was forgotten too soon is kept for longer.
			r.stretch = min(2*max(r.stretch, shortStretch), longStretch)
		}
		r.given, r.alarms = 0, 0
	}
	if pause > ceiling {
		return
	}
	if r.now.waited >= max(r.stretch, shortStretch) && r.now.pauses >= few {
		r.stretch -= r.stretch / 4
		r.before, r.now = r.now, span{}
		r.reckoned = 0
	}
	long := r.now.add(pause)
	if waited := r.waited(); long || waited > r.reckoned+r.reckoned/8 {
		r.limit, r.reckoned = r.reckon(), waited
	}
}

// Alarm takes a pause that was cut short because it had reached its limit.
func (r *Rhythm) Alarm(pause time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.given += pause
	r.alarms++
}

// Limit is how long a pause may be before the line is taken for dead.
func (r *Rhythm) Limit() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.limit == 0 {
		return Unlearnt
	}
	return r.limit
}

// Usual is the longest pause of late, but for one exception; 0 while too
// little has been seen.
func (r *Rhythm) Usual() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.waited() < time.Minute || r.pauses() < few {
		return 0
	}
	top := r.top()
	return duration(float64(top[1]))
}

func (r *Rhythm) waited() time.Duration { return r.now.waited + r.before.waited }
func (r *Rhythm) pauses() int           { return r.now.pauses + r.before.pauses }

// reckon finds the limit for what has been seen.
func (r *Rhythm) reckon() time.Duration {
	top := r.top()
	if r.pauses() < few {
		return min(max(Unlearnt, duration(3*float64(top[0]))), ceiling)
	}
	waited := r.waited().Seconds()
	limit := max(2*float64(top[1]), min(2*float64(top[0]), Unlearnt.Seconds()))
	for _, k := range [...]int{4, 8, 16} {
		from, sum := float64(top[k+1]), 0.0
		for _, p := range top[1 : k+1] {
			sum += float64(p)
		}
		limit = max(limit, from+(sum/float64(k)-from)*math.Log(float64(k)/waited/rarely))
	}
	// Short acquaintance: what has not been seen yet may be still to come.
	limit = max(limit, Unlearnt.Seconds()/waited)
	return min(max(duration(limit), floor), ceiling)
}

// top merges the longest pauses of both spans.
func (r *Rhythm) top() (all [longest]float32) {
	a, b := r.now.top[:], r.before.top[:]
	for i := range all {
		if a[0] >= b[0] {
			all[i], a = a[0], a[1:]
		} else {
			all[i], b = b[0], b[1:]
		}
	}
	return all
}

// add tells whether the pause is among the longest.
func (s *span) add(pause time.Duration) bool {
	s.waited += pause
	s.pauses++
	p := float32(pause.Seconds())
	if p <= s.top[longest-1] {
		return false
	}
	i := longest - 1
	for ; i > 0 && s.top[i-1] < p; i-- {
		s.top[i] = s.top[i-1]
	}
	s.top[i] = p
	return true
}

func duration(seconds float64) time.Duration {
	return time.Duration(min(seconds, ceiling.Seconds()) * float64(time.Second))
}
