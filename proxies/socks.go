package proxies

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"

	"golang.org/x/net/proxy"
)

const (
	remedyMethod  = "the proxy wants another way of logging in: check whether the exit's URL should have a user name and password"
	remedyNoSOCKS = "the proxy does not speak SOCKS5: check the exit's scheme and port"
)

// socksTunnel asks the SOCKS5 proxy at the other end of c for a tunnel to addr (RFC 1928, RFC 1929).
func socksTunnel(ctx context.Context, e Exit, c net.Conn, addr string) (net.Conn, *DialError) {
	var auth *proxy.Auth
	if e.URL.User != nil && e.URL.User.Username() != "" {
		password, _ := e.URL.User.Password()
		auth = &proxy.Auth{User: e.URL.User.Username(), Password: password}
	}
	ear := &socksEar{Conn: c, offered: "\x00"}
	if auth != nil {
		ear.offered = "\x00\x02"
	}
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
	offered string // the methods of logging in
	heard   []byte // the first bytes of the proxy
}

var errNotOffered = errors.New("the proxy has chosen a way of logging in that was not offered")

// Dial makes socksEar a proxy.Dialer.
func (s *socksEar) Dial(string, string) (net.Conn, error) { return s, nil }

// DialContext makes socksEar a proxy.ContextDialer.
func (s *socksEar) DialContext(context.Context, string, string) (net.Conn, error) { return s, nil }

func (s *socksEar) Read(p []byte) (int, error) {
	n, err := s.Conn.Read(p)
	const enough = 6 // version, method, version, status, version, reply
	s.heard = append(s.heard, p[:min(n, enough-len(s.heard))]...)
	if err := s.chose(); err != nil {
		return 0, err // the library would go on as if there were nothing to log in to
	}
	return n, err
}

// chose is what is wrong with the method that the proxy has chosen, nil while nothing is.
func (s *socksEar) chose() error {
	if h := s.heard; len(h) < 2 || h[0] != 5 || h[1] == 0xff || strings.IndexByte(s.offered, h[1]) >= 0 {
		return nil
	}
	return errNotOffered
}

// judge finds layer and remedy of a failed negotiation from what the proxy said.
func (s *socksEar) judge() (layer, remedy string) {
	h := s.heard
	if len(h) < 2 {
		return LayerExit, "the proxy broke off: check that it is a SOCKS5 proxy, or take another exit"
	}
	if h[0] != 5 {
		return LayerExit, remedyNoSOCKS
	}
	if s.chose() != nil {
		return LayerAuth, remedyMethod
	}
	switch h[1] {
	case 0xff: // RFC 1928, section 3: no acceptable method
		return LayerAuth, remedyMethod
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
	if h[0] != 5 {
		return LayerExit, remedyNoSOCKS
	}
	switch h[1] { // RFC 1928, section 6
	case 2:
		return LayerTarget, remedyDenied
	case 3, 4, 5, 6:
		return LayerTarget, remedyTarget
	}
	return LayerExit, remedyExit
}
