package proxies

import (
	"context"
	"fmt"
	"net"

	"golang.org/x/net/proxy"
)

// socksTunnel asks the SOCKS5 proxy at the other end of c for a tunnel to addr (RFC 1928, RFC 1929).
func socksTunnel(ctx context.Context, e Exit, c net.Conn, addr string) (net.Conn, *DialError) {
	var auth *proxy.Auth
	if e.URL.User != nil && e.URL.User.Username() != "" {
		password, _ := e.URL.User.Password()
		auth = &proxy.Auth{User: e.URL.User.Username(), Password: password}
	}
	ear := &socksEar{Conn: c}
	d, err := proxy.SOCKS5("tcp", e.proxyAddr(), auth, ear)
	if err != nil {
		return nil, broken(err)
	}
	if _, err := d.(proxy.ContextDialer).DialContext(ctx, "tcp", addr); err != nil {
		layer, remedy := ear.judge()
		return nil, &DialError{Err: fmt.Errorf("SOCKS5: %w", err), layer: layer, remedy: e.setting(remedy)}
	}
	return c, nil // the library reads no byte more than the answer
}

// socksEar gives the SOCKS library a connection that is there already, and listens: the library's errors are only text, and
// the remedy needs the code.
type socksEar struct {
	net.Conn
	heard []byte // the first bytes of the proxy
}

// Dial makes socksEar a proxy.Dialer.
func (s *socksEar) Dial(string, string) (net.Conn, error) { return s, nil }

// DialContext makes socksEar a proxy.ContextDialer.
func (s *socksEar) DialContext(context.Context, string, string) (net.Conn, error) { return s, nil }

func (s *socksEar) Read(p []byte) (int, error) {
	n, err := s.Conn.Read(p)
	const enough = 6 // version, method, version, status, version, reply
	s.heard = append(s.heard, p[:min(n, enough-len(s.heard))]...)
	return n, err
}

// judge finds layer and remedy of a failed negotiation from what the proxy said.
func (s *socksEar) judge() (layer, remedy string) {
	h := s.heard
	if len(h) < 2 {
		return LayerExit, "the proxy broke off: check that it is a SOCKS5 proxy, or take another exit"
	}
	if h[0] != 5 {
		return LayerExit, "the proxy does not speak SOCKS5: check the exit's scheme and port"
	}
	switch h[1] {
	case 0xff: // RFC 1928, section 3: no acceptable method
		return LayerAuth, "the proxy wants another way of logging in: check whether the exit's URL should have a user name and password"
	case 2: // RFC 1929
		if len(h) >= 4 && h[3] != 0 {
			return LayerAuth, remedyAuth
		}
		h = h[min(4, len(h)):]
	default:
		h = h[2:]
	}
	if len(h) < 2 {
		return LayerExit, "the proxy broke off: take another exit"
	}
	switch h[1] { // RFC 1928, section 6
	case 2:
		return LayerTarget, remedyDenied
	case 3, 4, 5, 6:
		return LayerTarget, remedyTarget
	}
	return LayerExit, remedyExit
}
