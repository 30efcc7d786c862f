package watch

import (
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

// live has the rhythm live through a feed's pauses for so long, and counts the
// alarms that they cause. After an alarm a fresh line waits for the rest of
// the pause.
func live(r *Rhythm, length time.Duration, pause func() time.Duration) (alarms int) {
	for lived := time.Duration(0); lived < length; {
		rest := pause()
		lived += rest
		for limit := r.Limit(); rest > limit; limit = max(r.Limit(), 20*time.Second) {
			alarms++
			r.Alarm(limit)
			rest -= limit
		}
		r.Add(rest)
	}
	return alarms
}

func random(mean time.Duration) func() time.Duration {
	r := rand.New(rand.NewPCG(1, 2))
	return func() time.Duration { return time.Duration(r.ExpFloat64() * float64(mean)) }
}

func every(d time.Duration) func() time.Duration { return func() time.Duration { return d } }

func TestALimitIsLearntFromTheFeed(t *testing.T) {
	for name, c := range map[string]struct {
		pause        func() time.Duration
		alarms       int // at most, in a day
		least, limit time.Duration
	}{
		"50 a second":          {random(20 * time.Millisecond), 0, time.Second, 1500 * time.Millisecond},
		"one a second":         {random(time.Second), 3, 12 * time.Second, time.Minute},
		"one a minute":         {random(time.Minute), 3, 8 * time.Minute, ceiling},
		"one in 100 seconds":   {random(100 * time.Second), 5, 10 * time.Minute, ceiling},
		"heartbeats each 15 s": {every(15 * time.Second), 0, 25 * time.Second, 35 * time.Second},
		"heartbeats each 60 s": {every(time.Minute), 1, 100 * time.Second, 3 * time.Minute},
		"in bursts of seconds": {bursty(5*time.Second, 30*time.Second), 3, time.Minute, ceiling},
		"in bursts of minutes": {bursty(10*time.Minute, 30*time.Second), 40, time.Second, ceiling},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var r Rhythm
			alarms := live(&r, 8*time.Hour, c.pause)
			if l := r.Limit(); l < c.least || l > c.limit {
				t.Errorf("after eight hours the limit is %v, want %v to %v", l, c.least, c.limit)
			}
			if alarms += live(&r, 16*time.Hour, c.pause); alarms > c.alarms {
				t.Errorf("%d false alarms in a day, want at most %d", alarms, c.alarms)
			}
		})
	}
}

// bursty is 50 events a second, and every so often nothing for a while.
func bursty(on, off time.Duration) func() time.Duration {
	r := rand.New(rand.NewPCG(3, 4))
	left := on
	return func() time.Duration {
		p := time.Duration(r.ExpFloat64() * float64(20*time.Millisecond))
		if left -= p; left < 0 {
			left = time.Duration(r.ExpFloat64() * float64(on))
			p += time.Duration(r.ExpFloat64() * float64(off))
		}
		return p
	}
}

func TestALimitTakesAcquaintance(t *testing.T) {
	var r Rhythm
	if l := r.Limit(); l != Unlearnt {
		t.Errorf("at first it is %v, want %v", l, Unlearnt)
	}
	for range 10_000 { // a backlog
		r.Add(50 * time.Microsecond)
	}
	if l := r.Limit(); l < 30*time.Second {
		t.Errorf("a backlog that came at once has brought it down to %v", l)
	}
	live(&r, 45*time.Second, every(20*time.Millisecond))
	if l := r.Limit(); l > 1200*time.Millisecond {
		t.Errorf("after 45 seconds of 50 events each it is %v still", l)
	}
}

func TestAFalseAlarmTeachesAndARealOneDoesNot(t *testing.T) {
	var dead Rhythm
	live(&dead, time.Hour, random(20*time.Millisecond))
	for range 10 { // died; the fresh line brings events at once
		dead.Alarm(dead.Limit())
		dead.Add(30 * time.Millisecond)
	}
	if l := dead.Limit(); l > 1500*time.Millisecond {
		t.Errorf("after ten deaths the limit is %v", l)
	}
	var quiet Rhythm
	live(&quiet, time.Hour, random(20*time.Millisecond))
	pause := random(20 * time.Millisecond)
	alarms := 0
	for range 20 { // a pause of ten seconds a minute
		alarms += live(&quiet, time.Minute, pause)
		alarms += live(&quiet, 1, every(10*time.Second))
	}
	if alarms > 3 {
		t.Errorf("%d alarms in 20 like pauses", alarms)
	}
}

func TestOneExceptionIsNoRhythm(t *testing.T) {
	var r Rhythm
	live(&r, time.Hour, random(20*time.Millisecond))
	r.Add(10 * time.Minute)
	if l := r.Limit(); l > Unlearnt {
		t.Errorf("one pause of ten minutes makes the limit %v", l)
	}
}

func TestTheNightIsForgotten(t *testing.T) {
	var r Rhythm
	busy := random(20 * time.Millisecond)
	live(&r, 8*time.Hour, busy)
	if n := live(&r, 8*time.Hour, every(15*time.Second)); n > 1 { // heartbeats alone
		t.Errorf("%d alarms for the night", n)
	}
	r.Alarm(r.Limit())
	r.Add(8 * time.Hour) // no heartbeats either
	if n := live(&r, 2*time.Hour, busy); n > 0 {
		t.Errorf("%d alarms in the morning", n)
	}
	if l := r.Limit(); l > 1500*time.Millisecond {
		t.Errorf("two hours into the day the limit is %v", l)
	}
}

func TestNightsAreNoRhythm(t *testing.T) {
	var r Rhythm
	live(&r, time.Hour, random(20*time.Millisecond))
	for range 5 {
		r.Add(8 * time.Hour)
	}
	if l := r.Limit(); l > 1500*time.Millisecond {
		t.Errorf("nights make the limit %v", l)
	}
}

func TestARhythmIsOneForAllConnections(t *testing.T) {
	var r Rhythm
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 1000 {
				r.Add(20 * time.Millisecond)
				_, _ = r.Limit(), r.Usual()
			}
		})
	}
	wg.Wait()
	if u := r.Usual(); math.Abs(u.Seconds()-0.02) > 1e-6 {
		t.Errorf("the usual pause is %v, want 20ms", u)
	}
}
