package framework

import (
	"context"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdline/scrape/auth"
	"github.com/holdline/scrape/proxies"
)

func TestAPlannedRenewalBlocksNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &countingSource{life: time.Hour} // a login takes 2 s
		ids := NewIdentities(IdentityConfig{Keeper: auth.NewKeeper(auth.Config{Source: source})})
		defer ids.Close()
		first, err := ids.acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer first.release()
		acquire := func() (*identity, time.Duration) {
			began := time.Now()
			id, err := ids.acquire(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			id.release()
			return id, time.Since(began)
		}
		for _, refused := range []bool{false, true} {
			old, _ := acquire()
			var renewal sync.WaitGroup
			renewal.Go(func() {
				id, err := ids.reauthenticate(t.Context(), old, refused)
				if err != nil {
					t.Error(err)
					return
				}
				id.release()
			})
			synctest.Wait()
			id, waited := acquire()
			if !refused && (id != old || waited != 0) {
				t.Errorf("a planned renewal made another stream wait for %v", waited)
			}
			if refused && (id == old || waited != 2*time.Second) {
				t.Errorf("after a refusal another stream got the old one: %v, after %v", id == old, waited)
			}
			renewal.Wait()
		}
	})
}

func TestARenewalThatIsHeldBackIsNotAskedForAgainAndAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		source := &onlyOnce{countingSource: countingSource{life: 20 * time.Minute}}
		ids := NewIdentities(IdentityConfig{Keeper: auth.NewKeeper(auth.Config{Source: source})})
		defer ids.Close()
		s := &Stream{Name: "s", Target: &site{every: time.Second, start: time.Now()}, Identities: ids, Limits: quickly(), Log: slog.New(slog.NewTextHandler(&log, nil))}
		read(t, s, 19*60)
		// It begins after 16 minutes or so, and fails: 1 s, 2 s, 4 s … until the next.
		if n := strings.Count(log.String(), "a planned change has to wait"); n == 0 || n > 14 {
			t.Errorf("said %d times, with %d logins", n, source.failed)
		}
	})
}

// onlyOnce is a login that works once.
type onlyOnce struct {
	countingSource
	failed int
}

func (o *onlyOnce) Obtain(ctx context.Context, via auth.Via, old *auth.Credential) (*auth.Credential, error) {
	if o.count() > 0 {
		o.failed++
		return nil, &auth.LoginError{Fault: auth.FaultStep, Reason: "the login page is gone"}
	}
	return o.countingSource.Obtain(ctx, via, old)
}

func TestACredentialThatOutlivesItsClockIsUsedWhileThereIsNoOther(t *testing.T) {
	for name, ends := range map[string]step{"clean end": {events: 90}, "silence": {events: 90, mute: true}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				source := &onlyOnce{countingSource: countingSource{life: time.Minute}}
				ids := NewIdentities(IdentityConfig{Keeper: auth.NewKeeper(auth.Config{Source: source})})
				defer ids.Close()
				start := time.Now()
				feed := &site{every: time.Second, start: start, replay: true, script: func(int, Cursor) step { return ends }}
				s := &Stream{Name: "s", Target: feed, Identities: ids, Limits: quickly(), StaleAfter: 5 * time.Second}
				if got := read(t, s, 300); !slices.Equal(got, numbers(1, 300)) {
					t.Errorf("got %d events", len(got))
				}
				// The site takes it still, so that nobody has to wait for a login.
				if took := time.Since(start); took > 305*time.Second || source.failed == 0 {
					t.Errorf("%v for 300 seconds of events, %d logins failed", took, source.failed)
				}
			})
		})
	}
}

// refusing is a Source that fails.
type refusing struct {
	fault auth.Fault
	tries int
}

func (*refusing) Bound() auth.Binding { return auth.BoundToExit }

func (r *refusing) Obtain(context.Context, auth.Via, *auth.Credential) (*auth.Credential, error) {
	r.tries++
	return nil, &auth.LoginError{Fault: r.fault}
}

// shelf is a Store of one credential, which others may put there.
type shelf struct {
	mu   sync.Mutex
	kept *auth.Credential
	past auth.History
}

func (s *shelf) Load() ([]*auth.Credential, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.kept == nil {
		return nil, nil
	}
	return []*auth.Credential{new(*s.kept)}, nil
}

func (s *shelf) Save(c *auth.Credential) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kept = new(*c)
	return nil
}

func (s *shelf) Remove(exit string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.kept != nil && s.kept.Exit == exit {
		s.kept = nil
	}
	return nil
}

func (s *shelf) Recall() (auth.History, error) { return s.past, nil }
func (s *shelf) Remember(auth.History) error   { return nil }

// A stream that waits for a login, at its start or after the site has refused
// what it had, goes on within seconds with what a person has brought by hand,
// through whichever exit.
func TestALoginByHandEndsTheWaitOfAStream(t *testing.T) {
	for name, test := range map[string]struct {
		fault auth.Fault
		times int  // refused before this start
		kept  bool // it has a credential at first
	}{
		"refused before this start": {fault: auth.FaultRefused, times: 3},
		"a person is needed later":  {fault: auth.FaultPerson, kept: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				by := func(exit, who string) *auth.Credential {
					x, err := proxies.ParseExit("http://" + exit + ":1")
					if err != nil {
						t.Fatal(err)
					}
					return &auth.Credential{Exit: exit, ExitID: exitID(x), Obtained: time.Now(), Header: http.Header{"By": {who}}}
				}
				store := &shelf{past: auth.History{Refusal: auth.Hold{Times: test.times, Since: time.Now(), Why: "no"}}}
				if test.kept {
					store.kept = by("one", "an earlier run")
				}
				source := &refusing{fault: test.fault}
				ids := NewIdentities(IdentityConfig{Key: "t", Pool: twoExits(t, "one", "two"), Keeper: auth.NewKeeper(auth.Config{Source: source, Store: store})})
				s := &site{every: time.Second, start: time.Now(), replay: true}
				s.script = func(n int, _ Cursor) step {
					if test.kept && n == 1 {
						return step{refuse: &HTTPError{Status: 401}}
					}
					return step{events: 1 << 60}
				}
				w, end := holding(t, Config{Journal: newLogsJournal(), Streams: []*Stream{{Name: "t/s", Target: s, Limits: quickly(), Identities: ids, StaleAfter: -1}}})
				time.Sleep(time.Minute)
				if st := statsOf(t, w, "t/s"); st.Events != 0 || !strings.HasPrefix(st.State, "waiting") {
					t.Fatalf("it does not wait: %+v", st)
				}
				tries, waits := source.tries, statsOf(t, w, "t/s").Reconnects[CauseLogin]
				store.Save(by("two", "hand"))
				time.Sleep(12 * time.Second)
				if st := statsOf(t, w, "t/s"); st.Events == 0 || st.Exit != "two" || source.tries != tries || st.Reconnects[CauseLogin] != waits {
					t.Errorf("after %d more logins and %d more waits: %+v", source.tries-tries, st.Reconnects[CauseLogin]-waits, st)
				}
				if err := end(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}
