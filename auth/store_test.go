package auth_test

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdline/scrape/auth"
)

// memory is a Store that a test can look into.
type memory struct {
	mu   sync.Mutex
	kept map[string]auth.Credential
	past auth.History
	bad  error

	loads int // how often it was read
}

func newMemory() *memory { return &memory{kept: map[string]auth.Credential{}} }

func (m *memory) Load() (all []*auth.Credential, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.loads++
	for _, c := range m.kept {
		all = append(all, &c)
	}
	return all, m.bad
}

func (m *memory) Save(c *auth.Credential) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.bad != nil {
		return m.bad
	}
	m.kept[c.Exit] = *c
	return nil
}

func (m *memory) Remove(exit string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.kept, exit)
	return nil
}

func (m *memory) Recall() (auth.History, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.past, m.bad
}

func (m *memory) Remember(h auth.History) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.bad == nil {
		m.past = h
	}
	return m.bad
}

func (m *memory) exits() (names []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for exit := range m.kept {
		names = append(names, exit)
	}
	slices.Sort(names)
	return names
}

func TestARestartUsesWhatIsStillGood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemory()
		s := &site{bound: auth.BoundToExit, life: time.Hour}
		first := auth.NewKeeper(auth.Config{Source: s, Store: store})
		old := mustGet(t, first, exit1)
		time.Sleep(10 * time.Minute)
		late := mustGet(t, first, exit2)

		again := auth.NewKeeper(auth.Config{Source: s, Store: store})
		if got := again.PreferredExit(); got != "exit-2" {
			t.Errorf("prefers %q, want the one that lasts longer", got)
		}
		if c := mustGet(t, again, exit1); c.Header.Get("Authorization") != old.Header.Get("Authorization") || !c.Obtained.Equal(old.Obtained) || c.Generation == 0 {
			t.Errorf("%v, want %v", c, old)
		}
		if n := s.logins.Load(); n != 2 || again.Stats().Logins != 0 {
			t.Errorf("%d logins, %+v: the restart logged in", n, again.Stats())
		}
		// The site refuses one: it is not kept any more, and the other is.
		c := mustGet(t, again, exit2)
		again.Reject(exit2, c.Generation)
		if got := store.exits(); !slices.Equal(got, []string{"exit-1"}) {
			t.Errorf("kept after a refusal: %v", got)
		}
		if fresh := mustGet(t, again, exit2); fresh.Header.Get("Authorization") == late.Header.Get("Authorization") {
			t.Error("the refused one was handed out")
		}
		if got := store.exits(); len(got) != 2 {
			t.Errorf("kept after a login: %v", got)
		}
		// What ended while nothing ran is dropped.
		time.Sleep(2 * time.Hour)
		last := auth.NewKeeper(auth.Config{Source: s, Store: store})
		if last.PreferredExit() != "" || len(store.exits()) != 0 {
			t.Errorf("prefers %q, kept %v", last.PreferredExit(), store.exits())
		}
	})
}

func TestAnotherExitOfTheSameNameGetsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemory()
		s := &site{bound: auth.BoundToExit, life: time.Hour}
		mustGet(t, auth.NewKeeper(auth.Config{Source: s, Store: store}), auth.Via{Exit: "gateway#2", ID: "a"})
		k := auth.NewKeeper(auth.Config{Source: s, Store: store})
		mustGet(t, k, auth.Via{Exit: "gateway#2", ID: "b"})
		if n := s.logins.Load(); n != 2 {
			t.Errorf("%d logins: a credential left through an exit that it is not bound to", n)
		}
		mustGet(t, k, auth.Via{Exit: "gateway#2", ID: "b"})
		if n := s.logins.Load(); n != 2 {
			t.Errorf("%d logins for one exit", n)
		}
	})
}

func TestAStoreThatFailsCostsALogin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemory()
		store.bad = errors.New("the key is another")
		var log strings.Builder
		s := &site{}
		k := auth.NewKeeper(auth.Config{Source: s, Store: store, Log: textLog(&log)})
		mustGet(t, k, exit1)
		mustGet(t, k, exit1)
		if n := s.logins.Load(); n != 1 {
			t.Errorf("%d logins", n)
		}
		if strings.Count(log.String(), "level=WARN") != 2 || strings.Count(log.String(), "level=ERROR") != 1 {
			t.Errorf("want one error, and a warning of each that is not kept:\n%s", log.String())
		}
	})
}

func TestALoginByHandEndsTheWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemory()
		s := &site{bound: auth.BoundToExit, life: time.Hour}
		s.failWith(&auth.LoginError{Fault: auth.FaultPerson, Reason: "a captcha"})
		k := auth.NewKeeper(auth.Config{Source: s, Store: store})
		_, err := k.Get(t.Context(), exit1)
		if login, ok := errors.AsType[*auth.LoginError](err); !ok || login.Fault != auth.FaultPerson {
			t.Fatal(err)
		}
		_, err = k.Get(t.Context(), exit1)
		hold, ok := errors.AsType[*auth.HoldError](err)
		if !ok || time.Until(hold.Until) < 2*time.Minute {
			t.Fatalf("%v: a person is asked again and again", err)
		}
		store.Save(&auth.Credential{Exit: "exit-1", Obtained: time.Now(), Header: http.Header{"By": {"hand"}}})
		time.Sleep(time.Until(hold.Until))
		if c := mustGet(t, k, exit1); c.Header.Get("By") != "hand" || c.Exit != "exit-1" {
			t.Errorf("got %v", c)
		}
		if s.logins.Load() != 1 {
			t.Errorf("%d logins", s.logins.Load())
		}
	})
}

// renewing is a Source with refresh tokens, each good once.
type renewing struct {
	mu     sync.Mutex
	last   string
	logins int
}

func (*renewing) Bound() auth.Binding { return auth.BoundToNone }

func (r *renewing) Obtain(_ context.Context, _ auth.Via, old *auth.Credential) (*auth.Credential, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if old == nil || old.Refresh.Reveal() != r.last {
		r.logins++
	}
	r.last += "x"
	return &auth.Credential{Refresh: auth.NewSecret(r.last), Expires: time.Now().Add(time.Hour)}, nil
}

func TestARefreshTokenOutlivesItsCredential(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemory()
		r := &renewing{}
		mustGet(t, auth.NewKeeper(auth.Config{Source: r, Store: store}), exit1)
		time.Sleep(5 * time.Hour)
		k := auth.NewKeeper(auth.Config{Source: r, Store: store})
		c := mustGet(t, k, exit2)
		k.Reject(exit2, c.Generation)
		third := auth.NewKeeper(auth.Config{Source: r, Store: store})
		if got := mustGet(t, third, exit1); got.Expired(time.Now()) || got.Refresh.Reveal() != "xxx" || r.logins != 1 {
			t.Errorf("%v, refresh %q, %d logins", got, got.Refresh.Reveal(), r.logins)
		}
	})
}

// A keeper that holds back, for an hour or for good, takes up within seconds
// what a person has brought by hand, however many ask; it looks into the store
// no more often than it says, and an old credential ends no wait.
func TestAKeeperThatHoldsBackLooksForALoginByHand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemory()
		s := &site{bound: auth.BoundToExit}
		mustGet(t, auth.NewKeeper(auth.Config{Source: s, Store: store}), exit2)
		s.failWith(refused())
		k := auth.NewKeeper(auth.Config{Source: s, Store: store})
		for range 3 {
			k.Get(t.Context(), exit1)
			time.Sleep(10 * time.Minute)
		}
		logins := s.logins.Load()
		holds := func(k *auth.Keeper) *auth.HoldError {
			t.Helper()
			_, err := k.Get(t.Context(), exit1)
			hold, ok := errors.AsType[*auth.HoldError](err)
			if !ok {
				t.Fatal(err)
			}
			return hold
		}
		again := auth.NewKeeper(auth.Config{Source: s, Store: store})
		// One is asked by streams that wait, the other by somebody who knows.
		waits, gaveUp := holds(again), holds(k)
		if waits.Until.IsZero() || !gaveUp.Until.IsZero() {
			t.Fatalf("until %v and %v", waits.Until, gaveUp.Until)
		}
		if waits.Over() || k.Look() || k.Look() {
			t.Error("nobody has logged in, and it is over")
		}
		store.Save(&auth.Credential{Exit: "exit-1", Obtained: time.Now(), Header: http.Header{"By": {"hand"}}})
		had := store.loads
		if waits.Over() || store.loads != had {
			t.Errorf("it has looked %d times more within seconds", store.loads-had)
		}
		time.Sleep(10 * time.Second)
		for range 3 {
			if !waits.Over() {
				t.Error("somebody has logged in, and it is not over")
			}
		}
		if store.loads != had+1 {
			t.Errorf("it has looked %d times, want once", store.loads-had)
		}
		if !k.Look() || k.Look() || !gaveUp.Over() {
			t.Error("want it to be taken up once")
		}
		for _, k := range []*auth.Keeper{again, k} {
			if c := mustGet(t, k, exit1); c.Header.Get("By") != "hand" {
				t.Errorf("got %v", c)
			}
		}
		if store.past.Refusal != (auth.Hold{}) || s.logins.Load() != logins {
			t.Errorf("%+v after %d more logins", store.past.Refusal, s.logins.Load()-logins)
		}
	})
}

// Of a stack the part is looked at that holds back.
func TestAStackLooksForALoginByHand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemory()
		clearance, bearer := &site{}, &site{}
		bearer.failWith(refused())
		k := auth.NewKeeper(auth.Config{AttemptsPerHour: -1, Source: auth.Stack(
			auth.NewKeeper(auth.Config{Source: clearance}), auth.NewKeeper(auth.Config{Source: bearer, Store: store}))})
		for range 3 {
			k.Get(t.Context(), exit1)
			time.Sleep(time.Hour)
		}
		_, err := k.Get(t.Context(), exit1)
		hold, ok := errors.AsType[*auth.HoldError](err)
		if !ok || hold.Over() {
			t.Fatal(err)
		}
		store.Save(&auth.Credential{Obtained: time.Now(), Header: http.Header{"By": {"hand"}}})
		time.Sleep(10 * time.Second)
		if !hold.Over() {
			t.Error("it is not over")
		}
		if c := mustGet(t, k, exit1); c.Header.Get("By") != "hand" {
			t.Errorf("got %v", c)
		}
		store.Save(&auth.Credential{Obtained: time.Now().Add(time.Second)})
		if !k.Look() {
			t.Error("the stack does not look into its parts")
		}
	})
}
