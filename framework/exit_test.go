package framework

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdline/scrape/auth"
	"github.com/holdline/scrape/proxies"
)

// gateway is a provider's proxy on loopback, which tells the address it leaves from.
type gateway struct {
	net.Listener
	address atomic.Value             // string
	lost    atomic.Bool              // sessions that worked are answered with 502
	broken  *atomic.Pointer[gateway] // the one whose tunnels end at once: the first that is asked; may be nil
	mu      sync.Mutex
	users   map[string]bool // user names that worked
	open    []net.Conn
}

func newGateway(t *testing.T) *gateway {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &gateway{Listener: l, users: map[string]bool{}}
	g.address.Store("192.0.2.1")
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { g.serve(c) })
		}
	})
	t.Cleanup(func() { l.Close(); g.cut(); wg.Wait() })
	return g
}

func (g *gateway) serve(c net.Conn) {
	defer c.Close()
	br := bufio.NewReader(c)
	req, err := http.ReadRequest(br)
	if err != nil {
		return
	}
	user := req.Header.Get("Proxy-Authorization")
	g.mu.Lock()
	known := g.users[user]
	g.users[user] = true
	g.mu.Unlock()
	if known && g.lost.Load() {
		io.WriteString(c, "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
		return
	}
	if b := g.broken; b != nil && (b.CompareAndSwap(nil, g) || b.Load() == g) {
		io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
		return
	}
	up, err := net.Dial("tcp", req.Host)
	if err != nil {
		return
	}
	defer up.Close()
	g.mu.Lock()
	g.open = append(g.open, c, up)
	g.mu.Unlock()
	fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nX-Exit: %s\r\n\r\n", g.address.Load())
	go func() { io.Copy(up, br); up.Close() }()
	io.Copy(c, up)
}

// cut closes all tunnels.
func (g *gateway) cut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, c := range g.open {
		c.Close()
	}
	g.open = nil
}

func (g *gateway) exits(t *testing.T) []proxies.Exit {
	t.Helper()
	p, err := proxies.ParseProvider("acme", []byte(`{"kinds": ["residential"], "address": "`+g.Addr().String()+`", "user": "{user}-{session}[-{strict}]",
		"session": {"alphabet": "a-z", "length": 8}, "exit_header": "X-Exit", "rules": [{"status": 502, "strict": true, "layer": "identity"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	exits, err := p.Exits(proxies.Subscription{User: "u", Password: "p"})
	if err != nil {
		t.Fatal(err)
	}
	return exits
}

// boundSource is a credential that belongs to the exit it was obtained through.
type boundSource struct{ n atomic.Int64 }

func (*boundSource) Bound() auth.Binding { return auth.BoundToExit }

func (b *boundSource) Obtain(_ context.Context, via auth.Via, _ *auth.Credential) (*auth.Credential, error) {
	return &auth.Credential{Header: http.Header{"Authorization": {fmt.Sprintf("%d %s", b.n.Add(1), via.Exit)}}}, nil
}

// TestLostAddressIsANewIdentity has the address behind a session change, or
// the session end, under a login: the login must never be used from another
// address.
func TestLostAddressIsANewIdentity(t *testing.T) {
	for name, lose := range map[string]func(*gateway){
		"another address": func(g *gateway) { g.address.Store("192.0.2.2") },
		"strict 502":      func(g *gateway) { g.lost.Store(true) },
	} {
		t.Run(name, func(t *testing.T) {
			g := newGateway(t)
			var mu sync.Mutex
			var seen []string // credential, and the address it came from
			site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				mu.Lock()
				seen = append(seen, r.Header.Get("Authorization")+" "+g.address.Load().(string))
				n := len(seen)
				mu.Unlock()
				w.Header().Set("Content-Type", "text/event-stream")
				fmt.Fprintf(w, "id: %d\ndata: %d\n\n", n, n)
				w.(http.Flusher).Flush()
				<-r.Context().Done()
			}))
			defer site.Close()
			defer g.cut()
			pool, err := proxies.New(proxies.Config{Exits: g.exits(t)})
			if err != nil {
				t.Fatal(err)
			}
			source := &boundSource{}
			u, _ := url.Parse(site.URL)
			ids := NewIdentities(IdentityConfig{Key: "t", Pool: pool, Keeper: auth.NewKeeper(auth.Config{Source: source}), Hosts: []string{u.Host}})
			defer ids.Close()
			s := &Stream{Name: "t/s", Target: &SSE{Request: Request{URL: site.URL}}, Identities: ids, Limits: quickly(), MinWait: time.Millisecond, MaxWait: 10 * time.Millisecond}
			n := 0
			for _, err := range s.Events(t.Context()) {
				if err != nil {
					t.Fatal(err)
				}
				if n++; n == 3 {
					break
				}
				if n == 2 {
					lose(g)
				}
				g.cut()
			}
			mu.Lock()
			defer mu.Unlock()
			after := g.address.Load().(string)
			want := []string{"1 acme-1 192.0.2.1", "1 acme-1 192.0.2.1", "2 acme-1~1 " + after}
			if strings.Join(seen, "\n") != strings.Join(want, "\n") || source.n.Load() != 2 || ids.Rotations() != 1 {
				t.Errorf("%d logins, %d rotations, the site saw\n%s", source.n.Load(), ids.Rotations(), strings.Join(seen, "\n"))
			}
		})
	}
}

// TestRemovedExitIsLeftGracefully takes the exit of an open stream out of its
// pool: the stream moves, and loses nothing.
func TestRemovedExitIsLeftGracefully(t *testing.T) {
	a, b := newGateway(t), newGateway(t)
	list := func(g *gateway) []proxies.Exit {
		u := &url.URL{Scheme: "http", Host: g.Addr().String()}
		return []proxies.Exit{{URL: u}}
	}
	var connections atomic.Int64
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		connections.Add(1)
		w.Header().Set("Content-Type", "text/event-stream")
		from := 0
		fmt.Sscan(r.Header.Get("Last-Event-ID"), &from)
		for n := from + 1; ; n++ {
			fmt.Fprintf(w, "id: %d\ndata: %d\n\n", n, n)
			w.(http.Flusher).Flush()
			select {
			case <-r.Context().Done():
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	}))
	defer site.Close()
	defer a.cut()
	defer b.cut()
	pool, err := proxies.New(proxies.Config{Exits: list(a)})
	if err != nil {
		t.Fatal(err)
	}
	ids := NewIdentities(IdentityConfig{Key: "t", Pool: pool})
	defer ids.Close()
	s := &Stream{Name: "t/s", Target: &SSE{Request: Request{URL: site.URL}}, Identities: ids, Limits: quickly()}
	want := 1
	for ev, err := range s.Events(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if string(ev.Data) != fmt.Sprint(want) {
			t.Fatalf("got %s, want %d", ev.Data, want)
		}
		if want++; want == 10 {
			if err := pool.Update(list(b)); err != nil {
				t.Fatal(err)
			}
		}
		if ids.Rotations() == 1 && connections.Load() == 2 && want > 20 {
			return
		}
	}
	t.Errorf("%d rotations, %d connections", ids.Rotations(), connections.Load())
}

// TestAnExitWhoseTunnelsBringNothingIsLeft: its proxy accepts CONNECT, and no
// answer of the site ever comes through it.
func TestAnExitWhoseTunnelsBringNothingIsLeft(t *testing.T) {
	for _, secure := range []bool{false, true} {
		site := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { eventStream(w, "data: 1\n\n") }))
		config := IdentityConfig{Key: "t"}
		if site.EnableHTTP2 = secure; secure {
			site.StartTLS()
			config.TLS = site.Client().Transport.(*http.Transport).TLSClientConfig
		} else {
			site.Start()
		}
		var broken atomic.Pointer[gateway]
		var exits []proxies.Exit
		for range 2 {
			g := newGateway(t)
			g.broken = &broken
			exits = append(exits, proxies.Exit{URL: &url.URL{Scheme: "http", Host: g.Addr().String()}})
		}
		pool, err := proxies.New(proxies.Config{Exits: exits})
		if err != nil {
			t.Fatal(err)
		}
		config.Pool = pool
		ids := NewIdentities(config)
		s := &Stream{Name: "t/s", Target: &SSE{Request: Request{URL: site.URL}}, Identities: ids, Limits: quickly(), MinWait: time.Millisecond}
		came := false
		for _, err := range s.Events(t.Context()) {
			came = err == nil
			break
		}
		if !came || ids.Rotations() == 0 {
			t.Errorf("TLS %v: an event came: %v, %d rotations", secure, came, ids.Rotations())
		}
		ids.Close()
		site.CloseClientConnections()
		site.Close()
	}
}

func TestGateIsFairAndNamesItsHolders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &gate{what: "host example.com:443", limit: 2}
		first, err := g.enter(t.Context(), "t/a", false)
		if err != nil {
			t.Fatal(err)
		}
		second, _ := g.enter(t.Context(), "t/b", true)
		_, err = g.enter(t.Context(), "t/c", false)
		var limit *LimitError
		if !errors.As(err, &limit) || limit.Waited != 0 || !strings.Contains(err.Error(), "host example.com:443: no place among 2 open streams after 0s; held by t/a, t/b") {
			t.Fatalf("%v", err)
		}
		if o := outcomeOf(err); o.Layer != LayerLimit || Judge(o).Cause != CauseLimit || Judge(o).Remedy != Reconnect {
			t.Errorf("%+v", o)
		}
		start := time.Now()
		if _, err := g.enter(t.Context(), "t/c", true); !errors.As(err, &limit) || time.Since(start) != gateWait {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := g.enter(ctx, "t/c", true); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
		// Who comes first is served first, also before one who does not wait.
		var order []string
		var wg sync.WaitGroup
		for _, who := range []string{"t/d", "t/e", "t/f"} {
			wg.Go(func() {
				leave, err := g.enter(t.Context(), who, true)
				if err != nil {
					t.Error(err)
					return
				}
				order = append(order, who)
				time.Sleep(time.Second)
				leave()
				leave() // twice does no harm
			})
			synctest.Wait()
		}
		first()
		if _, err := g.enter(t.Context(), "t/g", false); !errors.As(err, &limit) {
			t.Errorf("overtook the queue: %v", err)
		}
		wg.Wait()
		second()
		if fmt.Sprint(order) != "[t/d t/e t/f]" || g.used != 0 || len(g.held) != 0 || g.queue.Len() != 0 {
			t.Errorf("%v; left over: %d used, %v", order, g.used, g.held)
		}
	})
}

func TestOpenStreamsOfAHostAreCapped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limits := &Limits{ConnectsPerSecond: 1000, Burst: 1000, StreamsPerHost: 3}
		s := &site{every: time.Second, start: time.Now(), replay: true}
		s.script = func(int, Cursor) step { return step{after: 3 * time.Second} }
		var wg sync.WaitGroup
		for i := range 9 {
			wg.Go(func() { read(t, &Stream{Name: fmt.Sprint("t/", i), Host: "h", Target: s, Limits: limits}, 20) })
		}
		wg.Wait()
		if s.most != 3 {
			t.Errorf("%d streams were open at once, want 3", s.most)
		}
	})
}

// Lines that begin together, with a login that takes a while, get an exit each.
func TestEachLineHasAnExitOfItsOwn(t *testing.T) {
	for n := range 20 {
		synctest.Test(t, func(t *testing.T) {
			keeper := auth.NewKeeper(auth.Config{Source: &countingSource{}, AttemptsPerHour: -1})
			first := NewIdentities(IdentityConfig{Key: strconv.Itoa(n), Pool: twoExits(t, "one", "two", "three"), Keeper: keeper})
			var wg sync.WaitGroup
			exits := make([]string, 3)
			all := make([]*identity, len(exits))
			for i := range exits {
				wg.Go(func() {
					id, err := first.slot(i).acquire(t.Context())
					if err != nil {
						t.Error(err)
						return
					}
					all[i], exits[i] = id, id.lease.exit()
				})
			}
			wg.Wait()
			if slices.Sort(exits); len(slices.Compact(exits)) != len(all) {
				t.Errorf("%d: the exits of the lines are %q", n, exits)
			}
			for i, id := range all {
				id.release()
				first.slot(i).Close()
			}
		})
	}
}
