package proxies

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// odd is a password of everything that means something somewhere.
const odd = `p@s:s/w?o#r%d &=+;,~"'<>\é`

func roundTrip(t *testing.T, c net.Conn) {
	t.Helper()
	if _, err := io.WriteString(c, "ping"); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4)
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "ping" {
		t.Fatalf("echo gave %q, %v", b, err)
	}
}

// serverTLS is a certificate for 127.0.0.1 and the client's side of it.
func serverTLS(t *testing.T, protos ...string) (server, client *tls.Config) {
	s := httptest.NewTLSServer(nil)
	t.Cleanup(s.Close)
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	return &tls.Config{Certificates: s.TLS.Certificates, NextProtos: protos}, &tls.Config{RootCAs: roots}
}

func TestDialThroughEveryKindOfProxy(t *testing.T) {
	target := echo(t)
	server, client := serverTLS(t, "h2", "http/1.1")
	server.VerifyConnection = func(cs tls.ConnectionState) error {
		if cs.NegotiatedProtocol != "http/1.1" {
			return fmt.Errorf("negotiated %q", cs.NegotiatedProtocol)
		}
		return nil
	}
	secret := func() *proxyServer { return &proxyServer{user: "us@er", password: odd} }
	for name, exit := range map[string]Exit{
		"direct":         {},
		"http":           at("http", connectProxy(t, &proxyServer{}, nil).server, "", ""),
		"http password":  at("http", connectProxy(t, secret(), nil).server, "us@er", odd),
		"https password": at("https", connectProxy(t, secret(), server).server, "us@er", odd),
		"socks5":         at("socks5", socksProxy(t, &proxyServer{}).server, "", ""),
		"socks5 password": at("socks5h", socksProxy(t, &proxyServer{user: strings.Repeat("u", 255), password: odd}).server,
			strings.Repeat("u", 255), odd),
	} {
		t.Run(name, func(t *testing.T) {
			p := newPool(t, Config{Exits: []Exit{exit}, TLS: client})
			l := lease(t, p, Request{Key: "k"})
			c, err := l.DialContext(t.Context(), "tcp", target.addr)
			if err != nil {
				t.Fatal(err)
			}
			roundTrip(t, c)
			if s := p.Stats()[0]; s.Conns != 1 || s.Leases != 1 || s.BytesIn < 4 || s.BytesOut < 4 || s.State != StateOK {
				t.Errorf("stats while open: %+v", s)
			}
			c.Close()
			c.Close()
			l.Release(Healthy)
			l.Release(Healthy)
			if s := p.Stats()[0]; s.Conns != 0 || s.Leases != 0 {
				t.Errorf("stats after: %+v", s)
			}
		})
	}
}

func TestNamesAreResolvedByTheProxy(t *testing.T) {
	for _, scheme := range []string{"http", "socks5"} {
		proxy := &proxyServer{reply: 2, refuse: func(string) string { return "HTTP/1.1 403 Forbidden\r\n\r\n" }}
		if scheme == "http" {
			connectProxy(t, proxy, nil)
		} else {
			socksProxy(t, proxy)
		}
		l := lease(t, newPool(t, Config{Exits: []Exit{at(scheme, proxy.server, "", "")}}), Request{})
		if _, err := l.DialContext(t.Context(), "tcp", "no-such-name.invalid:443"); err == nil {
			t.Fatal("the refusal was not seen")
		}
		if _, ok := proxy.seen.Load("no-such-name.invalid:443"); !ok {
			t.Errorf("%s: the proxy was not asked for the name", scheme)
		}
	}
}

func TestPoolWorksInAnyHTTPClient(t *testing.T) {
	site := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Proto) }))
	defer site.Close()
	proxy := connectProxy(t, &proxyServer{user: "u", password: odd}, nil)
	p := newPool(t, Config{Exits: []Exit{at("http", proxy.server, "u", odd)}})
	l := lease(t, p, Request{Target: "site"})
	defer l.Release(Healthy)
	transport := site.Client().Transport.(*http.Transport).Clone()
	transport.DialContext = l.DialContext
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport}).Get(site.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.ReadAll(resp.Body); err != nil || proxy.accepted.Load() != 1 {
		t.Fatalf("read %v, the proxy saw %d connections", err, proxy.accepted.Load())
	}
}

func TestBytesBehindTheAnswerAreKept(t *testing.T) {
	proxy := serve(t, nil, func(c net.Conn) {
		http.ReadRequest(bufio.NewReader(c))
		// In one packet: an interim answer, the answer with lengths that mean nothing here, and the tunnel's first bytes.
		io.WriteString(c, "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nhello ")
		io.WriteString(c, "world")
	})
	l := lease(t, newPool(t, Config{Exits: []Exit{at("http", proxy, "", "")}}), Request{})
	c, err := l.DialContext(t.Context(), "tcp", "target.example:80")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if b, err := io.ReadAll(c); err != nil || string(b) != "hello world" {
		t.Fatalf("read %q, %v", b, err)
	}
}

// TestFailuresAreFoundInTheirLayer plays each failure with a real proxy and checks layer, status and that no secret shows.
func TestFailuresAreFoundInTheirLayer(t *testing.T) {
	answer := func(s string) *server {
		return connectProxy(t, &proxyServer{refuse: func(string) string { return s }}, nil).server
	}
	raw := func(s string) *server {
		return serve(t, nil, func(c net.Conn) {
			io.CopyN(io.Discard, c, 1)
			io.WriteString(c, s)
			c.(*net.TCPConn).CloseWrite()
			io.Copy(io.Discard, c) // closing with bytes unread would reset the connection
		})
	}
	closed := &server{addr: nobody}
	server, _ := serverTLS(t)
	guarded := func() *proxyServer { return &proxyServer{user: "other", password: "other"} }
	for _, c := range []struct {
		name   string
		exit   Exit
		layer  string
		status int
		retry  time.Duration
		says   string
	}{
		{name: "wrong password", exit: at("http", connectProxy(t, guarded(), nil).server, "name@x", odd), layer: LayerAuth, status: 407},
		{name: "wrong password, tinyproxy", exit: at("http", connectProxy(t, &proxyServer{user: "o", password: "o", status: 401}, nil).server, "name@x", odd), layer: LayerAuth, status: 401},
		{name: "no password", exit: at("http", connectProxy(t, guarded(), nil).server, "", ""), layer: LayerAuth, status: 407},
		{name: "traffic used up", exit: at("http", answer("HTTP/1.1 402 Payment Required\r\n\r\n"), "name@x", odd), layer: LayerAuth, status: 402},
		{name: "socks wrong password", exit: at("socks5", socksProxy(t, guarded()).server, "name@x", odd), layer: LayerAuth},
		{name: "socks no password", exit: at("socks5", socksProxy(t, guarded()).server, "", ""), layer: LayerAuth},
		{name: "429", exit: at("http", answer("HTTP/1.1 429 Slow\r\nRetry-After: 7\r\n\r\n"), "", ""), layer: LayerCapacity, status: 429, retry: 7 * time.Second},
		{name: "453", exit: at("http", answer("HTTP/1.1 453 Threads\r\n\r\n"), "", ""), layer: LayerCapacity, status: 453},
		{name: "429 for ever", exit: at("http", answer("HTTP/1.1 429 Slow\r\nRetry-After: 99999999\r\n\r\n"), "", ""), layer: LayerCapacity, status: 429, retry: 30 * time.Minute},
		{name: "429 for longer than that", exit: at("http", answer("HTTP/1.1 429 Slow\r\nRetry-After: 99999999999\r\n\r\n"), "", ""), layer: LayerCapacity, status: 429, retry: 30 * time.Minute},
		{name: "502", exit: at("http", answer("HTTP/1.1 502 Bad Gateway\r\n\r\nno peer"), "", ""), layer: LayerExit, status: 502},
		{name: "522", exit: at("http", answer("HTTP/1.1 522 Timeout\r\n\r\n"), "", ""), layer: LayerExit, status: 522},
		{name: "595", exit: at("http", answer("HTTP/1.1 595 ECONNRESET\r\n\r\n"), "", ""), layer: LayerExit, status: 595},
		{name: "redirect", exit: at("http", answer("HTTP/1.1 302 Found\r\nLocation: /login\r\n\r\n"), "", ""), layer: LayerExit, status: 302},
		{name: "target denied", exit: at("http", answer("HTTP/1.1 403 Forbidden\r\n\r\n"), "", ""), layer: LayerTarget, status: 403},
		{name: "target down", exit: at("http", connectProxy(t, &proxyServer{}, nil).server, "", ""), layer: LayerTarget, status: 502},
		{name: "target down, squid", exit: at("http", answer("HTTP/1.1 503 Service Unavailable\r\nX-Squid-Error: ERR_CONNECT_FAIL 111\r\n\r\n"), "", ""), layer: LayerTarget, status: 503},
		{name: "target down, tinyproxy", exit: at("http", answer("HTTP/1.1 500 Unable to connect\r\n\r\n"), "", ""), layer: LayerTarget, status: 500},
		{name: "target down, RFC 9209", exit: at("http", answer("HTTP/1.1 502 Bad Gateway\r\nProxy-Status: gw; error=connection_refused\r\n\r\n"), "", ""), layer: LayerTarget, status: 502},
		{name: "socks target down", exit: at("socks5", socksProxy(t, &proxyServer{}).server, "", ""), layer: LayerTarget},
		{name: "socks target denied", exit: at("socks5", socksProxy(t, &proxyServer{reply: 2}).server, "", ""), layer: LayerTarget},
		{name: "socks general failure", exit: at("socks5", socksProxy(t, &proxyServer{reply: 1}).server, "", ""), layer: LayerExit},
		{name: "proxy down", exit: at("http", closed, "name@x", odd), layer: LayerExit},
		{name: "socks proxy down", exit: at("socks5", closed, "name@x", odd), layer: LayerExit},
		{name: "closed at once", exit: at("http", raw(""), "name@x", odd), layer: LayerExit},
		{name: "half an answer", exit: at("http", raw("HTTP/1.1 200 Conn"), "name@x", odd), layer: LayerExit, says: "closed the connection"},
		{name: "not HTTP", exit: at("http", raw("SSH-2.0-OpenSSH name@x "+odd+"\r\n"), "name@x", odd), layer: LayerExit, says: "is not HTTP"},
		{name: "endless head", exit: at("http", raw("HTTP/1.1 200 OK\r\nX: "+strings.Repeat("x", 1<<20)), "", ""), layer: LayerExit, says: "longer than 65536 bytes"},
		{name: "socks is HTTP", exit: at("socks5", raw("HTTP/1.1 400 Bad Request\r\n\r\n"), "name@x", odd), layer: LayerExit, says: "does not speak SOCKS5"},
		{name: "unknown certificate", exit: at("https", connectProxy(t, &proxyServer{}, server).server, "name@x", odd), layer: LayerExit, says: "certificate"},
		{name: "TLS to a plain proxy", exit: at("https", raw("HTTP/1.1 400 Bad Request\r\n\r\n"), "name@x", odd), layer: LayerExit},
		{name: "direct target down", exit: Exit{}, layer: LayerTarget},
	} {
		t.Run(c.name, func(t *testing.T) {
			var logged bytes.Buffer
			log := slog.New(slog.NewJSONHandler(&logged, &slog.HandlerOptions{Level: slog.LevelDebug}))
			l := lease(t, newPool(t, Config{Exits: []Exit{c.exit}, DialTimeout: time.Minute, WaitTimeout: time.Millisecond, Log: log}), Request{Target: "t"})
			log.Info("exit", "exit", l.Exit(), "plain", fmt.Sprintf("%v %+v %#v", l.Exit(), l.Exit(), l.Exit()))
			conn, err := l.DialContext(t.Context(), "tcp", closed.addr)
			if err == nil {
				conn.Close()
				t.Fatal("no error")
			}
			var derr *DialError
			if !errors.As(fmt.Errorf("wrapped: %w", err), &derr) {
				t.Fatalf("%T is not a DialError: %v", err, err)
			}
			if derr.Layer() != c.layer || derr.Status != c.status || derr.RetryAfter() != c.retry || derr.Remedy() == "" || derr.ProxyFault() != (c.layer != LayerTarget) {
				t.Errorf("layer %q, status %d, retry %v, remedy %q: %v", derr.Layer(), derr.Status, derr.RetryAfter(), derr.Remedy(), err)
			}
			if !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v does not say %q", err, c.says)
			}
			noSecrets(t, fmt.Sprintf("%v %+v %#v %v %s", err, err, derr.Exit, derr.Header, derr.Body))
			if s := l.pool.Stats()[0]; s.Conns != 0 || s.LastError == "" {
				t.Errorf("a slot is still held: %+v", s)
			}
			for range strikes {
				l.DialContext(t.Context(), "tcp", closed.addr)
			}
			l.Report(ExitFailed)
			l.Release(TargetRefused)
			_, err = l.pool.Lease(t.Context(), Request{Target: "t"})
			noSecrets(t, fmt.Sprintf("%s %v %+v", logged.String(), err, l.pool.Stats()))
			if logged.Len() < 200 {
				t.Errorf("nothing was logged: %s", logged.String())
			}
		})
	}
}

func TestBodyOfARefusalIsKeptAndBounded(t *testing.T) {
	proxy := connectProxy(t, &proxyServer{refuse: func(string) string {
		return "HTTP/1.1 502 Bad Gateway\r\nX-Why: because\r\n\r\n" + strings.Repeat("x", 100_000)
	}}, nil)
	l := lease(t, newPool(t, Config{Exits: []Exit{at("http", proxy.server, "", "")}}), Request{})
	_, err := l.DialContext(t.Context(), "tcp", "target.example:443")
	var derr *DialError
	if !errors.As(err, &derr) || len(derr.Body) != 4096 || derr.Header.Get("X-Why") != "because" {
		t.Fatalf("%v: %d bytes of body", err, len(derr.Body))
	}
}

// TestCancelEndsEveryStep has proxies that stop at each step of their protocol, and a caller that gives up then.
func TestCancelEndsEveryStep(t *testing.T) {
	mute := func(before string) (*server, chan struct{}) {
		there, gone := make(chan struct{}), make(chan struct{})
		return serve(t, nil, func(c net.Conn) {
			io.WriteString(c, before)
			io.CopyN(io.Discard, c, 1) // the client has begun
			close(there)
			io.Copy(io.Discard, c) // until the client closes
			close(gone)
		}), there
	}
	for _, c := range []struct{ scheme, before string }{{"http", ""}, {"http", "HTTP/1.1 200 "}, {"https", ""}, {"socks5", ""}, {"socks5", "\x05\x00"}} {
		s, there := mute(c.before)
		p := newPool(t, Config{Exits: []Exit{at(c.scheme, s, "", "")}})
		l := lease(t, p, Request{})
		why := errors.New("changed my mind")
		ctx, cancel := context.WithCancelCause(t.Context())
		go func() { <-there; cancel(why) }()
		_, err := l.DialContext(ctx, "tcp", "target.example:443")
		var derr *DialError
		if !errors.Is(err, why) || errors.As(err, &derr) {
			t.Errorf("%s after %q: %v", c.scheme, c.before, err)
		}
		if s := p.Stats()[0]; s.Conns != 0 || s.LastError != "" {
			t.Errorf("%s: the pool blames the exit or keeps the slot: %+v", c.scheme, s)
		}
	}
}

func TestSilentProxyEndsInTheDialTimeout(t *testing.T) {
	s := serve(t, nil, func(c net.Conn) { io.Copy(io.Discard, c) })
	for _, scheme := range []string{"http", "https", "socks5"} {
		l := lease(t, newPool(t, Config{Exits: []Exit{at(scheme, s, "", "")}, DialTimeout: 20 * time.Millisecond}), Request{})
		_, err := l.DialContext(t.Context(), "tcp", "target.example:443")
		var derr *DialError
		if !errors.As(err, &derr) || derr.Layer() != LayerExit || !strings.Contains(err.Error(), "dial timeout") {
			t.Errorf("%s: %v", scheme, err)
		}
	}
}

func TestReleaseEndsDialsAndTheLease(t *testing.T) {
	there := make(chan struct{})
	s := serve(t, nil, func(c net.Conn) { close(there); io.Copy(io.Discard, c) })
	l := lease(t, newPool(t, Config{Exits: []Exit{at("http", s, "", "")}}), Request{})
	go func() { <-there; l.Release(Unused) }()
	for range 2 { // the one under way, and another after
		if _, err := l.DialContext(t.Context(), "tcp", "target.example:443"); !errors.Is(err, ErrLeaseEnded) {
			t.Fatal(err)
		}
	}
}

func TestBadDestinationsTakeNoSlot(t *testing.T) {
	l := lease(t, newPool(t, Config{Exits: []Exit{{}}}), Request{})
	for _, addr := range []string{"", "host", "host:0", "host:99999", "host:http", ":80", "a b:80", "ä.example:80", `a\"b:80`, "a\r\nX: y:80", "u@h:80", strings.Repeat("a", 254) + ":80"} {
		if _, err := l.DialContext(t.Context(), "tcp", addr); err == nil {
			t.Errorf("%q was dialled", addr)
		}
	}
	if _, err := l.DialContext(t.Context(), "udp", "host:53"); err == nil {
		t.Error("udp was dialled")
	}
	if s := l.pool.Stats()[0]; s.LastError != "" {
		t.Errorf("the exit is blamed: %+v", s)
	}
}

// noSecrets fails when text shows the user name or password of the tests, in any of the forms they take.
func noSecrets(t *testing.T, text string) {
	t.Helper()
	for _, s := range []string{odd, "p@s", "s/w", "o#r", "%23r", "name@x", "name%40x", "name%2540x", "bmFtZUB4"} {
		if strings.Contains(text, s) {
			t.Errorf("the secret %q shows in %s", s, text)
		}
	}
}
