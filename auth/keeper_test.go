package auth_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdline/scrape/auth"
)

// site is a Source: each login takes time, and gives what obtain returns.
type site struct {
	bound  auth.Binding
	took   time.Duration
	life   time.Duration
	fail   atomic.Pointer[error]
	logins atomic.Int64
	ended  atomic.Int64
}

func (s *site) Bound() auth.Binding { return s.bound }

func (s *site) Obtain(ctx context.Context, via auth.Via, old *auth.Credential) (*auth.Credential, error) {
	n := s.logins.Add(1)
	defer s.ended.Add(1)
	select {
	case <-time.After(s.took):
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if err := s.fail.Load(); err != nil {
		return nil, *err
	}
	c := &auth.Credential{Header: http.Header{"Authorization": {fmt.Sprint("Bearer ", n, " ", via.Exit)}}}
	if s.life != 0 {
		c.Expires = time.Now().Add(s.life)
	}
	return c, nil
}

func (s *site) failWith(err error) {
	if err == nil {
		s.fail.Store(nil)
		return
	}
	s.fail.Store(&err)
}

func refused() error { return &auth.LoginError{Fault: auth.FaultRefused, Reason: "wrong password"} }

var exit1, exit2 = auth.Via{Exit: "exit-1"}, auth.Via{Exit: "exit-2"}

func mustGet(t *testing.T, k *auth.Keeper, via auth.Via) *auth.Credential {
	t.Helper()
	c, err := k.Get(t.Context(), via)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestAThousandCallersCauseOneLogin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &site{took: time.Second, life: time.Hour}
		k := auth.NewKeeper(auth.Config{Source: s})
		first := mustGet(t, k, exit1)

		// All of them see the same 401.
		var wg sync.WaitGroup
		for range 1000 {
			wg.Go(func() {
				k.Reject(exit1, first.Generation)
				c, err := k.Renew(t.Context(), exit1, first.Generation)
				if err != nil || c.Generation == first.Generation {
					t.Errorf("%v, %v", c, err)
				}
			})
		}
		wg.Wait()
		// And one who comes late, with the old generation.
		if c, err := k.Renew(t.Context(), exit2, first.Generation); err != nil || c.Generation != first.Generation+1 {
			t.Errorf("late: %v, %v", c, err)
		}
		if n := s.logins.Load(); n != 2 {
			t.Errorf("%d logins, want 2", n)
		}
		if got := k.Stats(); got.Logins != 2 || got.Failures != 0 || got.Held != 1 {
			t.Errorf("%+v", got)
		}
	})
}

func TestCredentialBoundToExitStaysThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &site{bound: auth.BoundToExit, took: time.Second}
		k := auth.NewKeeper(auth.Config{Source: s})
		var wg sync.WaitGroup
		began := time.Now()
		for _, via := range []auth.Via{exit1, exit2, exit1, exit2} {
			wg.Go(func() {
				if c := mustGet(t, k, via); c.Exit != via.Exit {
					t.Errorf("asked for %s, got %v", via.Exit, c)
				}
			})
		}
		wg.Wait()
		if s.logins.Load() != 2 {
			t.Errorf("%d logins, want one for each exit", s.logins.Load())
		}
		if took := time.Since(began); took != time.Second {
			t.Errorf("took %v: the exits waited for each other", took)
		}
	})
}

func TestPlannedRenewalBlocksNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &site{took: 5 * time.Second, life: 10 * time.Minute}
		k := auth.NewKeeper(auth.Config{Source: s})
		old := mustGet(t, k, exit1)
		first, last := old.Expires, time.Time{}
		for range 100 {
			at := k.RenewAt(old)
			if at.Before(first) {
				first = at
			}
			if at.After(last) {
				last = at
			}
			if before := old.Expires.Sub(at); before > 2*time.Minute || before < 90*time.Second {
				t.Fatalf("renewal %v before the end, want 1m30s to 2m", before)
			}
		}
		if spread := last.Sub(first); spread < 15*time.Second {
			t.Errorf("a hundred streams hand over within %v", spread)
		}
		time.Sleep(time.Until(k.RenewAt(old)))
		renewed := make(chan *auth.Credential)
		go func() {
			c, err := k.Renew(t.Context(), exit1, old.Generation)
			if err != nil {
				t.Error(err)
			}
			renewed <- c
		}()
		synctest.Wait() // the login is under way
		began := time.Now()
		if c := mustGet(t, k, exit1); c != old || time.Since(began) != 0 {
			t.Errorf("got %v after %v, want the old one at once", c, time.Since(began))
		}
		if c := <-renewed; c.Generation <= old.Generation || mustGet(t, k, exit1) != c {
			t.Errorf("renewed %v", c)
		}
	})
}

func TestRenewalBeginsEarlyEnoughForASlowLogin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &site{took: 8 * time.Second, life: time.Minute}
		k := auth.NewKeeper(auth.Config{Source: s})
		c := mustGet(t, k, exit1)
		if before := c.Expires.Sub(k.RenewAt(c)); before < 12*time.Second || before > 16*time.Second {
			t.Errorf("renewal %v before the end; a login takes 8s", before)
		}
		s.life = 10 * time.Second
		c, err := k.Renew(t.Context(), exit1, c.Generation)
		if err != nil {
			t.Fatal(err)
		}
		if before := c.Expires.Sub(k.RenewAt(c)); before > 5*time.Second {
			t.Errorf("renewal %v before the end of 10s: it would log in without end", before)
		}
		s.life = 0
		if c, err = k.Renew(t.Context(), exit1, c.Generation); err != nil || !k.RenewAt(c).IsZero() {
			t.Errorf("an unknown end is renewed at %v, %v", k.RenewAt(c), err)
		}
	})
}

func TestFailedRenewalKeepsTheOldOneAndBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &site{life: time.Hour}
		k := auth.NewKeeper(auth.Config{Source: s, AttemptsPerHour: -1})
		old := mustGet(t, k, exit1)
		broken := &auth.LoginError{Fault: auth.FaultStep, Step: 2, Selector: "#login", Reason: "gone"}
		s.failWith(broken)

		if _, err := k.Renew(t.Context(), exit1, old.Generation); !errors.Is(err, broken) {
			t.Fatal(err)
		}
		if c := mustGet(t, k, exit1); c != old {
			t.Errorf("got %v, want the old one", c)
		}
		// Whoever hammers is held off, without a login.
		attempts := s.logins.Load()
		_, err := k.Renew(t.Context(), exit1, old.Generation)
		hold, ok := errors.AsType[*auth.HoldError](err)
		if !ok || !errors.Is(err, broken) || s.logins.Load() != attempts {
			t.Fatalf("%v after %d logins", err, s.logins.Load()-attempts)
		}
		if wait := time.Until(hold.Until); wait <= 0 || wait > time.Second {
			t.Errorf("first wait %v", wait)
		}
		// The waits grow, to five minutes at most.
		for range 12 {
			_, err := k.Renew(t.Context(), exit1, old.Generation)
			if hold, ok = errors.AsType[*auth.HoldError](err); ok {
				time.Sleep(time.Until(hold.Until))
			}
			k.Renew(t.Context(), exit1, old.Generation)
		}
		_, err = k.Renew(t.Context(), exit1, old.Generation)
		hold, _ = errors.AsType[*auth.HoldError](err)
		if wait := time.Until(hold.Until); wait < 150*time.Second || wait > 5*time.Minute {
			t.Errorf("late wait %v", wait)
		}
		// What the site has rejected is not handed out, also when no login may be tried.
		k.Reject(exit1, old.Generation)
		if c, err := k.Get(t.Context(), exit1); !errors.Is(err, broken) {
			t.Errorf("got %v, %v", c, err)
		}
		time.Sleep(time.Until(hold.Until))
		s.failWith(nil)
		if c := mustGet(t, k, exit1); c == old {
			t.Error("got the rejected one")
		}
		if got := k.Stats(); got.Logins != 2 || got.Failures == 0 {
			t.Errorf("%+v", got)
		}
	})
}

func TestExpiredCredentialIsNotHandedOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &site{life: time.Minute}
		k := auth.NewKeeper(auth.Config{Source: s})
		old := mustGet(t, k, exit1)
		time.Sleep(time.Minute)
		if c := mustGet(t, k, exit1); c == old {
			t.Error("got the expired one")
		}
	})
}

func TestWhatEndsWithinSecondsIsHandedOutOnlyForWantOfAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &site{life: 10 * time.Minute, took: time.Second}
		k := auth.NewKeeper(auth.Config{Source: s})
		old := mustGet(t, k, exit1)
		time.Sleep(time.Until(old.Expires) - 11*time.Second)
		if c := mustGet(t, k, exit1); c != old {
			t.Error("11 seconds are enough")
		}
		// No other can be had: first the login fails, then it has to wait.
		time.Sleep(2 * time.Second)
		s.failWith(&auth.LoginError{Fault: auth.FaultStep})
		for range 2 {
			if c := mustGet(t, k, exit1); c != old {
				t.Error("the old one is good for seconds, and was not handed out")
			}
		}
		if s.logins.Load() != 2 {
			t.Errorf("%d logins", s.logins.Load())
		}
		s.failWith(nil)
		time.Sleep(2 * time.Second)
		if c := mustGet(t, k, exit1); c == old {
			t.Error("what ends in seconds was handed out")
		}
	})
}

func TestRefusedPasswordIsNotTriedForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &site{bound: auth.BoundToExit}
		s.failWith(refused())
		k := auth.NewKeeper(auth.Config{Name: "acme", Source: s})
		for _, patience := range []time.Duration{time.Minute, 2 * time.Minute} {
			k.Get(t.Context(), exit1)
			_, err := k.Get(t.Context(), exit1)
			hold, ok := errors.AsType[*auth.HoldError](err)
			if !ok || time.Until(hold.Until) < patience/2 || time.Until(hold.Until) > patience {
				t.Fatalf("%v, want a wait of about %v", err, patience)
			}
			time.Sleep(time.Until(hold.Until))
		}
		for day := time.Now(); time.Since(day) < 24*time.Hour; time.Sleep(10 * time.Second) {
			for _, via := range []auth.Via{exit1, exit2} { // one account, whichever exit
				if c, err := k.Get(t.Context(), via); err == nil {
					t.Fatalf("got %v", c)
				}
			}
		}
		if n := s.logins.Load(); n != 3 {
			t.Errorf("%d logins in a day, want 3", n)
		}
		_, err := k.Get(t.Context(), exit1)
		hold, ok := errors.AsType[*auth.HoldError](err)
		login, _ := errors.AsType[*auth.LoginError](err)
		if !ok || !hold.Until.IsZero() || login == nil || login.AuthFault() != auth.FaultRefused {
			t.Errorf("%v", err)
		}
	})
}

func TestGoodLoginForgetsRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &site{life: time.Minute}
		k := auth.NewKeeper(auth.Config{Source: s})
		for range 5 { // two refusals each: three in a row would be the end
			for range 2 {
				s.failWith(refused())
				if _, err := k.Get(t.Context(), exit1); errors.As(err, new(*auth.HoldError)) || err == nil {
					t.Fatal(err)
				}
				time.Sleep(time.Hour)
			}
			s.failWith(nil)
			mustGet(t, k, exit1)
			time.Sleep(time.Minute)
		}
	})
}

func TestRejectOfAnOldOneSparesTheNew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := auth.NewKeeper(auth.Config{Source: &site{}})
		old := mustGet(t, k, exit1)
		k.Reject(exit1, old.Generation)
		fresh := mustGet(t, k, exit1)
		k.Reject(exit1, old.Generation) // a stream that learns of it late
		k.Reject(auth.Via{Exit: "never seen"}, 1)
		if c := mustGet(t, k, exit1); c != fresh || fresh == old {
			t.Errorf("%v after %v", c, fresh)
		}
	})
}

func TestAttemptsPerHour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &site{life: 10 * time.Second}
		k := auth.NewKeeper(auth.Config{Source: s, AttemptsPerHour: 5})
		for range 5 {
			mustGet(t, k, exit1)
			time.Sleep(10 * time.Second)
		}
		_, err := k.Get(t.Context(), exit1)
		hold, ok := errors.AsType[*auth.HoldError](err)
		if !ok || !errors.Is(err, auth.ErrTooManyLogins) || s.logins.Load() != 5 {
			t.Fatalf("%v after %d logins", err, s.logins.Load())
		}
		if wait := time.Until(hold.Until); wait != time.Hour-50*time.Second {
			t.Errorf("held off for %v", wait)
		}
		time.Sleep(time.Until(hold.Until))
		mustGet(t, k, exit1)
	})
}

func TestDeadExitUsesUpNoLogins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dial := errors.New("proxy refuses the password")
		s := &site{}
		s.failWith(&auth.LoginError{Fault: auth.FaultExit, Err: dial})
		k := auth.NewKeeper(auth.Config{Source: s, AttemptsPerHour: 1})
		for range 10 {
			if _, err := k.Get(t.Context(), exit1); !errors.Is(err, dial) || errors.As(err, new(*auth.HoldError)) {
				t.Fatal(err)
			}
		}
		s.failWith(nil)
		mustGet(t, k, exit2)
	})
}

func TestLoginBelongsToAllWhoWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &site{took: 10 * time.Second}
		k := auth.NewKeeper(auth.Config{Source: s})
		first, cancel := context.WithCancelCause(t.Context())
		left := errors.New("left")
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := k.Get(first, exit1); !errors.Is(err, left) {
				t.Errorf("%v", err)
			}
		})
		synctest.Wait()
		wg.Go(func() { mustGet(t, k, exit1) })
		time.Sleep(time.Second)
		cancel(left)
		wg.Wait()
		if s.logins.Load() != 1 {
			t.Errorf("%d logins: the first one's end was everybody's", s.logins.Load())
		}
	})
}

func TestLoginEndsWithTheLastWaiter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &site{took: 10 * time.Second}
		k := auth.NewKeeper(auth.Config{Source: s})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := k.Get(ctx, exit1); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
		if s.ended.Load() != 1 {
			t.Error("Get returned before the login was over")
		}
		// It is nobody's failure: the next caller logs in at once.
		mustGet(t, k, exit1)
		if got := k.Stats(); got.Failures != 0 || got.Logins != 1 {
			t.Errorf("%+v", got)
		}
	})
}

func TestLoginTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := auth.NewKeeper(auth.Config{Source: &site{took: time.Hour}, LoginTimeout: 7 * time.Second})
		began := time.Now()
		_, err := k.Get(t.Context(), exit1)
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != 7*time.Second || k.Stats().Failures != 1 {
			t.Errorf("%v after %v, %+v", err, time.Since(began), k.Stats())
		}
	})
}

func TestManyExitsAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &site{bound: auth.BoundToExit}
		k := auth.NewKeeper(auth.Config{Source: s, AttemptsPerHour: -1})
		for i := range 5000 {
			mustGet(t, k, auth.Via{Exit: fmt.Sprint(i)})
			mustGet(t, k, auth.Via{Exit: "0"})
			time.Sleep(time.Millisecond)
		}
		if held := k.Stats().Held; held != 4096 {
			t.Errorf("%d held", held)
		}
		before := s.logins.Load()
		mustGet(t, k, auth.Via{Exit: "0"})
		for i := 5000 - 4095; i < 5000; i++ {
			mustGet(t, k, auth.Via{Exit: fmt.Sprint(i)})
		}
		if s.logins.Load() != before || before != 5000 {
			t.Errorf("one in use was forgotten: %d logins, then %d", before, s.logins.Load())
		}
	})
}

func TestOnLoginHearsBeforeTheCallers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &site{took: time.Second}
		var heard []auth.Login
		k := auth.NewKeeper(auth.Config{Source: s, OnLogin: func(l auth.Login) { heard = append(heard, l) }})
		c := mustGet(t, k, exit1)
		if len(heard) != 1 || heard[0].Credential != c || heard[0].Took != time.Second || heard[0].Exit != "exit-1" || heard[0].Credential.Generation != 1 {
			t.Errorf("%+v", heard)
		}
		s.failWith(refused())
		_, err := k.Renew(t.Context(), exit1, c.Generation)
		if len(heard) != 2 || heard[1].Err != err || heard[1].Credential != nil {
			t.Errorf("%+v, %v", heard, err)
		}
	})
}

func TestStatic(t *testing.T) {
	header := http.Header{"X-Api-Key": {"k"}}
	k := auth.NewKeeper(auth.Config{Source: auth.Static(header, []*http.Cookie{{Name: "a", Value: "b"}})})
	c := mustGet(t, k, exit1)
	if c.Header.Get("X-Api-Key") != "k" || len(c.Cookies) != 1 || c.Exit != "" {
		t.Errorf("%v", c)
	}
	if c != mustGet(t, k, exit2) {
		t.Error("a static credential is bound to an exit")
	}
}
