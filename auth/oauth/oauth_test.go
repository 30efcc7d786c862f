package oauth_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdline/scrape/auth"
	"github.com/holdline/scrape/auth/oauth"
)

const secret = "s3cret-client"

// server is a small OAuth 2 server whose refresh tokens are good once.
type server struct {
	mu      sync.Mutex
	life    int
	serial  int
	refresh string
	allowed bool // the person has entered the code
	asked   []string
	answer  func(w http.ResponseWriter, r *http.Request) bool // answers in its place
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r.ParseForm()
	grant := r.Form.Get("grant_type")
	s.asked = append(s.asked, r.URL.Path+" "+grant)
	if s.answer != nil && s.answer(w, r) {
		return
	}
	refuse := func(code string) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusBadRequest)
		json.NewEncoder(w).Encode(map[string]string{"error": code, "error_description": "no to " + r.Form.Encode()})
	}
	w.Header().Set("Content-Type", "application/json")
	if r.URL.Path == "/device" {
		fmt.Fprint(w, `{"device_code": "dev", "user_code": "WDJB-MJHT", "verification_uri": "https://site.test/device", "expires_in": 900, "interval": 5}`)
		return
	}
	id, password, _ := r.BasicAuth()
	if id == "" {
		id, password = r.Form.Get("client_id"), r.Form.Get("client_secret")
	}
	switch {
	case id != "scrape" || password != secret && !strings.HasSuffix(grant, "device_code"):
		refuse("invalid_client")
		return
	case grant == "refresh_token" && r.Form.Get("refresh_token") != s.refresh:
		refuse("invalid_grant")
		return
	case strings.HasSuffix(grant, "device_code") && !s.allowed:
		refuse("authorization_pending")
		return
	case grant == "client_credentials" && r.Form.Get("audience") != "prices":
		refuse("invalid_target")
		return
	}
	s.serial++
	answer := map[string]any{"access_token": fmt.Sprint("token-", s.serial), "token_type": "bearer", "expires_in": s.life}
	if grant != "client_credentials" {
		s.refresh = fmt.Sprint("refresh-", s.serial)
		answer["refresh_token"] = s.refresh
	}
	json.NewEncoder(w).Encode(answer)
}

func newSource(t *testing.T, address string, change func(*oauth.Config)) *oauth.Source {
	t.Helper()
	c := oauth.Config{
		Grant: oauth.ClientCredentials, TokenURL: address + "/token", DeviceURL: address + "/device",
		ClientID: "scrape", ClientSecret: auth.NewSecret(secret), Params: map[string]auth.Secret{"audience": auth.NewSecret("prices")},
		Prompt: func(oauth.Prompt) { t.Error("a person was asked") },
	}
	if change != nil {
		change(&c)
	}
	s, err := oauth.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestClientCredentials(t *testing.T) {
	srv := &server{life: 3600}
	site := httptest.NewServer(srv)
	defer site.Close()
	dials := 0
	via := auth.Via{Exit: "exit-1", Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
		dials++
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	}}
	c, err := newSource(t, site.URL, nil).Obtain(t.Context(), via, nil)
	if err != nil {
		t.Fatal(err)
	}
	if c.Header.Get("Authorization") != "Bearer token-1" || time.Until(c.Expires) < 59*time.Minute || time.Until(c.Expires) > time.Hour || !c.Refresh.IsZero() {
		t.Errorf("%v", c)
	}
	if dials == 0 {
		t.Error("it did not leave through the exit")
	}
}

func TestRefreshTokenThatIsReplaced(t *testing.T) {
	srv := &server{life: 60, refresh: "refresh-0"}
	site := httptest.NewServer(srv)
	defer site.Close()
	source := newSource(t, site.URL, func(c *oauth.Config) {
		c.Grant, c.RefreshToken = oauth.RefreshToken, auth.NewSecret("refresh-0")
	})
	var c *auth.Credential
	for n := 1; n <= 3; n++ {
		next, err := source.Obtain(t.Context(), auth.Via{}, c)
		if err != nil || next.Header.Get("Authorization") != fmt.Sprint("Bearer token-", n) {
			t.Fatalf("%v, %v", next, err)
		}
		c = next
	}
	// The server has forgotten both.
	srv.mu.Lock()
	srv.refresh = "another"
	srv.mu.Unlock()
	_, err := source.Obtain(t.Context(), auth.Via{}, c)
	if login, ok := errors.AsType[*auth.LoginError](err); !ok || login.Fault != auth.FaultRefused || strings.Contains(err.Error(), "refresh-3") || strings.Contains(err.Error(), secret) {
		t.Errorf("%v", err)
	}
}

// pipes is a listener whose connections are net.Pipe, for synctest.
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	c, ok := <-p
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}
func (p pipes) Close() error   { return nil }
func (p pipes) Addr() net.Addr { return &net.TCPAddr{} }

func (p pipes) via() auth.Via {
	return auth.Via{Exit: "exit-1", Dial: func(context.Context, string, string) (net.Conn, error) {
		ours, theirs := net.Pipe()
		p <- theirs
		return ours, nil
	}}
}

func TestDeviceCode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := &server{life: 3600}
		listener := pipes(make(chan net.Conn))
		web := &http.Server{Handler: srv}
		go web.Serve(listener)
		defer func() { close(listener); web.Close() }()
		var prompts []oauth.Prompt
		source := newSource(t, "http://site.test", func(c *oauth.Config) {
			c.Grant, c.ClientSecret = oauth.DeviceCode, auth.Secret{}
			c.Prompt = func(p oauth.Prompt) {
				prompts = append(prompts, p)
				time.AfterFunc(2*time.Minute, func() { srv.mu.Lock(); srv.allowed = true; srv.mu.Unlock() })
			}
		})
		polls := 0
		srv.answer = func(w http.ResponseWriter, r *http.Request) bool { // trouble in between
			if r.URL.Path == "/token" {
				polls++
			}
			switch polls {
			case 3:
				w.WriteHeader(http.StatusServiceUnavailable)
				return true
			case 4:
				panic(http.ErrAbortHandler)
			}
			return false
		}
		began := time.Now()
		c, err := source.Obtain(t.Context(), listener.via(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took < 2*time.Minute || took > 2*time.Minute+21*time.Second {
			t.Errorf("took %v, the person 2m", took)
		}
		if len(prompts) != 1 || prompts[0].Code != "WDJB-MJHT" || prompts[0].Address != "https://site.test/device" || prompts[0].Until.Sub(began) != 15*time.Minute {
			t.Errorf("%+v", prompts)
		}
		if c.Header.Get("Authorization") != "Bearer token-1" || c.Refresh.Reveal() != "refresh-1" {
			t.Errorf("%v", c)
		}
		if polls > 25 || polls < 5 {
			t.Errorf("asked %d times in two minutes, where every 5 s is allowed", polls)
		}
		// Renewed without the person; asked again when that is refused.
		srv.mu.Lock()
		srv.refresh, srv.allowed = "gone", false
		srv.mu.Unlock()
		if _, err = source.Obtain(t.Context(), listener.via(), c); err != nil || len(prompts) != 2 {
			t.Errorf("%v, %d prompts", err, len(prompts))
		}
		// Nobody comes.
		nobody := newSource(t, "http://site.test", func(c *oauth.Config) {
			c.Grant, c.Prompt = oauth.DeviceCode, func(oauth.Prompt) {}
		})
		srv.mu.Lock()
		srv.allowed = false
		srv.mu.Unlock()
		_, err = nobody.Obtain(t.Context(), listener.via(), nil)
		if login, ok := errors.AsType[*auth.LoginError](err); !ok || login.Fault != auth.FaultPerson {
			t.Errorf("%v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err = nobody.Obtain(ctx, listener.via(), nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
	})
}

func TestWhatAServerMayAnswer(t *testing.T) {
	jwt := func(exp int64) string {
		return fmt.Sprintf(`{"access_token": "e30.%s.", "token_type": "Bearer"}`, strings.TrimRight(base64url(fmt.Sprintf(`{"exp":%d}`, exp)), "="))
	}
	for name, c := range map[string]struct {
		status int
		header map[string]string
		body   string
		fault  auth.Fault // "" is none
		wait   time.Duration
		says   string
	}{
		"slow down":       {status: 503, header: map[string]string{"Retry-After": "30"}, fault: auth.FaultStep, wait: 30 * time.Second, says: "login failed (client credentials): the server answers 503"},
		"wrong secret":    {status: 401, body: `{"error": "invalid_client", "error_description": "` + secret + ` is wrong"}`, fault: auth.FaultRefused, says: `invalid_client: "*** is wrong"`},
		"bare 401":        {status: 401, body: "<html>" + secret, fault: auth.FaultRefused, says: "401 Unauthorized"},
		"no token":        {status: 200, body: `{"s3cret": 1}`, fault: auth.FaultStep, says: "none of OAuth 2"},
		"no JSON":         {status: 200, body: secret, fault: auth.FaultStep, says: "none of OAuth 2"},
		"temporarily":     {status: 400, body: `{"error": "temporarily_unavailable"}`, fault: auth.FaultStep, says: "temporarily_unavailable"},
		"a JSON token":    {status: 200, body: jwt(time.Now().Add(time.Hour).Unix())},
		"a clock 2h back": {status: 200, header: map[string]string{"Date": time.Now().Add(-2 * time.Hour).UTC().Format(http.TimeFormat)}, body: jwt(time.Now().Add(-time.Hour).Unix())},
	} {
		t.Run(name, func(t *testing.T) {
			srv := &server{answer: func(w http.ResponseWriter, r *http.Request) bool {
				w.Header().Set("Content-Type", "application/json")
				for k, v := range c.header {
					w.Header().Set(k, v)
				}
				w.WriteHeader(c.status)
				fmt.Fprint(w, c.body)
				return true
			}}
			site := httptest.NewServer(srv)
			defer site.Close()
			got, err := newSource(t, site.URL, nil).Obtain(t.Context(), auth.Via{}, nil)
			if c.fault == "" {
				if err != nil || time.Until(got.Expires) < 59*time.Minute || time.Until(got.Expires) > 61*time.Minute {
					t.Errorf("%v, %v: want the end in an hour by our clock", got, err)
				}
				return
			}
			login, ok := errors.AsType[*auth.LoginError](err)
			if !ok || login.Fault != c.fault || login.Wait != c.wait || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), secret) {
				t.Errorf("%v (%+v)", err, login)
			}
		})
	}
}

func TestDeadExit(t *testing.T) {
	dead := errors.New("proxy refuses the password")
	via := auth.Via{Exit: "exit-1", Dial: func(context.Context, string, string) (net.Conn, error) { return nil, dead }}
	_, err := newSource(t, "http://127.0.0.1:1", nil).Obtain(t.Context(), via, nil)
	if login, ok := errors.AsType[*auth.LoginError](err); !ok || login.Fault != auth.FaultExit || !errors.Is(err, dead) {
		t.Errorf("%v", err)
	}
}

func TestForeignIntervalsDoNoHarm(t *testing.T) {
	srv := &server{answer: func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/device" {
			fmt.Fprint(w, `{"device_code": "d", "user_code": "u", "verification_uri": "v", "interval": -7}`)
		}
		return r.URL.Path == "/device"
	}}
	site := httptest.NewServer(srv)
	defer site.Close()
	ctx, cancel := context.WithCancel(t.Context())
	source := newSource(t, site.URL, func(c *oauth.Config) { c.Grant = oauth.DeviceCode; c.Prompt = func(oauth.Prompt) { cancel() } })
	if _, err := source.Obtain(ctx, auth.Via{}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestConfigsThatCannotBe(t *testing.T) {
	_, err := oauth.New(oauth.Config{Grant: "password", TokenURL: "ftp://s3cret"})
	if err == nil || strings.Contains(err.Error(), "s3cret") || !strings.Contains(err.Error(), "no such grant") || !strings.Contains(err.Error(), "no client id") {
		t.Errorf("%v", err)
	}
	_, err = oauth.New(oauth.Config{Grant: oauth.DeviceCode, TokenURL: "http://a", ClientID: "b"})
	if err == nil || !strings.Contains(err.Error(), "device URL") || !strings.Contains(err.Error(), "nobody to show") {
		t.Errorf("%v", err)
	}
}

func base64url(s string) string { return base64.URLEncoding.EncodeToString([]byte(s)) }
