package demo_test

import (
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/holdline/scrape/internal/demo"
)

// through is the gateway with that user name.
func through(t *testing.T, e *demo.Exchange, user string) *url.URL {
	t.Helper()
	u := *exit(t, e, demo.Gateway, 0).URL
	u.User = url.UserPassword(user, "gw-pass")
	return &u
}

func TestTheGatewayKeepsASessionOnItsExit(t *testing.T) {
	t.Parallel()
	e, target := open(t, nil), echo(t)
	seen := make(map[string]bool)
	for _, name := range strings.Split("a b c d e f g h i j", " ") {
		u := through(t, e, "gw-user-session-"+name+"-lifetime-10")
		_, first := get(t, way(t, u, false), target)
		addr, err := netip.ParseAddr(first)
		if err != nil || addr.Less(netip.MustParseAddr("127.0.0.21")) || netip.MustParseAddr("127.0.0.28").Less(addr) {
			t.Errorf("session %s leaves from %q", name, first)
		}
		seen[first] = true
		for _, tunnel := range []bool{false, true} {
			if _, again := get(t, way(t, u, tunnel), target); again != first {
				t.Errorf("session %s leaves from %s, then from %s", name, first, again)
			}
		}
	}
	if len(seen) < 4 {
		t.Errorf("ten sessions share %v", seen)
	}

	// The same seed gives the same exits.
	other := open(t, nil)
	for _, name := range []string{"a", "b", "c"} {
		_, here := get(t, way(t, through(t, e, "gw-user-session-"+name), false), target)
		_, there := get(t, way(t, through(t, other, "gw-user-session-"+name), false), target)
		if here != there {
			t.Errorf("session %s leaves from %s here and from %s there", name, here, there)
		}
	}

	rotating := make(map[string]bool)
	for range 20 {
		_, addr := get(t, way(t, through(t, e, "gw-user"), false), target)
		rotating[addr] = true
	}
	if len(rotating) < 3 {
		t.Errorf("without a session 20 requests leave from %v", rotating)
	}
}

func TestTheGatewayReadsUserNamesStrictly(t *testing.T) {
	t.Parallel()
	e, target := open(t, nil), echo(t)
	for user, want := range map[string]int{
		"gw-user":                           http.StatusOK,
		"gw-user-session-A1":                http.StatusOK,
		"gw-user-session-A1-lifetime-1440":  http.StatusOK,
		"gw-user-session":                   http.StatusBadRequest,
		"gw-user-session-":                  http.StatusBadRequest,
		"gw-user-session-a_b":               http.StatusBadRequest,
		"gw-user-session-é":                 http.StatusBadRequest,
		"gw-user-session-a-lifetime":        http.StatusBadRequest,
		"gw-user-session-a-lifetime-0":      http.StatusBadRequest,
		"gw-user-session-a-lifetime-1441":   http.StatusBadRequest,
		"gw-user-session-a-lifetime-x":      http.StatusBadRequest,
		"gw-user-country-de":                http.StatusBadRequest,
		"gw-users":                          http.StatusBadRequest,
		"gw-user-session-a-lifetime-5-b":    http.StatusBadRequest,
		"gw-user-session-" + longName:       http.StatusOK,
		"gw-user-session-" + longName + "a": http.StatusBadRequest,
		"gw":                                http.StatusProxyAuthRequired,
		"isp-user":                          http.StatusProxyAuthRequired,
	} {
		resp, _ := get(t, way(t, through(t, e, user), false), target)
		if resp.StatusCode != want || want != http.StatusOK && resp.Header.Get("X-Error") == "" {
			t.Errorf("%s: %s, X-Error %q, want %d", user, resp.Status, resp.Header.Get("X-Error"), want)
		}
	}
}

const longName = "abcdefghijklmnopqrstuvwxyz012345" // 32 letters and digits

func TestTheGatewayEndsASessionByTheClock(t *testing.T) {
	t.Parallel()
	const life = 800 * time.Millisecond
	e, target := open(t, func(o *demo.Options) { o.GatewayLife = life }), echo(t)
	var u *url.URL
	var first string
	var r *reading
	var began time.Time
	sessions := 0
	within(t, life, func() (err error) {
		began = time.Now()
		sessions++
		u = through(t, e, "gw-user-session-short"+strconv.Itoa(sessions))
		if _, first, err = tryGet(way(t, u, false), target); err != nil {
			return err
		}
		r, err = tryRead(t, visitFrom(t, e, first, u), "")
		return err
	})
	r.ends(t)
	if held := time.Since(began); held < life {
		t.Errorf("the session ended after %v", held)
	}
	if r.err == nil {
		t.Error("a forced close looks like a regular end")
	}
	if _, next := get(t, way(t, u, false), target); next == first {
		t.Errorf("after its end the session still leaves from %s", first)
	}
}
