package watch

import (
	"io"
	"testing"
	"testing/synctest"
	"time"
)

// fired runs feed against a watched pipe and returns what the watch said, and
// when, counted from the start.
func fired(t *testing.T, c Config, feed func(w io.Writer, watch *Watch)) (kind Kind, at, waited time.Duration) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		pr, pw := io.Pipe()
		start := time.Now()
		c.Fire = func(k Kind, d time.Duration) {
			kind, at, waited = k, time.Since(start), d
			pr.CloseWithError(io.ErrClosedPipe)
		}
		w := New(c)
		fed := make(chan struct{})
		go func() {
			defer close(fed)
			feed(pw, w)
			pw.Close()
		}()
		_, _ = io.Copy(io.Discard, w.Reader(pr))
		w.Stop()
		<-fed
	})
	return kind, at, waited
}

func TestSilenceIsNoticedAfterTheLastByte(t *testing.T) {
	kind, at, waited := fired(t, Config{Stale: 4 * time.Second}, func(w io.Writer, _ *Watch) {
		for range 10 {
			time.Sleep(3 * time.Second)
			_, _ = w.Write([]byte("x"))
		}
		time.Sleep(time.Hour)
	})
	if kind != Silence || at != 34*time.Second || waited != 4*time.Second {
		t.Errorf("fired %v at %v after waiting %v, want Silence at 34s after 4s", kind, at, waited)
	}
}

func TestHeartbeatsDoNotKeepTheEventClock(t *testing.T) {
	kind, at, _ := fired(t, Config{Stale: 4 * time.Second, Quiet: 20 * time.Second}, func(w io.Writer, watch *Watch) {
		for i := range 100 {
			time.Sleep(time.Second)
			_, _ = w.Write([]byte(":"))
			if i == 9 {
				watch.Events(1)
			}
		}
	})
	if kind != Quiet || at < 29*time.Second || at > 31*time.Second {
		t.Errorf("fired %v at %v, want Quiet 20s after the event at 10s", kind, at)
	}
}

func TestBackPressureIsNotSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pr, pw := io.Pipe()
		w := New(Config{Stale: time.Second, Quiet: 2 * time.Second, Fire: func(k Kind, d time.Duration) {
			t.Errorf("fired %v after %v while nobody was reading", k, d)
		}})
		defer w.Stop()
		r := w.Reader(pr)
		go func() {
			for range 5 {
				_, _ = pw.Write([]byte("x"))
			}
			pw.Close()
		}()
		buf := make([]byte, 1)
		for range 5 {
			if _, err := r.Read(buf); err != nil {
				t.Fatal(err)
			}
			w.Events(1)
			time.Sleep(time.Hour) // the journal is full
		}
	})
}

func TestWithoutClocksNothingFires(t *testing.T) {
	kind, _, _ := fired(t, Config{}, func(w io.Writer, _ *Watch) { time.Sleep(24 * time.Hour) })
	if kind != 0 {
		t.Errorf("fired %v", kind)
	}
}

func TestWithinShortensTheWait(t *testing.T) {
	for _, c := range []struct {
		config Config
		want   Kind
		at     time.Duration
	}{
		{Config{Stale: time.Hour}, Silence, time.Minute + 4*time.Second},
		{Config{Quiet: time.Hour}, Quiet, time.Minute + 7*time.Second},
		{Config{Stale: 10 * time.Second, Quiet: time.Hour}, Silence, 10 * time.Second},
	} {
		kind, at, _ := fired(t, c.config, func(w io.Writer, watch *Watch) {
			time.Sleep(time.Minute)
			_, _ = w.Write([]byte("x"))
			watch.Events(1)
			if c.config.Stale > 0 {
				watch.Within(4*time.Second, 7*time.Second)
			} else {
				watch.Within(0, 7*time.Second)
			}
			time.Sleep(2 * time.Hour)
		})
		if kind != c.want || at != c.at {
			t.Errorf("%+v: fired %v at %v, want %v at %v", c.config, kind, at, c.want, c.at)
		}
	}
}

func TestStopEndsTheWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := New(Config{Stale: time.Second, Fire: func(Kind, time.Duration) { t.Error("fired after Stop") }})
		w.Reading()
		w.Stop()
		time.Sleep(time.Minute)
	})
}

func TestALearntLimitGrowsAndShrinksWithTheFeed(t *testing.T) {
	var r Rhythm
	kind, at, waited := fired(t, Config{Rhythm: &r}, func(w io.Writer, _ *Watch) {
		for range 40 { // slow …
			time.Sleep(10 * time.Second)
			_, _ = w.Write([]byte("x"))
		}
		for range 72_000 { // … then fast
			time.Sleep(50 * time.Millisecond)
			_, _ = w.Write([]byte("x"))
		}
		time.Sleep(time.Hour)
	})
	if dies := 4000 * time.Second; kind != Silence || waited > 1100*time.Millisecond || at != dies+waited {
		t.Errorf("fired %v at %v after %v, want Silence a second after %v", kind, at, waited, dies)
	}
}

// TestALimitThatShrinksPostponesNothing has the limit of the byte clock shrink
// with every byte of a line that drips: the other clock runs out all the same.
func TestALimitThatShrinksPostponesNothing(t *testing.T) {
	var r Rhythm
	var last time.Duration
	kind, at, _ := fired(t, Config{Rhythm: &r, Quiet: 5 * time.Second}, func(w io.Writer, watch *Watch) {
		for n := range 1500 {
			pause := 50 * time.Millisecond
			if n%300 == 100 {
				pause = 800 * time.Millisecond
			}
			time.Sleep(pause)
			last += pause
			_, _ = w.Write([]byte("x"))
			watch.Events(1)
		}
		for range 100 {
			time.Sleep(time.Second)
			if _, err := w.Write([]byte("x")); err != nil {
				return
			}
		}
	})
	if kind != Quiet || at < last+5*time.Second || at > last+6*time.Second {
		t.Errorf("fired %v at %v, want Quiet at %v", kind, at, last+5*time.Second)
	}
}

func TestAnAlarmIsPartOfThePause(t *testing.T) {
	r := even()
	for range 2 {
		fired(t, Config{Rhythm: r}, func(w io.Writer, _ *Watch) { time.Sleep(30 * time.Second) })
	}
	r.Add(10 * time.Second)
	r.Add(11 * time.Second)
	if l := r.Limit(); l < 20*time.Second {
		t.Errorf("after two silences the limit is %v", l)
	}
	if u := r.Usual(); u != 11*time.Second {
		t.Errorf("the second longest pause is %v, want 11s after one of 10s and two alarms", u)
	}
}

func TestALearntLimitIsNeverBelowTheLeast(t *testing.T) {
	r := even()
	kind, at, _ := fired(t, Config{Rhythm: r, Stale: 20 * time.Second}, func(w io.Writer, watch *Watch) { time.Sleep(time.Hour) })
	if kind != Silence || at != 20*time.Second {
		t.Errorf("a fresh line: fired %v at %v, want Silence at 20s", kind, at)
	}
}

// A timer that goes off late was held up with all of the program: what has come
// meanwhile is read before anybody calls it silence, and once is enough.
func TestAProgramThatStoodStillReadsFirst(t *testing.T) {
	standStill := func(w *Watch) { // as seen from the timer
		w.mu.Lock()
		w.due -= 2 * time.Second
		w.mu.Unlock()
	}
	for _, came := range []bool{true, false} {
		want := 5 * time.Second // the limit and the grace
		if came {
			want = 4*time.Second + 500*time.Millisecond + 4*time.Second
		}
		kind, at, _ := fired(t, Config{Stale: 4 * time.Second}, func(w io.Writer, watch *Watch) {
			time.Sleep(3*time.Second + 600*time.Millisecond) // within the last moments
			standStill(watch)
			time.Sleep(900 * time.Millisecond)
			if came {
				_, _ = w.Write([]byte("x"))
			} else {
				standStill(watch)
			}
			time.Sleep(time.Hour)
		})
		if kind != Silence || at != want {
			t.Errorf("something came: %v; fired %v at %v, want Silence at %v", came, kind, at, want)
		}
	}
}

// What a feed said while the program stood still was not missing: the wait for
// an event begins anew, whether the reader or the timer goes on first.
func TestAProgramThatStoodStillWaitsForEventsAnew(t *testing.T) {
	for came, want := range map[time.Duration]time.Duration{
		3900 * time.Millisecond: 7900 * time.Millisecond,
		4500 * time.Millisecond: 8 * time.Second,
	} {
		kind, at, _ := fired(t, Config{Quiet: 4 * time.Second}, func(w io.Writer, watch *Watch) {
			time.Sleep(3*time.Second + 600*time.Millisecond)
			watch.mu.Lock()
			watch.due -= 2 * time.Second // as seen from the timer, which goes off at 4 s
			watch.mu.Unlock()
			time.Sleep(came - 3*time.Second - 600*time.Millisecond)
			_, _ = w.Write([]byte("x")) // no event
			time.Sleep(time.Hour)
		})
		if kind != Quiet || at != want {
			t.Errorf("what came at %v: fired %v at %v, want Quiet at %v", came, kind, at, want)
		}
	}
}
