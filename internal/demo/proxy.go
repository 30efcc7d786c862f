package demo

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"time"
)

// route is what a proxy grants: the address to leave from, and until when.
type route struct {
	from  netip.Addr
	until time.Time // zero: for ever
}

// within is ctx cut off at the route's end.
func (rt route) within(ctx context.Context) (context.Context, context.CancelFunc) {
	if rt.until.IsZero() {
		return context.WithCancel(ctx)
	}
	return context.WithDeadline(ctx, rt.until)
}

// refusal is why a proxy grants nothing, as an HTTP answer.
type refusal struct {
	status int
	reason string
}

// guard looks at the credentials of a request to a proxy.
type guard func(user, password string) (route, *refusal)

// ownAddress is the guard of a proxy with one exit address.
func (e *Exchange) ownAddress(addr netip.Addr) guard {
	return func(user, password string) (route, *refusal) {
		if !same(user, e.o.ProxyUser) || !same(password, e.o.ProxyPassword) {
			return route{}, &refusal{http.StatusProxyAuthRequired, "wrong user or password"}
		}
		return route{from: addr, until: e.proxyEnd()}, nil
	}
}

// proxyEnd is when a proxy closes what begins now.
func (e *Exchange) proxyEnd() time.Time {
	if e.o.ProxyLife < 0 {
		return time.Time{}
	}
	return time.Now().Add(e.o.ProxyLife)
}

func (e *Exchange) openProxy(kind Kind, addr netip.Addr, port string) error {
	ln, err := e.listen(net.JoinHostPort(addr.String(), port))
	if err != nil {
		return err
	}
	e.paths[addr] = transportFrom(addr)
	d := door{
		Exit: Exit{Kind: kind, Address: addr, URL: &url.URL{
			Scheme: string(kind), Host: ln.Addr().String(), User: url.UserPassword(e.o.ProxyUser, e.o.ProxyPassword),
		}},
		ln: ln,
	}
	if kind == SOCKS5 {
		d.serve = (&socks{guard: e.ownAddress(addr), log: e.log}).serve
	} else {
		d.serve = e.serveProxy(e.ownAddress(addr))
	}
	e.doors = append(e.doors, d)
	return nil
}

func (e *Exchange) serveProxy(g guard) func(context.Context, net.Listener) error {
	return func(ctx context.Context, ln net.Listener) error {
		return serveHTTP(ctx, ln, &httpProxy{guard: g, paths: e.paths, log: e.log}, e.log)
	}
}

// dialFrom connects to a loopback target from one exit address. These proxies
// reach nothing else: an open relay is no part of a demo.
func dialFrom(ctx context.Context, from netip.Addr, target string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(target)
	if err != nil {
		return nil, errTarget
	}
	if strings.EqualFold(host, "localhost") {
		host = "127.0.0.1"
	}
	ip, err := netip.ParseAddr(host)
	if err != nil || !ip.Is4() || !ip.IsLoopback() {
		return nil, errTarget
	}
	d := net.Dialer{Timeout: 10 * time.Second, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))}
	return d.DialContext(ctx, "tcp4", net.JoinHostPort(host, port))
}

var errTarget = errors.New("only IPv4 loopback can be reached through this proxy")

func transportFrom(from netip.Addr) *http.Transport {
	return &http.Transport{
		DialContext: func(ctx context.Context, _, target string) (net.Conn, error) {
			return dialFrom(ctx, from, target)
		},
		DisableCompression: true, // what the client asked for is what it gets
		IdleConnTimeout:    30 * time.Second,
	}
}

// httpProxy tunnels CONNECT and forwards requests that name their target in
// full, which is how plain http goes through a proxy (RFC 9112, 3.2.2).
type httpProxy struct {
	guard guard
	paths map[netip.Addr]*http.Transport
	log   *slog.Logger
}

func (p *httpProxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	user, password, ok := proxyAuth(r)
	if !ok {
		p.refuse(w, refusal{http.StatusProxyAuthRequired, "user and password are needed"})
		return
	}
	rt, no := p.guard(user, password)
	if no != nil {
		p.refuse(w, *no)
		return
	}
	ctx, stop := rt.within(r.Context())
	defer stop()
	switch {
	case r.Method == http.MethodConnect:
		p.connect(ctx, w, r, rt)
	case r.URL.Scheme == "http" && r.URL.Host != "":
		p.forward(w, r.WithContext(ctx), rt)
	default:
		p.refuse(w, refusal{http.StatusBadRequest, "this is a proxy: use CONNECT, or a request that names an http target in full"})
	}
}

func proxyAuth(r *http.Request) (user, password string, ok bool) {
	// Proxy-Authorization has the form of Authorization.
	return (&http.Request{Header: http.Header{"Authorization": r.Header["Proxy-Authorization"]}}).BasicAuth()
}

func (p *httpProxy) refuse(w http.ResponseWriter, no refusal) {
	p.log.Debug("proxy refuses", "status", no.status, "reason", no.reason)
	if no.status == http.StatusProxyAuthRequired {
		w.Header().Set("Proxy-Authenticate", `Basic realm="demo proxies"`)
	}
	w.Header().Set("X-Error", no.reason)
	http.Error(w, no.reason, no.status)
}

func (p *httpProxy) unreachable(w http.ResponseWriter, err error) {
	if errors.Is(err, errTarget) {
		p.refuse(w, refusal{http.StatusForbidden, errTarget.Error()})
		return
	}
	p.refuse(w, refusal{http.StatusBadGateway, "the target cannot be reached"})
}

func (p *httpProxy) connect(ctx context.Context, w http.ResponseWriter, r *http.Request, rt route) {
	server, err := dialFrom(ctx, rt.from, r.Host)
	if err != nil {
		p.unreachable(w, err)
		return
	}
	client, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		server.Close()
		p.unreachable(w, err)
		return
	}
	if _, err := io.WriteString(client, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
		client.Close()
		server.Close()
		return
	}
	// The client may have spoken before it was answered: those bytes are buffered.
	tunnel(ctx, client, buffered.Reader, server)
}

func (p *httpProxy) forward(w http.ResponseWriter, r *http.Request, rt route) {
	(&httputil.ReverseProxy{
		Rewrite:       func(pr *httputil.ProxyRequest) { pr.Out.Host = pr.In.Host },
		Transport:     p.paths[rt.from],
		FlushInterval: -1, // every event at once
		ErrorHandler:  func(w http.ResponseWriter, _ *http.Request, err error) { p.unreachable(w, err) },
		ErrorLog:      slog.NewLogLogger(p.log.Handler(), slog.LevelDebug),
	}).ServeHTTP(w, r)
}

// tunnel copies both ways until both sides have finished, one fails, or ctx
// ends. A failure on one side is passed on to the other as a reset.
func tunnel(ctx context.Context, client net.Conn, fromClient io.Reader, server net.Conn) {
	defer client.Close()
	defer server.Close()
	defer context.AfterFunc(ctx, func() {
		client.Close()
		server.Close()
	})()
	var up sync.WaitGroup
	up.Go(func() { carry(ctx, server, fromClient, client) })
	carry(ctx, client, server, server)
	up.Wait()
}

// carry copies src, which reads from the connection from, to dst.
func carry(ctx context.Context, dst net.Conn, src io.Reader, from net.Conn) {
	_, err := io.Copy(dst, src)
	switch {
	case ctx.Err() != nil: // both are closed already
	case err != nil:
		reset(dst)
		reset(from)
	default:
		if tcp, ok := dst.(*net.TCPConn); ok {
			tcp.CloseWrite()
		}
	}
}
