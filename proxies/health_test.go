package proxies

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestQuarantineGrowsAndOneProbeEndsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var sick atomic.Bool
		sick.Store(true)
		p, _ := wired(t, Config{Exits: nExits(4)}, func(proxy string) string {
			if sick.Load() && proxy == "10.0.0.0:8080" {
				return dead("")
			}
			return established
		})
		e00 := Request{Prefer: "e00"}
		state := func() ExitStats { return p.Stats()[0] }
		l := lease(t, p, e00)
		for i := range strikes {
			if s := state(); s.State != StateOK {
				t.Fatalf("out after %d failures", i)
			}
			if dialOnce(l) == nil {
				t.Fatal("the dial went through")
			}
		}
		base := 30 * time.Second
		for try := range 9 {
			s := state()
			if s.State != StateQuarantined || s.LastError == "" {
				t.Fatalf("try %d: %+v", try, s)
			}
			d := time.Until(s.Until)
			if d < base*3/4 || d > base*5/4 || d > 30*time.Minute {
				t.Errorf("try %d: out for %v, want about %v", try, d, base)
			}
			base = min(2*base, 30*time.Minute)
			// The old lease goes on failing, which is no news.
			dialOnce(l)
			l.Report(ExitFailed)
			if now := state(); !now.Until.Equal(s.Until) {
				t.Errorf("try %d: an old lease made it longer", try)
			}
			if name := lease(t, p, e00).Exit().Name; name == "e00" {
				t.Errorf("try %d: leased while out", try)
			}
			time.Sleep(d)
			if s := state(); s.State != StateProbing {
				t.Fatalf("try %d: %+v", try, s)
			}
			// A probe that sees nothing leaves its place to the next one.
			lease(t, p, e00).Release(Unused)
			l = lease(t, p, e00)
			if l.Exit().Name != "e00" {
				t.Fatalf("try %d: no probe", try)
			}
			if name := lease(t, p, e00).Exit().Name; name == "e00" {
				t.Errorf("try %d: two probes", try)
			}
			if try == 8 {
				sick.Store(false)
			}
			dialOnce(l)
		}
		if s := state(); s.State != StateOK {
			t.Errorf("the probe was good: %+v", s)
		}
		// One report is enough; growth starts anew only after a time of health.
		l.Release(ExitFailed)
		if d := time.Until(state().Until); d < 20*time.Minute {
			t.Errorf("it failed again at once and is out for %v only", d)
		}
		time.Sleep(31 * time.Minute)
		l = lease(t, p, e00)
		l.Report(Healthy)
		l.Release(ExitFailed)
		if d := time.Until(state().Until); d > 38*time.Second {
			t.Errorf("it was healthy between and is out for %v", d)
		}
	})
}

func TestSilenceNeedsThreeReports(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, _ := wired(t, Config{Exits: nExits(4)}, works)
		l := lease(t, p, Request{Prefer: "e00"})
		for i, o := range []Outcome{ExitSilent, ExitSilent, Healthy, ExitSilent, ExitSilent, ExitSilent} {
			if s := p.Stats()[0]; s.State != StateOK {
				t.Fatalf("out before report %d", i)
			}
			if err := dialOnce(l); err != nil { // that it can be dialled proves nothing
				t.Fatal(err)
			}
			l.Report(o)
		}
		if s := p.Stats()[0]; s.State != StateQuarantined {
			t.Errorf("%+v", s)
		}
	})
}

func TestNeverMoreThanHalfIsOut(t *testing.T) {
	for n := 1; n <= 7; n++ {
		synctest.Test(t, func(t *testing.T) {
			p, _ := wired(t, Config{Exits: nExits(n)}, dead)
			for i := range n {
				lease(t, p, Request{Prefer: fmt.Sprintf("e%02d", i)}).Release(ExitFailed)
				time.Sleep(time.Second)
			}
			// Where every exit fails, the half that failed first is used; each fails again and is the worst then.
			seen := map[string]bool{}
			for i := range 100 {
				seen[lease(t, p, Request{Key: fmt.Sprint(i)}).Exit().Name] = true
			}
			if len(seen) != n-n/2 {
				t.Errorf("%d of %d are used: %v", len(seen), n, seen)
			}
		})
	}
}

func TestRefusedAccountStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		exits := nExits(6)
		for i := range exits {
			exits[i].URL.User = url.UserPassword("u", "one")
			if i == 5 {
				exits[i].URL.User = url.UserPassword("u", "two")
			}
		}
		var good atomic.Bool
		p, w := wired(t, Config{Exits: exits[:5]}, func(string) string {
			if good.Load() {
				return established
			}
			return "HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"
		})
		l := lease(t, p, Request{Key: "k"})
		other := lease(t, p, Request{Key: "k", Avoid: []string{l.Exit().Name}})
		if other.exit == l.exit {
			t.Fatal("one exit only")
		}
		var derr *DialError
		refused := func(err error) {
			t.Helper()
			if !errors.As(err, &derr) || derr.Layer() != LayerAuth || derr.Exit.Name != l.Exit().Name {
				t.Errorf("%v", err)
			}
		}
		refused(dialOnce(l))
		for range 10 {
			refused(dialOnce(l))
			refused(dialOnce(other)) // with the error of the exit that was asked
			_, err := p.Lease(t.Context(), Request{Key: "x"})
			refused(err)
		}
		if n := w.dials.Load(); n != 1 {
			t.Errorf("the wrong password was sent %d times", n)
		}
		if s := p.Stats()[3]; s.State != StateRefused || derr.RetryAfter() != 30*time.Minute {
			t.Errorf("%+v, retry after %v", s, derr.RetryAfter())
		}
		// After half an hour one dial tries, also where many want to.
		time.Sleep(30 * time.Minute)
		w.delay.Store(int64(time.Second))
		for range 5 {
			go dialOnce(other)
			go dialOnce(l)
		}
		time.Sleep(2 * time.Second)
		if n := w.dials.Load(); n != 2 {
			t.Errorf("the wrong password was sent %d times", n)
		}
		good.Store(true)
		time.Sleep(30 * time.Minute)
		if err := dialOnce(other); err != nil {
			t.Error(err)
		}
		if s := p.Stats()[3]; s.State != StateOK {
			t.Errorf("%+v", s)
		}

		// Another account goes on.
		p, _ = wired(t, Config{Exits: exits}, func(string) string { return "HTTP/1.1 407 No\r\n\r\n" })
		dialOnce(lease(t, p, Request{Prefer: "e00"}))
		if name := lease(t, p, Request{Key: "k"}).Exit().Name; name != "e05" {
			t.Errorf("leased %s", name)
		}
	})
}

func TestWaitersDoNotSendARefusedPassword(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		exits := nExits(1)
		exits[0].MaxConns = 2
		p, w := wired(t, Config{Exits: exits}, func(string) string { return "HTTP/1.1 407 No\r\n\r\n" })
		w.delay.Store(int64(time.Second))
		l := lease(t, p, Request{Key: "k"})
		for range 20 {
			go dialOnce(l)
		}
		time.Sleep(time.Minute)
		if n := w.dials.Load(); n != 2 {
			t.Errorf("the wrong password was sent %d times, 2 were under way together", n)
		}
	})
}

func TestExitRestsForOneTarget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, _ := wired(t, Config{Exits: nExits(2)}, works)
		a := Request{Key: "k", Target: "A.example"}
		first := lease(t, p, a)
		name := first.Exit().Name
		first.Release(TargetRefused)
		second := lease(t, p, a)
		if second.Exit().Name == name {
			t.Error("the exit does not rest")
		}
		if got := lease(t, p, Request{Key: "k", Target: "b.example"}).Exit().Name; got != name {
			t.Error("it rests for another target too")
		}
		second.Release(TargetRefused)
		_, err := p.Lease(t.Context(), a)
		var xerr *ExhaustedError
		if !errors.Is(err, ErrExhausted) || !errors.As(err, &xerr) || xerr.Resting != 2 || xerr.RetryAfter() <= 0 {
			t.Fatalf("%v", err)
		}
		if s := p.Stats(); !slices.Equal(s[0].Resting, []string{"a.example"}) || s[0].State != StateOK {
			t.Errorf("%+v", s)
		}
		time.Sleep(xerr.RetryAfter())
		if _, err := p.Lease(t.Context(), a); err != nil {
			t.Errorf("after the time it gave: %v", err)
		}
	})
}
