package proxies

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// errDialTimeout is the cause of a dial that took longer than Config.DialTimeout.
var errDialTimeout = errors.New("no answer within the dial timeout")

// dialer opens connections through any exit. It knows nothing of the pool.
type dialer struct {
	tcp     func(ctx context.Context, network, addr string) (net.Conn, error)
	tls     *tls.Config // for https proxies
	timeout time.Duration
	maxWait time.Duration // longest Retry-After that is believed
}

func newDialer(c Config) *dialer {
	tcp := net.Dialer{KeepAliveConfig: c.KeepAlive, Control: func(_, _ string, rc syscall.RawConn) error {
		return setUserTimeout(rc, c.UserTimeout)
	}}
	d := &dialer{tcp: tcp.DialContext, tls: &tls.Config{}, timeout: c.DialTimeout, maxWait: c.MaxQuarantine}
	if c.TLS != nil {
		d.tls = c.TLS.Clone()
	}
	// With h2 in the list some proxies choose it, and CONNECT as it is spoken here is HTTP/1.1.
	d.tls.NextProtos = []string{"http/1.1"}
	return d
}

// checkAddr checks a destination before a slot is taken for it.
func checkAddr(network, addr string) error {
	switch network {
	case "tcp", "tcp4", "tcp6":
	default:
		return fmt.Errorf("dial %s: network %q does not go through a proxy: use tcp", addr, network)
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("dial: %w", err)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("dial %q: the port is not a number between 1 and 65535", addr)
	}
	if host == "" || len(host) > 253 { // RFC 1035, section 2.3.4, less the root's length byte and dot
		return fmt.Errorf("dial %q: the host is empty or longer than a domain name can be", addr)
	}
	for _, r := range []byte(host) {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', strings.IndexByte("-._:%", r) >= 0:
		default:
			return fmt.Errorf("dial %q: the host holds a character that no host has: write it in ASCII (xn--)", addr)
		}
	}
	return nil
}

// dial opens a connection to addr through e. wrap is called once with the connection to the proxy as soon as it is there;
// closing the result closes what wrap returned. When it fails that is closed already. seen is the address that the exit leaves
// from, where the proxy says it. The error is a *DialError, or the cause of ctx.
func (d *dialer) dial(ctx context.Context, e Exit, network, addr string, wrap func(net.Conn) net.Conn) (c net.Conn, seen string, err error) {
	dctx, cancel := context.WithTimeoutCause(ctx, d.timeout, errDialTimeout)
	defer cancel()

	to := addr
	if e.URL != nil {
		network, to = "tcp", e.proxyAddr()
	}
	raw, err := d.tcp(dctx, network, to)
	if err != nil {
		return nil, "", d.failure(ctx, dctx, e, addr, d.unreachable(e, err))
	}
	raw = wrap(raw)
	if e.URL == nil {
		return raw, "", nil
	}

	// Closing is the one thing that ends every step of every protocol at once.
	stop := context.AfterFunc(dctx, func() { raw.Close() })
	conn, seen, derr := d.handshake(dctx, e, raw, addr)
	if !stop() && derr == nil {
		derr = &DialError{Err: context.Cause(dctx), layer: LayerExit}
	}
	if derr != nil {
		raw.Close()
		return nil, "", d.failure(ctx, dctx, e, addr, derr)
	}
	return conn, seen, nil
}

// handshake asks the proxy at the other end of raw for a tunnel to addr.
func (d *dialer) handshake(ctx context.Context, e Exit, raw net.Conn, addr string) (c net.Conn, seen string, derr *DialError) {
	switch e.URL.Scheme {
	case "socks5", "socks5h":
		c, derr = socksTunnel(ctx, e, raw, addr)
		return c, "", derr
	case "https":
		config := d.tls.Clone()
		if config.ServerName == "" {
			config.ServerName = e.URL.Hostname()
		}
		conn := tls.Client(raw, config)
		if err := conn.HandshakeContext(ctx); err != nil {
			remedy := "the proxy's TLS failed: check its scheme, host name and certificate"
			return nil, "", &DialError{Err: fmt.Errorf("TLS to the proxy: %w", err), layer: LayerExit, remedy: remedy}
		}
		return connectTunnel(e, conn, addr, d.maxWait)
	}
	return connectTunnel(e, raw, addr, d.maxWait)
}

// unreachable describes a TCP dial that failed.
func (d *dialer) unreachable(e Exit, err error) *DialError {
	if e.URL == nil {
		return &DialError{Err: err, layer: LayerTarget, remedy: "no proxy is involved: check the destination and this machine's network"}
	}
	return &DialError{Err: err, layer: LayerExit, remedy: "the proxy cannot be reached: check its host and port, or take another exit"}
}

// failure completes derr, unless it was the caller who gave up.
func (d *dialer) failure(ctx, dctx context.Context, e Exit, addr string, derr *DialError) error {
	if cause := over(ctx); cause != nil {
		return fmt.Errorf("dial %s through exit %v: %w", addr, e, cause)
	}
	if over(dctx) != nil && derr.Status == 0 {
		// The closed socket's own error says nothing.
		derr.Err = fmt.Errorf("%w of %v", errDialTimeout, d.timeout)
		if e.URL != nil {
			derr.layer = LayerExit
			derr.remedy = "the exit, or the destination behind it, is silent: take another exit"
		}
	}
	derr.Exit, derr.Addr = e, addr
	return derr
}

// over is the cause with which ctx has ended, nil if it has not. A socket's timer may be quicker than the context's.
func over(ctx context.Context) error {
	if end, ok := ctx.Deadline(); ok && ctx.Err() == nil && !time.Now().Before(end) {
		return context.DeadlineExceeded
	}
	return context.Cause(ctx)
}

// conn is the connection to a proxy. It holds a slot until Close and counts what passes.
type conn struct {
	net.Conn
	exit  *exit
	close func() error
}

func newConn(c net.Conn, e *exit, release func()) *conn {
	return &conn{Conn: c, exit: e, close: sync.OnceValue(func() error {
		err := c.Close()
		release()
		return err
	})}
}

func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	return n, c.count(&c.exit.meter.in, &c.exit.account.meter.in, n, err)
}

func (c *conn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	return n, c.count(&c.exit.meter.out, &c.exit.account.meter.out, n, err)
}

// count adds n bytes, and ends the connection when they were the last that the budget has.
func (c *conn) count(own, accounts *atomic.Int64, n int, err error) error {
	now := time.Now()
	c.exit.meter.add(own, n, now)
	c.exit.account.meter.add(accounts, n, now)
	if over := c.exit.overBudget(now); over != nil {
		c.Close()
		return over // also later, in the place of what a closed connection says
	}
	return err
}

// Close closes the connection and frees its slot. Further calls do nothing.
func (c *conn) Close() error { return c.close() }
