package demo_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/proxy"

	"github.com/holdline/scrape/internal/demo"
)

// echo answers with the address a request comes from.
func echo(t *testing.T) string {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, h := range []string{"Proxy-Authorization", "X-Forwarded-For", "Via", "Forwarded"} {
			if v := r.Header.Get(h); v != "" {
				t.Errorf("the site sees %s", h)
			}
		}
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		io.WriteString(w, host)
	}))
	t.Cleanup(srv.Close)
	return srv.URL
}

// tunnelled is what a CONNECT that must be refused has led to: the refusal.
func tunnelled(t *testing.T, proxy *url.URL, target string) *http.Response {
	t.Helper()
	c, refused, err := connect(t.Context(), proxy, target)
	if err != nil {
		t.Fatal(err)
	}
	hangUp(c)
	return refused
}

// connect dials target through an HTTP proxy's CONNECT; the answer is
// returned if it is a refusal.
func connect(ctx context.Context, proxy *url.URL, target string) (net.Conn, *http.Response, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", proxy.Host)
	if err != nil {
		return nil, nil, err
	}
	req := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: target}, Host: target, Header: make(http.Header)}
	if proxy.User != nil {
		pass, _ := proxy.User.Password()
		auth := &http.Request{Header: make(http.Header)}
		auth.SetBasicAuth(proxy.User.Username(), pass)
		req.Header.Set("Proxy-Authorization", auth.Header.Get("Authorization"))
	}
	if err := req.Write(c); err != nil {
		c.Close()
		return nil, nil, err
	}
	// The site speaks second, so nothing of its is in the buffer.
	resp, err := http.ReadResponse(bufio.NewReader(c), req)
	if err != nil || resp.StatusCode != http.StatusOK {
		c.Close()
		return nil, resp, err
	}
	return c, nil, nil
}

// ways are the two ways through an HTTP proxy, and the one through SOCKS5.
func way(t *testing.T, u *url.URL, tunnel bool) *http.Client {
	t.Helper()
	tr := &http.Transport{DisableKeepAlives: true}
	if tunnel {
		tr.DialContext = func(ctx context.Context, _, target string) (net.Conn, error) {
			c, refused, err := connect(ctx, u, target)
			if refused != nil {
				return nil, fmt.Errorf("CONNECT: %s", refused.Status)
			}
			return c, err
		}
	} else {
		tr.Proxy = http.ProxyURL(u) // absolute form, or SOCKS5
	}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

func get(t *testing.T, c *http.Client, target string) (*http.Response, string) {
	t.Helper()
	resp, body, err := tryGet(c, target)
	if err != nil {
		t.Fatal(err)
	}
	return resp, body
}

func tryGet(c *http.Client, target string) (*http.Response, string, error) {
	resp, err := c.Get(target)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp, string(b), err
}

func TestEachProxyLeavesFromItsOwnAddress(t *testing.T) {
	t.Parallel()
	e, target := open(t, nil), echo(t)
	seen := make(map[string]bool)
	for _, x := range e.Exits() {
		if x.Kind == demo.Gateway {
			continue
		}
		if !strings.HasPrefix(x.URL.Host, x.Address.String()+":") || strings.Contains(x.String(), "isp") {
			t.Errorf("exit %s leaves from %s", x, x.Address)
		}
		seen[x.Address.String()] = true
		for _, tunnel := range []bool{false, true} {
			if tunnel && x.Kind != demo.HTTP {
				continue
			}
			if _, got := get(t, way(t, x.URL, tunnel), target); got != x.Address.String() {
				t.Errorf("%s, tunnel %v: the site sees %s, want %s", x, tunnel, got, x.Address)
			}
		}
	}
	if len(seen) != 6 {
		t.Errorf("%d addresses: %v", len(seen), seen)
	}
}

func TestProxiesRefuseStrangersAndStrangePlaces(t *testing.T) {
	t.Parallel()
	e, target := open(t, nil), echo(t)
	for _, kind := range []demo.Kind{demo.HTTP, demo.Gateway} {
		for name, user := range map[string]*url.Userinfo{
			"nobody":         nil,
			"wrong password": url.UserPassword(exit(t, e, kind, 0).URL.User.Username(), "wrong"),
			"wrong user":     url.UserPassword("wrong", "isp-pass"),
		} {
			u := *exit(t, e, kind, 0).URL
			u.User = user
			resp, _ := get(t, way(t, &u, false), target)
			refused := tunnelled(t, &u, strings.TrimPrefix(target, "http://"))
			for form, got := range map[string]*http.Response{"forward": resp, "CONNECT": refused} {
				if got == nil || got.StatusCode != http.StatusProxyAuthRequired || got.Header.Get("Proxy-Authenticate") == "" || got.Header.Get("X-Error") == "" {
					t.Errorf("%s %s, %s: %+v", kind, form, name, got)
				}
			}
		}
		u := exit(t, e, kind, 0).URL
		for place, want := range map[string]int{
			"192.0.2.1:80":   http.StatusForbidden,
			"example.com:80": http.StatusForbidden,
			"[::1]:80":       http.StatusForbidden,
			"127.0.0.1:1":    http.StatusBadGateway,
		} {
			if refused := tunnelled(t, u, place); refused == nil || refused.StatusCode != want {
				t.Errorf("%s CONNECT %s: %+v, want %d", kind, place, refused, want)
			}
			if resp, _ := get(t, way(t, u, false), "http://"+place); resp.StatusCode != want {
				t.Errorf("%s forward %s: %s, want %d", kind, place, resp.Status, want)
			}
		}
		if resp, _ := get(t, way(t, nil, false), "http://"+u.Host+"/"); resp.StatusCode != http.StatusProxyAuthRequired {
			t.Errorf("%s asked as a site: %s", kind, resp.Status)
		}
	}

	u := *exit(t, e, demo.SOCKS5, 0).URL
	for place, want := range map[string]string{"192.0.2.1:80": "not allowed", "example.com:80": "not allowed", "[::1]:80": "not allowed", "127.0.0.1:1": "refused"} {
		if c, err := socksDial(t, &u, place); err == nil || !strings.Contains(err.Error(), want) {
			hangUp(c)
			t.Errorf("SOCKS5 %s: %v %v, want %q", place, c, err, want)
		}
	}
	for name, user := range map[string]*url.Userinfo{"nobody": nil, "wrong password": url.UserPassword("isp-user", "wrong")} {
		u.User = user
		if c, err := socksDial(t, &u, strings.TrimPrefix(target, "http://")); err == nil {
			hangUp(c)
			t.Errorf("SOCKS5, %s: %v", name, c)
		}
	}
}

func hangUp(c net.Conn) {
	if c != nil {
		c.Close()
	}
}

func socksDial(t *testing.T, u *url.URL, target string) (net.Conn, error) {
	t.Helper()
	d, err := proxy.FromURL(u, proxy.Direct)
	if err != nil {
		t.Fatal(err)
	}
	return d.(proxy.ContextDialer).DialContext(t.Context(), "tcp", target)
}

func TestSOCKS5TakesNamesAndAddresses(t *testing.T) {
	t.Parallel()
	e, target := open(t, nil), mustParse(t, echo(t))
	for _, host := range []string{"127.0.0.1", "localhost", "::ffff:127.0.0.1"} {
		c, err := socksDial(t, exit(t, e, demo.SOCKS5, 1).URL, net.JoinHostPort(host, target.Port()))
		if err != nil {
			t.Errorf("%s: %v", host, err)
			continue
		}
		c.SetDeadline(time.Now().Add(soon))
		fmt.Fprintf(c, "GET / HTTP/1.0\r\n\r\n")
		got, err := io.ReadAll(c)
		if err != nil || !strings.HasSuffix(string(got), "127.0.0.16") {
			t.Errorf("%s: %q %v", host, got, err)
		}
		c.Close()
	}
}

func TestStreamsFlowThroughEveryProxy(t *testing.T) {
	t.Parallel()
	e := open(t, nil)
	for _, x := range e.Exits() {
		u := x.URL
		if x.Kind == demo.Gateway { // without a session it leaves from everywhere, and no clearance holds
			u = through(t, e, "gw-user-session-flow")
		}
		read(t, visit(t, e, u), "").exactly(t, e, 1, 50)
	}
	v := visit(t, e, exit(t, e, demo.HTTP, 0).URL)
	v.Client.Transport = way(t, exit(t, e, demo.HTTP, 0).URL, true).Transport
	r := read(t, v, "")
	r.exactly(t, e, 1, 50)
	e.Drop()
	r.ends(t)
	if r.err == nil || !strings.Contains(r.err.Error(), "reset") {
		t.Errorf("a reset comes through the tunnel as: %v", r.err)
	}
}

func TestAClosedStreamIsClosedAtTheSiteToo(t *testing.T) {
	t.Parallel()
	e := open(t, nil)
	for _, x := range e.Exits() {
		if x.Kind == demo.Gateway {
			continue
		}
		r := read(t, visit(t, e, x.URL), "")
		r.price(t)
		r.close()
		for end := time.Now().Add(soon); e.Stats().Open > 0; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s: the site still holds the stream", x)
			}
		}
	}
}

func TestProxiesCloseWhatIsOld(t *testing.T) {
	t.Parallel()
	const life = 700 * time.Millisecond
	e := open(t, func(o *demo.Options) { o.ProxyLife = life })
	streams := make(map[string]*reading)
	for _, x := range []demo.Exit{exit(t, e, demo.HTTP, 0), exit(t, e, demo.SOCKS5, 0)} {
		v := visitFrom(t, e, x.Address.String(), x.URL)
		within(t, life, func() (err error) {
			streams[x.String()], err = tryRead(t, v, "")
			return err
		})
	}
	tunnels := make(map[string]net.Conn)
	opened := time.Now()
	for _, x := range e.Exits() {
		if x.Kind == demo.SOCKS5 {
			continue
		}
		within(t, life, func() error {
			c, refused, err := connect(t.Context(), x.URL, strings.TrimPrefix(e.URL(), "http://"))
			if refused != nil {
				err = errors.New(refused.Status)
			}
			tunnels[x.String()] = c
			return err
		})
		defer tunnels[x.String()].Close()
	}
	e.Mute(netip.Addr{}, time.Hour) // a site that says nothing must not keep a tunnel
	for name, r := range streams {
		r.ends(t)
		if r.err == nil {
			t.Errorf("%s: a forced close looks like a regular end", name)
		}
	}
	for end := time.Now().Add(soon); e.Stats().Open > 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the proxies still hold streams that they closed to their clients")
		}
	}
	for name, c := range tunnels {
		c.SetReadDeadline(time.Now().Add(soon))
		if _, err := c.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("%s: %v", name, err)
		}
		if held := time.Since(opened); held < life {
			t.Errorf("%s: closed after %v", name, held)
		}
	}
}
