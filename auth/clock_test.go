package auth_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdline/scrape/auth"
)

func tokenUntil(end time.Time) string {
	return "e30." + base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, `{"exp":%d}`, end.Unix())) + "."
}

// date is the head of an answer of a site whose clock is ahead.
func date(ahead time.Duration) http.Header {
	return http.Header{"Date": {time.Now().Add(ahead).UTC().Format(http.TimeFormat)}}
}

// given are the sources of a token that a person brought.
func given(t *testing.T, token string) map[string]auth.Source {
	path := filepath.Join(t.TempDir(), "state.json")
	state := fmt.Sprintf(`{"origins": [{"origin": "https://a", "localStorage": [{"name": "t", "value": %q}]}]}`, token)
	if err := os.WriteFile(path, []byte(state), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := auth.CookieFile(auth.CookieFileConfig{Path: path, Header: map[string]string{"Authorization": "Bearer ${storage:t}"}})
	if err != nil {
		t.Fatal(err)
	}
	return map[string]auth.Source{"static": auth.Static(http.Header{"Authorization": {"Bearer " + token}}, nil), "file": file}
}

func TestATokenThatWasGivenIsTheSitesToJudge(t *testing.T) {
	faults := map[string]auth.Fault{"static": auth.FaultSetup, "file": auth.FaultPerson}
	for name, fault := range faults {
		synctest.Test(t, func(t *testing.T) {
			source := given(t, tokenUntil(time.Now().Add(-time.Hour)))[name]
			var log strings.Builder
			k := auth.NewKeeper(auth.Config{Source: source, Log: textLog(&log), AttemptsPerHour: -1})
			// Its end has come by this machine's clock, which may be wrong.
			c := mustGet(t, k, exit1)
			if n := strings.Count(log.String(), "has ended by this machine's clock"); n != 1 || !c.Expires.IsZero() {
				t.Errorf("%s: %v, said %d times", name, c, n)
			}
			// It is: the site's shows two hours less. A refusal has another reason.
			k.Answered(date(-2 * time.Hour))
			k.Reject(exit1, c.Generation)
			c = mustGet(t, k, exit1)
			if n := strings.Count(log.String(), "site_clock_ahead=-2h0m0s"); n != 1 {
				t.Errorf("%s: the clocks were told %d times:\n%s", name, n, log.String())
			}
			time.Sleep(2 * time.Hour)
			k.Answered(date(-2 * time.Hour))
			k.Reject(exit1, c.Generation)
			_, err := k.Get(t.Context(), exit1)
			login, ok := errors.AsType[*auth.LoginError](err)
			if !ok || login.Fault != fault || !strings.Contains(err.Error(), "by the site's clock (this machine's is 2h0m0s ahead)") {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
}

func TestATokenThatHasEndedAndIsRefusedNeedsANewOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, source := range given(t, tokenUntil(time.Unix(1000, 0))) {
			k := auth.NewKeeper(auth.Config{Source: source})
			c := mustGet(t, k, exit1)
			k.Answered(http.Header{}) // tells nothing
			k.Reject(exit1, c.Generation)
			_, err := k.Get(t.Context(), exit1)
			if err == nil || !strings.Contains(err.Error(), "ended at 1970-01-01T00:16:40Z by this machine's clock") || strings.Contains(err.Error(), "e30.") {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

// late gives tokens whose end, by this machine's clock, is told as ended.
type late struct{ ended time.Duration }

func (late) Bound() auth.Binding { return auth.BoundToNone }
func (l late) Obtain(context.Context, auth.Via, *auth.Credential) (*auth.Credential, error) {
	return &auth.Credential{Expires: time.Now().Add(-l.ended)}, nil
}

func TestWhatTheSiteHasJustGivenIsGood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		k := auth.NewKeeper(auth.Config{Source: late{time.Hour}, Log: textLog(&log), AttemptsPerHour: -1})
		for range 2 {
			c := mustGet(t, k, exit1)
			if !c.Expires.IsZero() || c.Skew != -time.Hour || c != mustGet(t, k, exit1) {
				t.Errorf("%v, skew %v", c, c.Skew)
			}
			time.Sleep(30 * time.Minute)
			k.Reject(exit1, c.Generation)
		}
		// How long they last is learnt from the refusals.
		c := mustGet(t, k, exit1)
		if age := k.RenewAt(c).Sub(c.Obtained); age < 15*time.Minute || age > 30*time.Minute {
			t.Errorf("renewed at the age of %v", age)
		}
		if n := strings.Count(log.String(), "site_clock_ahead=-1h0m0s"); n != 1 || k.Stats().Failures != 0 {
			t.Errorf("said %d times, %+v", n, k.Stats())
		}
	})
}

func TestEndsAt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		for name, test := range map[string]struct {
			expires    time.Time
			skew       time.Duration
			end        time.Duration
			want, left time.Duration // of Skew, of Expires; 0 is unknown
		}{
			"one clock":                  {end: time.Hour, left: time.Hour},
			"the site's is ahead":        {skew: time.Hour, end: 90 * time.Minute, want: time.Hour, left: 30 * time.Minute},
			"the site's is behind":       {skew: -2 * time.Hour, end: -time.Hour, want: -2 * time.Hour, left: time.Hour},
			"nobody told that it is":     {end: -time.Hour, want: -time.Hour},
			"and how long it lasts":      {expires: now.Add(time.Minute), end: -time.Hour, want: -time.Hour, left: time.Minute},
			"the earlier of two":         {expires: now.Add(time.Minute), end: time.Hour, left: time.Minute},
			"more than was said of them": {skew: -time.Hour, end: -2 * time.Hour, want: -2 * time.Hour},
		} {
			c := &auth.Credential{Expires: test.expires, Skew: test.skew}
			c.EndsAt(now.Add(test.end))
			left := time.Duration(0)
			if !c.Expires.IsZero() {
				left = c.Expires.Sub(now)
			}
			if c.Skew != test.want || left != test.left {
				t.Errorf("%s: skew %v, left %v", name, c.Skew, left)
			}
		}
	})
}
