package auth_test

import (
	"errors"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdline/scrape/auth"
)

// newStack is a browser's clearance, bound to the exit, below a bearer token.
func newStack(clearance, bearer *site) *auth.Keeper {
	key := auth.NewKeeper(auth.Config{Source: auth.Static(http.Header{"x-api-key": {"k"}}, []*http.Cookie{{Name: "c", Domain: "d", Path: "/", Value: "1"}})})
	return auth.NewKeeper(auth.Config{
		AttemptsPerHour: -1,
		Source: auth.Stack(
			auth.NewKeeper(auth.Config{Name: "clearance", Source: clearance, AttemptsPerHour: 100}), key,
			auth.NewKeeper(auth.Config{Name: "bearer", Source: bearer, AttemptsPerHour: 100})),
	})
}

func TestStackRenewsThePartThatEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		clearance, bearer := &site{bound: auth.BoundToExit, life: 24 * time.Hour}, &site{life: time.Hour}
		k := newStack(clearance, bearer)
		c := mustGet(t, k, exit1)
		if c.Exit != "exit-1" || time.Until(c.Expires) != time.Hour || c.Header.Get("X-Api-Key") != "k" || len(c.Cookies) != 1 {
			t.Errorf("the whole is %v", c)
		}
		if got := c.Header.Get("Authorization"); got != "Bearer 1 exit-1" {
			t.Errorf("Authorization %q, want that of the last part", got)
		}
		for range 10 {
			time.Sleep(time.Until(k.RenewAt(c)))
			next, err := k.Renew(t.Context(), exit1, c.Generation)
			if err != nil {
				t.Fatal(err)
			}
			c = next
		}
		if clearance.logins.Load() != 1 || bearer.logins.Load() != 11 {
			t.Errorf("%d clearances and %d tokens, want 1 and 11", clearance.logins.Load(), bearer.logins.Load())
		}
		if got := k.Stats().Logins; got != 12 {
			t.Errorf("%d logins counted", got)
		}
		// What the site refuses before any end is renewed whole.
		time.Sleep(time.Minute)
		k.Reject(exit1, c.Generation)
		mustGet(t, k, exit1)
		if clearance.logins.Load() != 2 || bearer.logins.Load() != 12 {
			t.Errorf("after a refusal %d and %d", clearance.logins.Load(), bearer.logins.Load())
		}
	})
}

func TestStackSharesWhatIsBoundToNoExit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		clearance, bearer := &site{bound: auth.BoundToExit, took: time.Second, life: time.Hour}, &site{took: time.Second, life: time.Hour}
		k := newStack(clearance, bearer)
		var held [2]*auth.Credential
		var wg sync.WaitGroup
		for i, via := range []auth.Via{exit1, exit2} {
			wg.Go(func() { held[i] = mustGet(t, k, via) })
		}
		wg.Wait()
		if clearance.logins.Load() != 2 || bearer.logins.Load() != 1 {
			t.Errorf("%d clearances and %d tokens, want 2 and 1", clearance.logins.Load(), bearer.logins.Load())
		}
		time.Sleep(time.Minute)
		// One refusal, seen through both.
		for i, via := range []auth.Via{exit1, exit2} {
			wg.Go(func() {
				k.Reject(via, held[i].Generation)
				mustGet(t, k, via)
			})
		}
		wg.Wait()
		if clearance.logins.Load() != 4 || bearer.logins.Load() != 2 {
			t.Errorf("after a refusal %d and %d, want 4 and 2", clearance.logins.Load(), bearer.logins.Load())
		}
	})
}

func TestStackTellsWhichPartHoldsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		clearance, bearer := &site{}, &site{}
		bearer.failWith(refused())
		k := newStack(clearance, bearer)
		for range 3 {
			k.Get(t.Context(), exit1)
			time.Sleep(time.Hour)
		}
		_, err := k.Get(t.Context(), exit1)
		hold, ok := errors.AsType[*auth.HoldError](err)
		if !ok || !hold.Until.IsZero() || bearer.logins.Load() != 3 || clearance.logins.Load() != 1 {
			t.Errorf("%v after %d and %d", err, clearance.logins.Load(), bearer.logins.Load())
		}
	})
}
