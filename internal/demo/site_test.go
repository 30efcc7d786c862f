package demo_test

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/holdline/scrape/internal/demo"
	"github.com/holdline/scrape/internal/demo/demotest"
)

func TestLogin(t *testing.T) {
	t.Parallel()
	e := open(t, nil)
	v := demotest.New(e.URL(), nil)
	t.Cleanup(v.Client.CloseIdleConnections)
	if err := v.Login(t.Context(), user, password); err == nil {
		t.Error("logged in without a clearance")
	}
	if err := v.Clear(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := v.Refresh(t.Context()); !isStatus(err, http.StatusUnauthorized) {
		t.Errorf("a token without a login: %v", err)
	}
	for _, wrong := range [][2]string{{user, "wrong"}, {"nobody", password}, {"", ""}} {
		if err := v.Login(t.Context(), wrong[0], wrong[1]); !errors.Is(err, demotest.ErrLogin) {
			t.Errorf("login as %q: %v", wrong, err)
		}
	}
	if err := v.Refresh(t.Context()); !isStatus(err, http.StatusUnauthorized) {
		t.Errorf("a token after a refused login: %v", err)
	}

	// A form that the site did not make for this browser.
	form := func(csrf string) *http.Response {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, e.URL()+"/login",
			strings.NewReader(url.Values{"csrf": {csrf}, "username": {user}, "password": {password}}.Encode()))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("User-Agent", v.UserAgent)
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		once := *v.Client
		once.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
		resp, err := once.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		return resp
	}
	if resp := form("guess"); resp.StatusCode != http.StatusOK || len(resp.Cookies()) != 0 {
		t.Errorf("a forged form: %s, cookies %v", resp.Status, resp.Cookies())
	}
	page, err := v.Get(t.Context(), "/login", "")
	if err != nil {
		t.Fatal(err)
	}
	defer page.Body.Close()
	body, err := io.ReadAll(page.Body)
	if err != nil {
		t.Fatal(err)
	}
	_, csrf, _ := strings.Cut(string(body), `name="csrf" value="`)
	csrf, _, _ = strings.Cut(csrf, `"`)
	resp := form(csrf)
	if resp.StatusCode != http.StatusSeeOther || len(resp.Cookies()) != 1 {
		t.Fatalf("login: %s, cookies %v", resp.Status, resp.Cookies())
	}
	if c := resp.Cookies()[0]; c.Name != "session" || !c.HttpOnly {
		t.Errorf("session cookie: HttpOnly is %v, name %s", c.HttpOnly, c.Name)
	}
	if err := v.Refresh(t.Context()); err != nil {
		t.Error(err)
	}
	if s := e.Stats(); s.Logins != 1 || s.LoginsRefused != 4 || s.Tokens != 1 {
		t.Errorf("stats: %+v", s)
	}
}

func isStatus(err error, status int) bool {
	bad, ok := errors.AsType[*demotest.StatusError](err)
	return ok && bad.Status == status
}

func TestClearanceBelongsToOneAddressAndUserAgent(t *testing.T) {
	t.Parallel()
	e := open(t, nil)
	v := visit(t, e, exit(t, e, demo.HTTP, 0).URL)
	if got, _ := status(t, v); got != http.StatusOK {
		t.Fatalf("with everything in order: %d", got)
	}
	agent, way := v.UserAgent, v.Client.Transport
	v.UserAgent = "another"
	if got, _ := status(t, v); got != http.StatusForbidden {
		t.Errorf("another User-Agent: %d", got)
	}
	v.UserAgent = agent
	other := demotest.New(e.URL(), exit(t, e, demo.HTTP, 1).URL)
	t.Cleanup(other.Client.CloseIdleConnections)
	v.Client.Transport = other.Client.Transport
	got, resp := status(t, v)
	if got != http.StatusForbidden || !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/html") {
		t.Errorf("another exit: %d %s", got, resp.Header.Get("Content-Type"))
	}
	v.Client.Transport = way
	if got, _ := status(t, v); got != http.StatusOK {
		t.Errorf("back on the first exit: %d", got)
	}
}

func TestClearanceEnds(t *testing.T) {
	t.Parallel()
	const life = 500 * time.Millisecond
	e := open(t, func(o *demo.Options) { o.ClearanceLife = life })
	var v *demotest.Visitor
	var r *reading
	within(t, life, func() (err error) {
		v = demotest.New(e.URL(), nil)
		t.Cleanup(v.Client.CloseIdleConnections)
		if err = v.Enter(t.Context(), user, password); err == nil {
			r, err = tryRead(t, v, "")
		}
		return err
	})
	for end := time.Now().Add(soon); ; time.Sleep(20 * time.Millisecond) {
		if got, _ := status(t, v); got == http.StatusForbidden {
			break
		} else if time.Now().After(end) {
			t.Fatalf("still %d", got)
		}
	}
	r.exactly(t, e, 1, 150) // an open stream goes on
}

func TestTokenIsBoundToTheSession(t *testing.T) {
	t.Parallel()
	e := open(t, nil)
	v, other := visit(t, e, nil), visit(t, e, nil)
	for name, token := range map[string]string{
		"no token":                    "",
		"a token of another session":  other.Token,
		"nonsense":                    "a.b.c",
		"a token with a broken seal":  v.Token[:len(v.Token)-4] + "AAAA",
		"a token that signs for none": "eyJhbGciOiJub25lIn0." + strings.Split(v.Token, ".")[1] + ".",
	} {
		w := *v
		w.Token = token
		got, resp := status(t, &w)
		if got != http.StatusUnauthorized || !strings.HasPrefix(resp.Header.Get("WWW-Authenticate"), "Bearer ") {
			t.Errorf("%s: %d, WWW-Authenticate %q", name, got, resp.Header.Get("WWW-Authenticate"))
		}
	}
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	site := mustParse(t, e.URL())
	for _, c := range v.Client.Jar.Cookies(site) {
		if c.Name == "clearance" {
			jar.SetCookies(site, []*http.Cookie{c})
		}
	}
	v.Client.Jar = jar
	if got, _ := status(t, v); got != http.StatusUnauthorized {
		t.Errorf("without the session cookie: %d", got)
	}
}

func TestAnExpiredTokenSilencesItsStream(t *testing.T) {
	t.Parallel()
	const life = time.Second
	e := open(t, func(o *demo.Options) { o.TokenLife = life })
	v := visit(t, e, nil)
	tell := func(first int64, n int) (r *reading) {
		t.Helper()
		within(t, life, func() (err error) {
			if err = v.Refresh(t.Context()); err == nil {
				if r, err = tryRead(t, v, strconv.FormatInt(first-1, 10)); err == nil {
					if err = r.tryExactly(t, e, first, n); err != nil {
						r.close()
					}
				}
			}
			return err
		})
		return r
	}
	r := tell(1, 20)
	refused(t, v, "token_expired")
	r.falls(t, 20)
	tell(21, 100)
}

// refused waits until the site refuses the visitor's token, and wants its reason.
func refused(t *testing.T, v *demotest.Visitor, reason string) {
	t.Helper()
	for end := time.Now().Add(soon); ; time.Sleep(20 * time.Millisecond) {
		resp, err := v.Get(t.Context(), "/api/v1/prices", "")
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		switch {
		case err != nil:
			t.Fatal(err)
		case resp.StatusCode == http.StatusOK && time.Now().Before(end):
			continue
		case resp.StatusCode != http.StatusUnauthorized || !strings.Contains(string(body), reason):
			t.Fatalf("%s %s, want %s", resp.Status, body, reason)
		}
		return
	}
}

func TestARevokedTokenSilencesItsStream(t *testing.T) {
	t.Parallel()
	e := open(t, nil)
	v := visit(t, e, nil)
	r := read(t, v, "")
	r.exactly(t, e, 1, 20)
	e.Revoke()
	r.falls(t, 20)
	_, err := v.Stream(t.Context(), "20")
	if bad, ok := errors.AsType[*demotest.StatusError](err); !ok || bad.Status != http.StatusUnauthorized || !strings.Contains(bad.Body, "token_revoked") {
		t.Fatalf("with the revoked token: %v", err)
	}
	if err := v.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	read(t, v, "20").exactly(t, e, 21, 100)
}

func TestTokensAreRevokedByChance(t *testing.T) {
	t.Parallel()
	e := open(t, func(o *demo.Options) { o.RevokeChance = 1; o.TokenLife = 10 * time.Second })
	v := visit(t, e, nil)
	// This one after three tenths of its life, by the default seed.
	refused(t, v, "token_revoked")
}

func TestStreamsAreCapped(t *testing.T) {
	t.Parallel()
	e := open(t, func(o *demo.Options) { o.MaxPerAddress = 3; o.MaxPerToken = 2 })
	v := visit(t, e, nil)
	first := read(t, v, "")
	first.price(t)
	read(t, v, "").price(t)
	got, resp := status(t, v)
	if got != http.StatusTooManyRequests || resp.Header.Get("Retry-After") != "2" {
		t.Fatalf("a third stream of one token: %d, Retry-After %q", got, resp.Header.Get("Retry-After"))
	}
	if err := v.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	read(t, v, "").price(t)
	if got, _ := status(t, v); got != http.StatusTooManyRequests {
		t.Fatalf("a fourth stream of one address: %d", got)
	}
	// Another address has a count of its own.
	read(t, visit(t, e, exit(t, e, demo.HTTP, 0).URL), "").price(t)

	first.close()
	for end := time.Now().Add(soon); ; time.Sleep(10 * time.Millisecond) {
		if got, _ := status(t, v); got == http.StatusOK {
			break
		} else if time.Now().After(end) {
			t.Fatalf("after one has left: %d", got)
		}
	}
	if s := e.Stats(); s.Peak["127.0.0.1"] != 3 || s.Peak["127.0.0.11"] != 1 || s.Refused < 2 {
		t.Errorf("stats: %+v", s)
	}
}

func TestPricesAreTheStateAtTheirID(t *testing.T) {
	t.Parallel()
	e := open(t, nil)
	v := visit(t, e, nil)
	time.Sleep(time.Until(e.Feed().Time(100)))
	resp, err := v.Get(t.Context(), "/api/v1/prices", "")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var got struct {
		ID     int64
		Prices []struct {
			ID                int64
			Symbol, Timestamp string
			Price, Volume     float64
		}
	}
	if err := json.NewDecoder(resp.Body).Decode(&got); err != nil {
		t.Fatal(err)
	}
	want := e.Feed().State(got.ID)
	if got.ID < 100 || len(got.Prices) != len(want) {
		t.Fatalf("%d prices at event %d, want %d", len(got.Prices), got.ID, len(want))
	}
	for i, p := range got.Prices {
		if w := want[i]; p.ID != w.ID || p.Symbol != w.Symbol || p.Price != w.Price || p.Volume != w.Volume {
			t.Errorf("got %+v, want %+v", p, w)
		}
	}
	v.Token = ""
	if resp, err := v.Get(t.Context(), "/api/v1/prices", ""); err != nil || resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("without a token: %v %v", resp, err)
	} else {
		resp.Body.Close()
	}
}

func TestTheFirstSilenceHoldsTheAddress(t *testing.T) {
	t.Parallel()
	e := open(t, func(o *demo.Options) {
		o.Silence = time.Hour
		o.FirstSilence = 200 * time.Millisecond
		o.Mute = time.Hour
	})
	here, there := visit(t, e, exit(t, e, demo.HTTP, 0).URL), visit(t, e, exit(t, e, demo.SOCKS5, 0).URL)
	r := read(t, here, "")
	for end := time.Now().Add(soon); e.Stats().Silences == 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the stream goes on")
		}
	}
	last := r.falls(t, 0)
	if told := read(t, here, strconv.Itoa(last)).falls(t, last); told != last {
		t.Errorf("a mute address was told the events %d to %d", last+1, told)
	}
	read(t, there, strconv.Itoa(last)).exactly(t, e, int64(last+1), 100)
	if s := e.Stats(); s.Silences != 1 {
		t.Errorf("%d silences", s.Silences)
	}
}

func TestASilenceOfOneStreamLeavesTheOthers(t *testing.T) {
	t.Parallel()
	e := open(t, func(o *demo.Options) { o.Silence = 300 * time.Millisecond; o.FirstSilence = -1; o.MuteChance = -1 })
	v := visit(t, e, nil)
	last := 0
	// Whenever one falls silent, the next goes on where it stopped.
	for silences := 1; silences <= 3 || last < 3; silences++ {
		r := read(t, v, strconv.Itoa(last))
		for end := time.Now().Add(soon); e.Stats().Silences < silences; {
			select {
			case it, ok := <-r.items:
				if !ok {
					t.Fatalf("the stream was closed: %v", r.err)
				}
				if it.event == "price_update" {
					last++
					if it.id != strconv.Itoa(last) {
						t.Fatalf("got event %s, want %d", it.id, last)
					}
				}
			case <-time.After(10 * time.Millisecond):
			}
			if time.Now().After(end) {
				t.Fatal("the stream goes on")
			}
		}
		last = r.falls(t, last)
		r.close()
	}
}

func TestFaultsOnCommand(t *testing.T) {
	t.Parallel()
	e := open(t, nil)
	v := visit(t, e, nil)
	r := read(t, v, "")
	r.exactly(t, e, 1, 10)
	e.Mute(netip.MustParseAddr("127.0.0.99"), time.Hour)
	r.exactly(t, e, 11, 100)
	e.Mute(netip.MustParseAddr("127.0.0.1"), time.Hour)
	r.falls(t, 110)
	e.Mute(netip.MustParseAddr("127.0.0.1"), 0)
	r = read(t, v, "10")
	if r.next(t).retry == "" { // the address is heard again
		t.Error("no retry at the beginning")
	}

	e.Drop()
	r.ends(t)
	if r.err == nil {
		t.Error("a reset looks like a regular end")
	}

	e.Break(http.StatusInternalServerError, time.Hour)
	if got, resp := status(t, v); got != http.StatusInternalServerError || !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/html") {
		t.Errorf("broken: %d %v", got, resp.Header)
	}
	e.Break(http.StatusOK, time.Hour)
	if got, resp := status(t, v); got != http.StatusOK || !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/html") {
		t.Errorf("a page instead of the stream: %d %v", got, resp.Header)
	}
	e.Break(0, 0)
	read(t, v, "10").exactly(t, e, 11, 10)
}
