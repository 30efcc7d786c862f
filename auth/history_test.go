package auth_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdline/scrape/auth"
)

func TestAProgramThatStartsAgainAndAgainHammersNoForm(t *testing.T) {
	captcha := &auth.LoginError{Fault: auth.FaultPerson, Reason: "a captcha"}
	for name, test := range map[string]struct {
		fails  error
		dies   bool // in the middle of the login
		within map[time.Duration]int64
	}{
		"wrong password": {fails: refused(), within: map[time.Duration]int64{10 * time.Minute: 3, 6 * time.Hour: 3 + 6}},
		"captcha":        {fails: captcha, within: map[time.Duration]int64{10 * time.Minute: 4, time.Hour: 24}},
		"crash":          {dies: true, within: map[time.Duration]int64{10 * time.Minute: 5, 6 * time.Hour: 5 * 6}},
		"good, not kept": {within: map[time.Duration]int64{10 * time.Minute: 5, 6 * time.Hour: 5 * 6}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := newMemory()
				s := &site{bound: auth.BoundToExit}
				s.failWith(test.fails)
				if test.dies {
					s.took = time.Hour
				}
				began := time.Now()
				for time.Since(began) < 6*time.Hour {
					k := auth.NewKeeper(auth.Config{Source: s, Store: store, AttemptsPerHour: 5})
					ctx, cancel := context.WithCancel(t.Context())
					over := make(chan struct{})
					go func() { defer close(over); k.Get(ctx, exit1) }()
					synctest.Wait()
					past, _ := store.Recall()
					cancel()
					<-over
					if test.dies {
						store.Remember(past) // nothing is written any more
					}
					clear(store.kept)
					time.Sleep(10 * time.Second)
					for span, most := range test.within {
						if n := s.logins.Load(); time.Since(began) <= span && n > most {
							t.Fatalf("%d logins in %v", n, time.Since(began))
						}
					}
				}
				if n := s.logins.Load(); n < 8 {
					t.Errorf("%d logins in six hours: it gave up", n)
				}
			})
		})
	}
}

func TestWhatIsHeldBackIsSaidAfterARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemory()
		s := &site{}
		s.failWith(refused())
		k := auth.NewKeeper(auth.Config{Name: "acme", Source: s, Store: store})
		for range 3 {
			k.Get(t.Context(), exit1)
			time.Sleep(10 * time.Minute)
		}
		again := auth.NewKeeper(auth.Config{Name: "acme", Source: s, Store: store})
		_, err := again.Get(t.Context(), exit1)
		hold, ok := errors.AsType[*auth.HoldError](err)
		if !ok || time.Until(hold.Until) != 50*time.Minute || !strings.Contains(err.Error(), "refused the last 3 logins") || !strings.Contains(err.Error(), "wrong password") || !strings.Contains(err.Error(), "by hand") {
			t.Fatalf("%v", err)
		}
		// One good login, and all is forgotten.
		time.Sleep(time.Until(hold.Until))
		s.failWith(nil)
		mustGet(t, again, exit1)
		if store.past.Refusal != (auth.Hold{}) || len(store.past.Attempts) != 1 || s.logins.Load() != 4 {
			t.Errorf("%+v after %d logins", store.past, s.logins.Load())
		}
	})
}

func TestAClockThatWentBackHoldsNobodyForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemory()
		ahead := time.Now().Add(1000 * time.Hour)
		store.past = auth.History{
			Attempts: []time.Time{ahead, ahead, ahead},
			Refusal:  auth.Hold{Times: 3, Since: ahead, Why: "no"},
			Holds:    map[string]auth.Hold{"": {Times: 1, Since: ahead, Until: ahead.Add(time.Minute), Why: "no"}},
		}
		s := &site{}
		k := auth.NewKeeper(auth.Config{Source: s, Store: store, AttemptsPerHour: 3})
		time.Sleep(time.Second)
		_, err := k.Get(t.Context(), exit1)
		if hold, ok := errors.AsType[*auth.HoldError](err); !ok || time.Until(hold.Until) > time.Hour {
			t.Errorf("%v", err)
		}
		time.Sleep(time.Hour)
		mustGet(t, k, exit1)
	})
}

func TestALearntLifeSurvivesARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemory()
		s := &site{took: 5 * time.Second}
		for range 2 { // each run sees one
			k := auth.NewKeeper(auth.Config{Source: s, Store: store})
			c := mustGet(t, k, exit1)
			time.Sleep(40 * time.Minute)
			k.Reject(exit1, c.Generation)
		}
		k := auth.NewKeeper(auth.Config{Source: s, Store: store})
		c := mustGet(t, k, exit1)
		if age := k.RenewAt(c).Sub(c.Obtained); age < 20*time.Minute || age > 40*time.Minute {
			t.Errorf("renewed at the age of %v", age)
		}
		// One that was kept is renewed in time, too, and nothing is learnt from it.
		k = auth.NewKeeper(auth.Config{Source: s, Store: store})
		if kept := mustGet(t, k, exit1); k.RenewAt(kept).Sub(kept.Obtained) > 40*time.Minute || s.logins.Load() != 3 {
			t.Errorf("%v, %d logins", kept, s.logins.Load())
		}
	})
}
