package auth_test

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdline/scrape/auth"
)

func textLog(to io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(to, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func TestALifeSeenTwiceIsRenewedBeforeItEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		s := &site{}
		k := auth.NewKeeper(auth.Config{Source: s, Log: textLog(&log), AttemptsPerHour: -1})
		refuseAfter := func(age time.Duration) {
			t.Helper()
			c := mustGet(t, k, exit1)
			time.Sleep(age)
			k.Reject(exit1, c.Generation)
			k.Reject(exit1, c.Generation) // everybody who shares it says so
		}
		refuseAfter(40 * time.Minute)
		if at := k.RenewAt(mustGet(t, k, exit1)); !at.IsZero() {
			t.Errorf("one life teaches nothing, yet it is renewed at %v", at)
		}
		refuseAfter(41 * time.Minute)
		c := mustGet(t, k, exit1)
		if at := k.RenewAt(c).Sub(c.Obtained); at < 25*time.Minute || at > 40*time.Minute {
			t.Errorf("renewed at the age of %v, want some minutes before 40", at)
		}
		if c.Expired(time.Now().Add(time.Hour)) {
			t.Error("what is only guessed is taken for its end")
		}
		if n := strings.Count(log.String(), "at the same age"); n != 1 {
			t.Errorf("said %d times", n)
		}
		// The site changes its mind.
		refuseAfter(10 * time.Minute)
		if at := k.RenewAt(mustGet(t, k, exit1)); !at.IsZero() {
			t.Errorf("still renewed at %v", at)
		}
	})
}

func TestAccidentsTeachNoLifetime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := auth.NewKeeper(auth.Config{Source: &site{}, AttemptsPerHour: -1})
		for range 5 { // a site that refuses everything at once
			c := mustGet(t, k, exit1)
			time.Sleep(time.Second)
			k.Reject(exit1, c.Generation)
		}
		if at := k.RenewAt(mustGet(t, k, exit1)); !at.IsZero() {
			t.Errorf("renewed at %v", at)
		}
	})
}

func TestRefusedLongBeforeItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		k := auth.NewKeeper(auth.Config{Source: &site{life: time.Hour}, Log: textLog(&log)})
		for range 3 {
			c := mustGet(t, k, exit1)
			time.Sleep(20 * time.Minute)
			k.Reject(exit1, c.Generation)
		}
		if n := strings.Count(log.String(), "long before its end"); n != 1 {
			t.Errorf("said %d times:\n%s", n, log.String())
		}
		c := mustGet(t, k, exit1)
		if at := k.RenewAt(c).Sub(c.Obtained); at > 20*time.Minute {
			t.Errorf("renewed at the age of %v though refused at 20m", at)
		}
	})
}

func TestSkewIsSaidOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		if got := auth.Skew(http.Header{"Date": {time.Now().Add(5 * time.Minute).UTC().Format(http.TimeFormat)}}); got < 299*time.Second || got > 300*time.Second {
			t.Errorf("skew %v", got)
		}
		for name, h := range map[string]http.Header{
			"near":   {"Date": {time.Now().Add(5 * time.Second).UTC().Format(http.TimeFormat)}},
			"cached": {"Date": {time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat)}, "Age": {"3600"}},
			"none":   {},
			"broken": {"Date": {"yesterday"}},
		} {
			if got := auth.Skew(h); got != 0 {
				t.Errorf("%s: %v", name, got)
			}
		}
		var log strings.Builder
		k := auth.NewKeeper(auth.Config{Source: skewed{}, Log: textLog(&log), AttemptsPerHour: -1})
		for range 3 {
			c := mustGet(t, k, exit1)
			k.Reject(exit1, c.Generation)
		}
		if n := strings.Count(log.String(), "clock"); n == 0 || strings.Count(log.String(), "set this machine's clock") != 1 {
			t.Errorf("log:\n%s", log.String())
		}
	})
}

type skewed struct{}

func (skewed) Bound() auth.Binding { return auth.BoundToNone }
func (skewed) Obtain(context.Context, auth.Via, *auth.Credential) (*auth.Credential, error) {
	return &auth.Credential{Skew: 5 * time.Minute}, nil
}

func TestRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for value, want := range map[string]time.Duration{
			"": 0, "7": 7 * time.Second, "-1": 0, "999999": time.Hour, "99999999999": time.Hour, "9999999999999999999999": time.Hour, "x": 0,
			time.Now().Add(time.Minute).UTC().Format(http.TimeFormat): time.Minute,
		} {
			if got := auth.RetryAfter(http.Header{"Retry-After": {value}}); got != want {
				t.Errorf("%q: %v, want %v", value, got, want)
			}
		}
		s := &site{}
		s.failWith(&auth.LoginError{Fault: auth.FaultStep, Wait: 20 * time.Minute})
		k := auth.NewKeeper(auth.Config{Source: s})
		k.Get(t.Context(), exit1)
		time.Sleep(19 * time.Minute)
		k.Get(t.Context(), exit1)
		if n := s.logins.Load(); n != 1 {
			t.Errorf("%d logins before the time that the site asked for", n)
		}
		time.Sleep(2 * time.Minute)
		k.Get(t.Context(), exit1)
		if n := s.logins.Load(); n != 2 {
			t.Errorf("%d logins after it", n)
		}
	})
}
