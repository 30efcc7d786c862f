package browser

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httputil"
	"sync"
	"time"
)

type dialFunc func(ctx context.Context, network, addr string) (net.Conn, error)

// maxDialErrors bounds the hosts whose failures a forwarder remembers: a page
// may ask for any number of them.
const maxDialErrors = 256

// forwarder is an HTTP proxy on the loopback for one browser context. It
// dials through the exit, so that the browser works with every kind of exit,
// also those that Chromium cannot speak to (SOCKS5 with a password), and
// learns no password but the forwarder's own, which is random and dies with it.
type forwarder struct {
	user, password string

	listener  net.Listener
	server    *http.Server
	reverse   *httputil.ReverseProxy
	transport *http.Transport
	ctx       context.Context
	cancel    context.CancelFunc
	serving   sync.WaitGroup

	mu         sync.Mutex
	dial       dialFunc
	closed     bool
	tunnels    map[net.Conn]struct{}
	dialErrors map[string]error // by host
}

// startForwarder listens on a free port of 127.0.0.1. The caller closes it.
func startForwarder(dial dialFunc) (*forwarder, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	f := &forwarder{
		user:       rand.Text(),
		password:   rand.Text(),
		dial:       dial,
		listener:   listener,
		tunnels:    map[net.Conn]struct{}{},
		dialErrors: map[string]error{},
	}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	f.transport = &http.Transport{
		DialContext:        f.dialExit,
		DisableCompression: true, // the answer belongs to the browser as it is
		IdleConnTimeout:    30 * time.Second,
	}
	f.reverse = &httputil.ReverseProxy{
		Transport: f.transport,
		Rewrite:   func(*httputil.ProxyRequest) {},
		ErrorLog:  log.New(io.Discard, "", 0),
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) {
			// An answer made up here would look like the site's own.
			panic(http.ErrAbortHandler)
		},
	}
	f.server = &http.Server{
		Handler:           f,
		ErrorLog:          log.New(io.Discard, "", 0),
		ReadHeaderTimeout: 10 * time.Second,
		BaseContext:       func(net.Listener) context.Context { return f.ctx },
	}
	f.serving.Go(func() { f.server.Serve(listener) })
	return f, nil
}

// url is what the browser is told; it holds no password.
func (f *forwarder) url() string { return "http://" + f.listener.Addr().String() }

// close ends all connections and returns when nothing of them runs any more.
func (f *forwarder) close() {
	f.mu.Lock()
	f.closed = true
	tunnels := maps.Clone(f.tunnels)
	f.mu.Unlock()
	f.cancel()
	f.server.Close()
	for conn := range tunnels {
		conn.Close()
	}
	f.serving.Wait()
	f.transport.CloseIdleConnections()
}

// enter counts a request in, unless the forwarder is closing.
func (f *forwarder) enter() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return false
	}
	f.serving.Add(1)
	return true
}

func (f *forwarder) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !f.enter() {
		panic(http.ErrAbortHandler)
	}
	defer f.serving.Done()
	if !f.allowed(r) {
		w.Header().Set("Proxy-Authenticate", `Basic realm="forwarder"`)
		w.WriteHeader(http.StatusProxyAuthRequired)
		return
	}
	switch {
	case r.Method == http.MethodConnect:
		f.tunnel(w, r)
	case r.URL.Scheme == "http" && r.URL.Host != "":
		f.reverse.ServeHTTP(w, r)
	default:
		w.WriteHeader(http.StatusBadRequest)
	}
}

func (f *forwarder) allowed(r *http.Request) bool {
	want := "Basic " + base64.StdEncoding.EncodeToString([]byte(f.user+":"+f.password))
	return subtle.ConstantTimeCompare([]byte(r.Header.Get("Proxy-Authorization")), []byte(want)) == 1
}

func (f *forwarder) tunnel(w http.ResponseWriter, r *http.Request) {
	upstream, err := f.dialExit(r.Context(), "tcp", r.Host)
	if err != nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	defer upstream.Close()
	client, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer client.Close()
	if !f.track(client, upstream) {
		return
	}
	defer f.untrack(client, upstream)
	if _, err := io.WriteString(client, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
		return
	}
	var up sync.WaitGroup
	up.Go(func() { pass(upstream, buffered) })
	pass(client, upstream)
	up.Wait()
}

// pass copies one direction and tells the reader that it is over.
func pass(to net.Conn, from io.Reader) {
	_, err := io.Copy(to, from)
	half, ok := to.(interface{ CloseWrite() error })
	if err != nil || !ok || half.CloseWrite() != nil {
		to.Close()
	}
}

func (f *forwarder) track(conns ...net.Conn) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return false
	}
	for _, conn := range conns {
		f.tunnels[conn] = struct{}{}
	}
	return true
}

func (f *forwarder) untrack(conns ...net.Conn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, conn := range conns {
		delete(f.tunnels, conn)
	}
}

// dialExit dials through the exit and remembers for each host whether that
// failed the last time.
func (f *forwarder) dialExit(ctx context.Context, network, addr string) (net.Conn, error) {
	f.mu.Lock()
	dial := f.dial
	f.mu.Unlock()
	conn, err := dial(ctx, network, addr)
	host, _, splitErr := net.SplitHostPort(addr)
	if splitErr != nil {
		host = addr
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case err == nil:
		delete(f.dialErrors, host)
	case !errors.Is(err, context.Canceled) && len(f.dialErrors) < maxDialErrors:
		f.dialErrors[host] = err
	}
	return conn, err
}

// through has what is dialled from now on leave by another lease of the same
// exit.
func (f *forwarder) through(dial dialFunc) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dial = dial
}

// forget forgets that a host could not be reached.
func (f *forwarder) forget(host string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.dialErrors, host)
}

// dialError returns why the last attempt to reach one of hosts failed.
func (f *forwarder) dialError(hosts []string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, host := range hosts {
		if err := f.dialErrors[host]; err != nil {
			return err
		}
	}
	return nil
}
