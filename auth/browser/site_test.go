//go:build linux

package browser_test

import (
	"context"
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdline/scrape/auth"
	"github.com/holdline/scrape/auth/browser"
)

const (
	user     = "alice@example.com"
	password = "s3cret-Passw0rd"
)

// testSite logs people in: an interstitial that answers 403 until its script
// has set a clearance cookie, a form, an HttpOnly session cookie and a token
// in the local storage.
type testSite struct {
	*httptest.Server
	tokenEnd   time.Time
	images     atomic.Int64
	conns      sync.Map // the other end's addresses
	lastHeader atomic.Pointer[http.Header]
}

func newSite(t testing.TB) *testSite {
	s := &testSite{tokenEnd: time.Now().Add(10 * time.Minute).Truncate(time.Second)}
	mux := http.NewServeMux()
	page := func(w http.ResponseWriter, status int, body string) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.WriteHeader(status)
		fmt.Fprintf(w, "<!doctype html><title>test</title><body>%s</body>", body)
	}
	mux.HandleFunc("GET /login", func(w http.ResponseWriter, r *http.Request) {
		if cleared, err := r.Cookie("clearance"); err != nil || cleared.Value != "42" {
			page(w, http.StatusForbidden, `One moment… <script>setTimeout(() => { document.cookie = "clearance=" + 6*7 + "; path=/; max-age=3600"; location.reload() }, 200)</script>`)
			return
		}
		h := r.Header.Clone()
		s.lastHeader.Store(&h)
		page(w, 200, `<img src="/big.png"><form method="post" action="/login">
			<input id="user" name="user"><input id="password" name="password" type="password">
			<button id="go">Log in</button></form>`)
	})
	mux.HandleFunc("GET /big.png", func(w http.ResponseWriter, r *http.Request) { s.images.Add(1) })
	mux.HandleFunc("POST /login", func(w http.ResponseWriter, r *http.Request) {
		if r.FormValue("user") != user || r.FormValue("password") != password {
			page(w, 200, `<p class="error">Wrong password for `+r.FormValue("user")+": "+r.FormValue("password")+`</p>`)
			return
		}
		http.SetCookie(w, &http.Cookie{Name: "session", Value: "sess-0123456789", Path: "/", HttpOnly: true, Expires: time.Now().Add(time.Hour)})
		http.SetCookie(w, &http.Cookie{Name: "advert", Value: "x", Path: "/", MaxAge: 1})
		page(w, 200, `<script>localStorage.setItem("access_token", "`+s.token()+`")</script>Welcome`)
	})
	mux.HandleFunc("GET /never", func(w http.ResponseWriter, r *http.Request) {
		page(w, 200, `<p>Please wait</p><p>internal note: `+password+`</p>`)
	})
	s.Server = httptest.NewUnstartedServer(mux)
	s.Config.ConnState = func(c net.Conn, state http.ConnState) {
		if state == http.StateNew {
			s.conns.Store(c.RemoteAddr().String(), true)
		}
	}
	s.Start()
	t.Cleanup(s.Close)
	return s
}

func (s *testSite) token() string {
	encode := base64.RawURLEncoding.EncodeToString
	return encode([]byte(`{"alg":"none"}`)) + "." + encode(fmt.Appendf(nil, `{"exp":%d}`, s.tokenEnd.Unix())) + ".signature"
}

func (s *testSite) steps(password string) []browser.Step {
	return []browser.Step{
		{Do: browser.Open, Target: s.URL + "/login"},
		{Do: browser.Fill, Target: "#user", Value: auth.NewSecret(user)},
		{Do: browser.Fill, Target: "#password", Value: auth.NewSecret(password)},
		{Do: browser.Click, Target: "#go", ErrorSelector: "p.error"},
		{Do: browser.WaitCookie, Target: "session"},
		{Do: browser.WaitStorage, Target: "access_token"},
	}
}

// exit counts what leaves through it.
type exit struct {
	dials atomic.Int64
	bytes atomic.Int64

	mu    sync.Mutex
	err   error               // what dials fail with
	conns map[string]net.Conn // that were made, by our end's address
}

func (e *exit) via() auth.Via { return auth.Via{Exit: "exit-1", Dial: e.dial} }

func (e *exit) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	e.dials.Add(1)
	if err := e.dead(); err != nil {
		return nil, err
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.err != nil { // meanwhile
		conn.Close()
		return nil, e.err
	}
	if e.conns == nil {
		e.conns = map[string]net.Conn{}
	}
	e.conns[conn.LocalAddr().String()] = conn
	return &countedConn{conn, &e.bytes}, nil
}

func (e *exit) dead() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.err
}

// die ends what was dialled, and what will be until it lives again.
func (e *exit) die(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.err = err
	for _, conn := range e.conns {
		conn.Close()
	}
}

func (e *exit) live() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.err = nil
}

// made tells whether a connection from an address left through it.
func (e *exit) made(addr string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.conns[addr] != nil
}

type countedConn struct {
	net.Conn
	read *atomic.Int64
}

func (c *countedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.read.Add(int64(n))
	return n, err
}

// TestMain installs the driver, so that no test needs to skip.
func TestMain(m *testing.M) {
	if os.Getenv(holderVariable) != "" {
		hold()
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	err := browser.Install(ctx, browser.Config{}, func(s string) { fmt.Fprintln(os.Stderr, s) })
	cancel()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// newRuntime returns a Runtime in a temporary directory of its own; at the end
// nothing may be left of it.
func newRuntime(t testing.TB, config browser.Config) *browser.Runtime {
	t.Helper()
	if config.TempDir == "" {
		config.TempDir = tempDir(t)
	}
	r := browser.NewRuntime(config)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := r.Close(ctx); err != nil {
			t.Errorf("Close: %v", err)
		}
		nothingLeft(t, config.TempDir)
	})
	return r
}

// tempDir is a temporary directory with a path short enough for sockets, which
// those of this machine may not be.
func tempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "b")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func newSource(t testing.TB, config browser.SourceConfig) *browser.Source {
	t.Helper()
	s, err := browser.NewSource(config)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// processesOf lists the processes that have anything to do with dir.
func processesOf(t testing.TB, dir string) (found []string) {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		environment, _ := os.ReadFile("/proc/" + entry.Name() + "/environ")
		arguments, _ := os.ReadFile("/proc/" + entry.Name() + "/cmdline")
		cwd, _ := os.Readlink("/proc/" + entry.Name() + "/cwd")
		if strings.Contains(string(environment), dir) || strings.Contains(string(arguments), dir) || strings.Contains(cwd, dir) {
			found = append(found, entry.Name()+" "+strings.ReplaceAll(string(arguments), "\x00", " "))
		}
	}
	return found
}

func nothingLeft(t testing.TB, dir string) {
	t.Helper()
	if left := processesOf(t, dir); len(left) > 0 {
		t.Errorf("processes left: %q", left)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) > 0 {
		t.Errorf("files left: %v, %v", entries, err)
	}
}
