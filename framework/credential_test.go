package framework_test

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdline/scrape/auth"
	"github.com/holdline/scrape/auth/login"
	"github.com/holdline/scrape/auth/store"
	"github.com/holdline/scrape/framework"
	"github.com/holdline/scrape/proxies"
)

// feedSite hands out one token at a time and serves a feed to whoever brings
// it.
type feedSite struct {
	*httptest.Server
	logins  atomic.Int64
	refused atomic.Int64
	open    atomic.Int64

	mu    sync.Mutex
	token string
	ended chan struct{} // closed when the token is
}

func newFeedSite(t testing.TB) *feedSite {
	s := &feedSite{ended: make(chan struct{})}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /login", func(w http.ResponseWriter, r *http.Request) {
		if r.FormValue("password") != "s3cret" {
			http.Error(w, "wrong password", http.StatusUnauthorized)
			return
		}
		s.mu.Lock()
		s.token = fmt.Sprint("token-", s.logins.Add(1))
		json.NewEncoder(w).Encode(map[string]string{"access_token": s.token})
		s.mu.Unlock()
	})
	mux.HandleFunc("GET /feed", func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		good, ended := s.token != "" && r.Header.Get("Authorization") == "Bearer "+s.token, s.ended
		s.mu.Unlock()
		if !good {
			s.refused.Add(1)
			http.Error(w, "who are you?", http.StatusUnauthorized)
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		fmt.Fprintf(w, "data: hello\n\n")
		http.NewResponseController(w).Flush()
		s.open.Add(1)
		defer s.open.Add(-1)
		select {
		case <-ended:
		case <-r.Context().Done():
		}
	})
	s.Server = httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s
}

// revoke ends the token, and every feed that was opened with it.
func (s *feedSite) revoke() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.token = ""
	close(s.ended)
	s.ended = make(chan struct{})
}

func (s *feedSite) source(t testing.TB) *login.Source {
	t.Helper()
	source, err := login.New(login.Config{
		URL: s.URL + "/login", Fields: map[string]auth.Secret{"password": auth.NewSecret("s3cret")},
		Header: map[string]string{"Authorization": "Bearer ${json:access_token}"},
	})
	if err != nil {
		t.Fatal(err)
	}
	return source
}

func (s *feedSite) stream(name string, identities *framework.Identities, limits *framework.Limits) *framework.Stream {
	host := strings.TrimPrefix(s.URL, "http://")
	return &framework.Stream{
		Name: "test/" + name, Host: host, Identities: identities, Limits: limits,
		Target: &framework.SSE{Request: framework.Request{URL: s.URL + "/feed"}},
	}
}

// tunnel is an HTTP proxy that counts what goes through it.
func tunnel(t *testing.T, opened *atomic.Int64) *url.URL {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		to, err := net.Dial("tcp", r.Host)
		if r.Method != http.MethodConnect || err != nil {
			http.Error(w, "no", http.StatusBadGateway)
			return
		}
		defer to.Close()
		opened.Add(1)
		from, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer from.Close()
		fmt.Fprint(from, "HTTP/1.1 200 OK\r\n\r\n")
		go func() { io.Copy(to, bufio.NewReader(buffered)); to.Close() }()
		io.Copy(from, to)
	}))
	t.Cleanup(srv.Close)
	u, err := url.Parse(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestARestartGoesOnWithTheKeptLoginThroughItsExit(t *testing.T) {
	site := newFeedSite(t)
	var opened [3]atomic.Int64
	exits := make([]proxies.Exit, len(opened))
	for i := range exits {
		exits[i] = proxies.Exit{Name: fmt.Sprint("exit-", i), URL: tunnel(t, &opened[i])}
	}
	data := t.TempDir()
	// start makes all of it anew, as a program does.
	start := func(keyFile string, exits []proxies.Exit) *framework.Identities {
		t.Helper()
		key, err := store.OpenKey(filepath.Join(data, keyFile))
		if err != nil {
			t.Fatal(err)
		}
		pool, err := proxies.New(proxies.Config{Exits: exits})
		if err != nil {
			t.Fatal(err)
		}
		keeper := auth.NewKeeper(auth.Config{Name: "test", Source: site.source(t), Store: store.New(filepath.Join(data, "credentials"), key).For("test", nil)})
		ids := framework.NewIdentities(framework.IdentityConfig{
			Key: "test", Pool: pool, Keeper: keeper, Hosts: []string{strings.TrimPrefix(site.URL, "http://")},
		})
		t.Cleanup(ids.Close)
		return ids
	}
	one := func(ids *framework.Identities) {
		t.Helper()
		for _, err := range site.stream("feed", ids, &framework.Limits{}).Events(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			break
		}
	}
	// used tells which exit connections went through since the last call.
	var before [3]int64
	used := func() (which []int) {
		for i := range opened {
			if n := opened[i].Load(); n > before[i] {
				before[i] = n
				which = append(which, i)
			}
		}
		return which
	}
	// Without a kept login the key alone decides; the login goes elsewhere.
	fresh := start("key", exits)
	one(fresh)
	natural := used()
	if len(natural) != 1 || site.logins.Load() != 1 {
		t.Fatalf("through %v with %d logins", natural, site.logins.Load())
	}
	other := (natural[0] + 1) % len(exits)
	credential, exit, err := start("another key", exits).Login(t.Context(), exits[other].Name)
	if err != nil || exit != exits[other].Name || credential.Exit != exit || site.logins.Load() != 2 {
		t.Fatalf("%v through %s, %v", credential, exit, err)
	}
	used()
	one(start("another key", exits))
	if got := used(); len(got) != 1 || got[0] != other {
		t.Errorf("went through %v, want the exit of the kept login, %d", got, other)
	}
	if n := site.logins.Load(); n != 2 {
		t.Errorf("%d logins: the restart logged in", n)
	}
	// With the first key only the first login can be read, which the site has
	// forgotten: it logs in once, and goes on.
	one(start("key", exits))
	if n := site.logins.Load(); n != 3 {
		t.Errorf("%d logins, want a third", n)
	}
	// The list of exits is another: what the name was is somebody else.
	used()
	swapped := []proxies.Exit{{Name: exits[0].Name, URL: exits[1].URL}, {Name: exits[1].Name, URL: exits[2].URL}, {Name: exits[2].Name, URL: exits[0].URL}}
	one(start("key", swapped))
	if n := site.logins.Load(); n != 4 {
		t.Errorf("%d logins, want a fourth: a login left through an exit that it is not bound to", n)
	}
}

func TestTheSitesClockIsReadOffItsAnswers(t *testing.T) {
	end := time.Now().Add(-3 * time.Hour)
	token := "e30." + base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, `{"exp":%d}`, end.Unix())) + "."
	asked := 0
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+token {
			t.Errorf("headers %v", r.Header)
		}
		asked++
		w.Header().Set("Date", time.Now().Add(-2*time.Hour).UTC().Format(http.TimeFormat))
		w.WriteHeader(http.StatusUnauthorized)
	}))
	defer site.Close()
	host := strings.TrimPrefix(site.URL, "http://")
	keeper := auth.NewKeeper(auth.Config{Source: auth.Static(http.Header{"Authorization": {"Bearer " + token}}, nil)})
	ids := framework.NewIdentities(framework.IdentityConfig{Keeper: keeper, Hosts: []string{host}})
	defer ids.Close()
	s := &framework.Stream{Name: "s", Host: host, Identities: ids, Target: &framework.SSE{Request: framework.Request{URL: site.URL}}}
	for _, err := range s.Events(t.Context()) {
		if err == nil || asked != 1 || !strings.Contains(err.Error(), "put a new one in its place") || !strings.Contains(err.Error(), "by the site's clock (this machine's is 2h0m") {
			t.Errorf("asked %d times: %v", asked, err)
		}
	}
	if asked != 1 {
		t.Errorf("asked %d times", asked)
	}
}

func BenchmarkThousandStreamsSeeOne401(b *testing.B) {
	const streams, pace = 1000, 250
	for b.Loop() {
		site := newFeedSite(b)
		keeper := auth.NewKeeper(auth.Config{Name: "test", Source: unbound{site.source(b)}})
		ids := framework.NewIdentities(framework.IdentityConfig{Keeper: keeper, Hosts: []string{strings.TrimPrefix(site.URL, "http://")}})
		limits := &framework.Limits{ConnectsPerSecond: pace, Burst: pace}
		ctx, cancel := context.WithCancel(b.Context())
		var running sync.WaitGroup
		for i := range streams {
			s := site.stream(fmt.Sprint(i), ids, limits)
			running.Go(func() {
				for range s.Events(ctx) {
				}
			})
		}
		all := func() {
			for site.open.Load() < streams {
				time.Sleep(5 * time.Millisecond)
			}
		}
		all()
		logins := site.logins.Load()
		began := time.Now()
		site.revoke()
		for site.open.Load() > 0 {
			time.Sleep(time.Millisecond)
		}
		all()
		b.ReportMetric(time.Since(began).Seconds(), "s-until-all-are-back")
		b.ReportMetric(float64(streams)/pace, "s-allowed-by-the-pace")
		b.ReportMetric(float64(site.logins.Load()-logins), "logins")
		b.ReportMetric(float64(site.refused.Load()), "refusals")
		if n := site.logins.Load() - logins; n != 1 {
			b.Errorf("%d logins, want 1", n)
		}
		cancel()
		running.Wait()
		ids.Close()
	}
}

type unbound struct{ auth.Source }

func (unbound) Bound() auth.Binding { return auth.BoundToNone }
