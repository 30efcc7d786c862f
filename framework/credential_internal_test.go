package framework

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdline/scrape/auth"
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
