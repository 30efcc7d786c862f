package login_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdline/scrape/auth"
	"github.com/holdline/scrape/auth/login"
)

const (
	user     = "alice@example.com"
	password = "s3cret&pass=word"
)

// site has a form with a hidden token that belongs to a cookie, and an
// interface that speaks JSON.
type site struct {
	*httptest.Server
	agents atomic.Value
	hung   chan struct{} // closed when somebody is kept waiting
}

func newSite(t *testing.T) *site {
	s := &site{hung: make(chan struct{})}
	mux := http.NewServeMux()
	form := func(w http.ResponseWriter) {
		http.SetCookie(w, &http.Cookie{Name: "pre", Value: "pre-1", Path: "/"})
		fmt.Fprint(w, `<!doctype html><meta name="csrf-token" content="meta-1">
			<form action="/search"><input name="q"><input type="hidden" name="where" value="all"></form>
			<form method="post" action="session?from=form"><INPUT TYPE=hidden NAME=csrf VALUE="a&amp;b">
			<input name="user"><input type="password" name="pass"><input type="submit" name="go" value="Go"></form>`)
	}
	mux.HandleFunc("GET /login", func(w http.ResponseWriter, r *http.Request) { form(w) })
	mux.HandleFunc("POST /session", func(w http.ResponseWriter, r *http.Request) {
		s.agents.Store(r.UserAgent())
		pre, err := r.Cookie("pre")
		switch {
		case err != nil || pre.Value != "pre-1" || r.FormValue("csrf") != "a&b" || r.FormValue("where") != "" || r.FormValue("go") != "" || r.URL.RawQuery != "from=form":
			http.Error(w, "forged: "+r.Form.Encode(), http.StatusForbidden)
		case r.Header.Get("Origin") != s.URL || r.Header.Get("Referer") != s.URL+"/login":
			http.Error(w, "from elsewhere", http.StatusForbidden)
		case r.FormValue("user") != user || r.FormValue("pass") != password:
			form(w)
		default:
			http.SetCookie(w, &http.Cookie{Name: "session", Value: "sess-1", Path: "/", HttpOnly: true, MaxAge: 600})
			http.SetCookie(w, &http.Cookie{Name: "pre", MaxAge: -1, Path: "/"})
			http.SetCookie(w, &http.Cookie{Name: "foreign", Value: "x", Domain: "other.test"})
			w.Header().Set("X-Session", "header-1")
			http.Redirect(w, r, "/home", http.StatusSeeOther)
		}
	})
	mux.HandleFunc("GET /home", func(w http.ResponseWriter, r *http.Request) {
		if c, err := r.Cookie("session"); err != nil || c.Value != "sess-1" {
			http.Error(w, "who?", http.StatusUnauthorized)
			return
		}
		http.SetCookie(w, &http.Cookie{Name: "here", Value: "1"})
		fmt.Fprint(w, "<p>Welcome</p>")
	})
	mux.HandleFunc("POST /api", func(w http.ResponseWriter, r *http.Request) {
		var got struct {
			User struct{ Name, Password string }
			Code string
		}
		w.Header().Set("Content-Type", "application/json")
		if r.Header.Get("Content-Type") != "application/json" || json.NewDecoder(r.Body).Decode(&got) != nil || got.User.Name != user || got.User.Password != password || len(got.Code) != 6 {
			w.WriteHeader(http.StatusUnauthorized)
			json.NewEncoder(w).Encode(map[string]string{"message": "no: " + got.User.Password})
			return
		}
		fmt.Fprintf(w, `{"data": {"tokens": ["%s"], "seconds": 120}, "ok": true}`, token(time.Now().Add(time.Hour)))
	})
	mux.HandleFunc("POST /elsewhere", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, strings.Replace(s.URL, "127.0.0.1", "localhost", 1)+"/session", http.StatusTemporaryRedirect)
	})
	mux.HandleFunc("POST /busy", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Retry-After", "90")
		w.WriteHeader(http.StatusTooManyRequests)
	})
	mux.HandleFunc("POST /loop", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/round", http.StatusFound) })
	mux.HandleFunc("GET /round", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/round", http.StatusFound) })
	mux.HandleFunc("POST /says", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "Sorry, wrong password.") })
	mux.HandleFunc("POST /hang", func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		close(s.hung)
		<-r.Context().Done()
	})
	mux.HandleFunc("POST /late", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Date", time.Now().Add(-2*time.Hour).UTC().Format(http.TimeFormat))
		http.SetCookie(w, &http.Cookie{Name: "session", Value: token(time.Now().Add(-90 * time.Minute)), Path: "/", Expires: time.Now().Add(-time.Hour)})
		fmt.Fprint(w, "{}")
	})
	s.Server = httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s
}

func token(end time.Time) string {
	return "e30." + base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, `{"exp":%d}`, end.Unix())) + "."
}

func fields(pairs ...string) map[string]auth.Secret {
	m := map[string]auth.Secret{}
	for i := 0; i < len(pairs); i += 2 {
		m[pairs[i]] = auth.NewSecret(pairs[i+1])
	}
	return m
}

func obtain(t *testing.T, c login.Config) (*auth.Credential, error) {
	t.Helper()
	s, err := login.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return s.Obtain(t.Context(), auth.Via{}, nil)
}

func TestForm(t *testing.T) {
	site := newSite(t)
	dials := 0
	via := auth.Via{Exit: "exit-1", Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
		dials++
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	}}
	s, err := login.New(login.Config{
		Page: site.URL + "/login", Fields: fields("user", user, "pass", password), UserAgent: "agent/1",
		Header: map[string]string{"X-Session": "<${header:x-session}>", "X-Cookie": "${cookie:session}"}, ExpiresWith: "session",
	})
	if err != nil {
		t.Fatal(err)
	}
	if s.Bound() != auth.BoundToExit {
		t.Error("not bound to the exit")
	}
	c, err := s.Obtain(t.Context(), via, nil)
	if err != nil {
		t.Fatal(err)
	}
	if dials == 0 || site.agents.Load() != "agent/1" {
		t.Errorf("%d dials, agent %v", dials, site.agents.Load())
	}
	var names []string
	for _, cookie := range c.Cookies {
		names = append(names, cookie.Name+" "+cookie.Domain+" "+cookie.Path)
	}
	if got := strings.Join(names, ", "); got != "session 127.0.0.1 /, here 127.0.0.1 /" {
		t.Errorf("cookies: %s", got)
	}
	if c.Header.Get("X-Session") != "<header-1>" || c.Header.Get("X-Cookie") != "sess-1" {
		t.Errorf("headers: %v", c.Header)
	}
	if left := time.Until(c.Expires); left < 9*time.Minute || left > 10*time.Minute {
		t.Errorf("ends in %v", left)
	}
	jar, _ := cookiejar.New(nil)
	c.SetCookies(jar)
	u, _ := url.Parse(site.URL + "/home")
	if len(jar.Cookies(u)) != 2 {
		t.Errorf("the jar sends %v", jar.Cookies(u))
	}
}

func TestJSON(t *testing.T) {
	site := newSite(t)
	totp, err := auth.NewTOTP(auth.NewSecret("JBSWY3DPEHPK3PXP"))
	if err != nil {
		t.Fatal(err)
	}
	config := login.Config{
		URL: site.URL + "/api", JSON: true, Fields: fields("user.name", user, "user.password", password),
		TOTP: map[string]*auth.TOTP{"code": totp}, ExpiresIn: "data.seconds",
		Header: map[string]string{"Authorization": "Bearer ${json:data.tokens.0}"},
	}
	c, err := obtain(t, config)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(c.Header.Get("Authorization"), "Bearer e30.") || time.Until(c.Expires) > 2*time.Minute || time.Until(c.Expires) < time.Minute {
		t.Errorf("%v", c)
	}
	config.ExpiresIn = ""
	config.TOTP = nil
	config.Fields["code"] = auth.NewSecret("123456")
	if c, err = obtain(t, config); err != nil || time.Until(c.Expires) < 59*time.Minute {
		t.Errorf("without expires_in the token tells: %v, %v", c, err)
	}
}

func TestAnotherClock(t *testing.T) {
	site := newSite(t)
	c, err := obtain(t, login.Config{URL: site.URL + "/late", Fields: fields("a", "b"), Header: map[string]string{"A": "${cookie:session}"}})
	if err != nil {
		t.Fatal(err)
	}
	// Two hours behind: what ended 90 minutes ago by our clock has half an hour.
	if left := time.Until(c.Expires); left < 29*time.Minute || left > 31*time.Minute || c.Skew > -119*time.Minute {
		t.Errorf("ends in %v, skew %v", left, c.Skew)
	}
}

func TestLoginsThatFail(t *testing.T) {
	site := newSite(t)
	good := fields("user", user, "pass", password)
	for name, c := range map[string]struct {
		config login.Config
		fault  auth.Fault
		says   string
	}{
		"wrong password": {login.Config{Page: site.URL + "/login", Fields: fields("user", user, "pass", "wrong")}, auth.FaultRefused, "login form again"},
		"wrong, JSON":    {login.Config{URL: site.URL + "/api", JSON: true, Fields: fields("user.name", user, "user.password", "s3cret-wrong")}, auth.FaultRefused, `401 from ` + site.URL + `/api: "no: ***"`},
		"it says so":     {login.Config{URL: site.URL + "/says", Fields: good, FailOn: "wrong password"}, auth.FaultRefused, `the site says "wrong password"`},
		"no token":       {login.Config{URL: site.URL + "/session", Fields: good}, auth.FaultStep, "status 403"},
		"no form":        {login.Config{Page: site.URL + "/round", Fields: good}, auth.FaultStep, "without end"},
		"no page":        {login.Config{Page: site.URL + "/none", Fields: good}, auth.FaultStep, "login failed (reading the page): status 404"},
		"no meta":        {login.Config{Page: site.URL + "/login", Fields: fields("a", "${page:csrf_token}")}, auth.FaultStep, "no hidden field or meta element csrf_token"},
		"no cookie":      {login.Config{Page: site.URL + "/login", Fields: good, ExpiresWith: "sid"}, auth.FaultStep, "set no cookie sid (status 200 from " + site.URL + "/home)"},
		"no value":       {login.Config{Page: site.URL + "/login", Fields: good, Header: map[string]string{"A": "${json:token}"}}, auth.FaultStep, "no json token for the header A"},
		"no seconds":     {login.Config{URL: site.URL + "/says", Fields: good, ExpiresIn: "ttl"}, auth.FaultStep, "no seconds at ttl"},
		"another host":   {login.Config{URL: site.URL + "/elsewhere", Fields: good}, auth.FaultStep, "redirects the login to http://localhost:"},
		"loop":           {login.Config{URL: site.URL + "/loop", Fields: good}, auth.FaultStep, "without end"},
		"too many":       {login.Config{URL: site.URL + "/busy", Fields: good}, auth.FaultStep, "status 429"},
		"clashing names": {login.Config{URL: site.URL + "/api", JSON: true, Fields: fields("a", "1", "a.b", "2")}, auth.FaultStep, "a value and an object"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := obtain(t, c.config)
			failed, ok := errors.AsType[*auth.LoginError](err)
			if !ok || failed.Fault != c.fault || !strings.Contains(err.Error(), c.says) {
				t.Fatalf("%v, %v", got, err)
			}
			if strings.Contains(err.Error(), "s3cret") || strings.Contains(err.Error(), user) {
				t.Errorf("a secret: %v", err)
			}
			if name == "too many" && failed.Wait != 90*time.Second {
				t.Errorf("waits %v", failed.Wait)
			}
		})
	}
}

func TestMetaElementsAndCookiesAreSentBack(t *testing.T) {
	site := newSite(t)
	seen := make(chan http.Header, 1)
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen <- r.Header.Clone()
		fmt.Fprint(w, "{}")
	}))
	defer other.Close()
	if _, err := obtain(t, login.Config{
		Page: site.URL + "/login", URL: other.URL, JSON: true, Fields: fields("a", "b"),
		RequestHeader: fields("X-Csrf", "${page:csrf-token}", "X-Pre", "${cookie:pre}"),
	}); err != nil {
		t.Fatal(err)
	}
	if h := <-seen; h.Get("X-Csrf") != "meta-1" || h.Get("X-Pre") != "pre-1" || h.Get("Origin") != site.URL {
		t.Errorf("%v", h)
	}
}

func TestEndsWithItsContext(t *testing.T) {
	site := newSite(t)
	s, err := login.New(login.Config{URL: site.URL + "/hang", Fields: fields("a", "b")})
	if err != nil {
		t.Fatal(err)
	}
	left := errors.New("left")
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() { <-site.hung; cancel(left) }()
	if _, err := s.Obtain(ctx, auth.Via{}, nil); !errors.Is(err, left) {
		t.Errorf("%v", err)
	}
	dead := errors.New("proxy refuses the password")
	via := auth.Via{Dial: func(context.Context, string, string) (net.Conn, error) { return nil, dead }}
	_, err = s.Obtain(t.Context(), via, nil)
	if failed, ok := errors.AsType[*auth.LoginError](err); !ok || failed.Fault != auth.FaultExit || !errors.Is(err, dead) || strings.Contains(err.Error(), "/hang") {
		t.Errorf("%v", err)
	}
}

func TestConfigsThatCannotBe(t *testing.T) {
	_, err := login.New(login.Config{URL: "s3cret", Header: map[string]string{"A": "${page:x}"}})
	for _, want := range []string{"the URL is no absolute", "no fields", "header A: ${page:x} is none of"} {
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%v, want %q", err, want)
		}
	}
	if _, err := login.New(login.Config{Fields: fields("a", "${json:x}")}); err == nil || !strings.Contains(err.Error(), "neither a page nor a URL") || !strings.Contains(err.Error(), "${json:x}") {
		t.Errorf("%v", err)
	}
}
