package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"time"

	"golang.org/x/net/http/httpguts"
)

// maxTries is how often a request is sent anew because the site has closed a
// connection meanwhile, or says that it has not acted on it.
const maxTries = 3

// send sends the request over a connection that rests or takes one more, or
// over a new one. It closes the request's body.
func (t *Transport) send(req *http.Request) (*http.Response, error) {
	ctx := req.Context()
	to, err := check(req)
	for tries := 0; err == nil; {
		var c http.RoundTripper
		if c, err = t.connection(ctx, to); err != nil {
			break
		}
		var resp *http.Response
		if resp, err = c.RoundTrip(req); err == nil {
			return resp, nil
		}
		full, nothing := errors.AsType[full](err)
		if nothing && full.why != nil {
			err = full.why
		}
		if !nothing || full.why != nil {
			if tries++; tries > maxTries {
				break
			}
		}
		if !nothing {
			if req, err = again(req, err); err != nil {
				break
			}
		}
		err = context.Cause(ctx)
	}
	if req.Body != nil {
		req.Body.Close()
	}
	return nil, err
}

// again is a request that may be sent anew after err; otherwise an error.
func again(req *http.Request, err error) (*http.Request, error) {
	switch e := err.(type) {
	case stale: // the site may have acted on it: only what does no harm twice (RFC 9110, section 9.2.2)
		err = e.error
		if !slices.Contains([]string{"", "GET", "HEAD", "OPTIONS", "TRACE"}, req.Method) {
			return req, err
		}
	default:
		if _, ok := errors.AsType[unprocessed](err); !ok {
			return req, err
		}
	}
	if !hasBody(req) {
		return req, nil
	}
	if req.GetBody == nil {
		return req, err
	}
	body, err := req.GetBody()
	if err != nil {
		return req, err
	}
	req = req.WithContext(req.Context()) // a copy
	req.Body = body
	return req, nil
}

// check refuses what must not go on the wire and tells where the rest goes.
// Values may be secret and are not quoted.
func check(req *http.Request) (origin, error) {
	if req.URL == nil || req.URL.Host == "" {
		return origin{}, errors.New("the request names no host")
	}
	if req.URL.Scheme != "http" && req.URL.Scheme != "https" {
		return origin{}, fmt.Errorf("the scheme %q is neither http nor https", req.URL.Scheme)
	}
	if req.Method != "" && !httpguts.ValidHeaderFieldName(req.Method) { // both are tokens
		return origin{}, fmt.Errorf("%q is no method", req.Method)
	}
	for name, values := range req.Header {
		if !httpguts.ValidHeaderFieldName(name) {
			return origin{}, fmt.Errorf("%q is no name of a header", name)
		}
		for _, v := range values {
			if !httpguts.ValidHeaderFieldValue(v) {
				return origin{}, fmt.Errorf("the value of the header %q cannot be sent", name)
			}
		}
	}
	return originOf(req.URL)
}

func originOf(u *url.URL) (origin, error) {
	to := origin{tls: u.Scheme == "https"}
	port := u.Port()
	if port == "" {
		if port = "80"; to.tls {
			port = "443"
		}
	}
	host, err := httpguts.PunycodeHostPort(u.Hostname())
	if err != nil {
		return to, fmt.Errorf("the host %q: %w", u.Hostname(), err)
	}
	to.addr = net.JoinHostPort(host, port)
	return to, nil
}

// dialing is a connection that is being made to an origin that speaks HTTP/2.
type dialing struct {
	err error // why none came of it; guarded by Transport.mu
}

// connection chooses one that takes a request, or makes it. Where many requests
// wait for an origin that speaks HTTP/2, one of them makes it for all, and what
// it fails with is the error of all: each would wait as long for the same.
func (t *Transport) connection(ctx context.Context, to origin) (http.RoundTripper, error) {
	var other *dialing // the one that was waited for
	for {
		c, news := t.free(to)
		if c != nil {
			return c, nil
		}
		made, err := t.begin(to, &other)
		switch {
		case err != nil:
			return nil, err
		case made != nil:
			return t.make(ctx, to, news, made)
		}
		select {
		case <-news:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// begin gives leave to make a connection now; nil where another one is being
// made that may do, which is other then. err is what that has failed with. made
// takes why no connection was made, nil if that says nothing to others.
func (t *Transport) begin(to origin, other **dialing) (made func(error), err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if *other != nil && (*other).err != nil {
		return nil, (*other).err
	}
	if _, many := t.limits[to]; !many {
		return func(error) {}, nil
	}
	if *other = t.dialing[to]; *other != nil {
		return nil, nil
	}
	own := &dialing{}
	t.dialing[to] = own
	return func(err error) {
		t.mu.Lock()
		defer t.mu.Unlock()
		own.err = err
		delete(t.dialing, to)
		t.announce()
	}, nil
}

// make makes a connection. Meanwhile another one may become free, or turn out
// to carry any number of requests.
func (t *Transport) make(ctx context.Context, to origin, news <-chan struct{}, made func(error)) (http.RoundTripper, error) {
	type result struct {
		c   http.RoundTripper
		err error
	}
	dialled := make(chan result, 1)
	dial, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		c, err := t.dial(dial, to)
		if dial.Err() == nil {
			made(err)
		} else {
			made(nil) // it was called off: the next one may try
		}
		dialled <- result{c, err}
	}()
	for {
		select {
		case r := <-dialled:
			return r.c, r.err
		case <-news:
		}
		var c http.RoundTripper
		if c, news = t.free(to); c != nil {
			cancel()
			go func() {
				if s, ok := (<-dialled).c.(*single); ok {
					t.keep(s)
				}
			}()
			return c, nil
		}
	}
}

// dial makes a connection.
func (t *Transport) dial(ctx context.Context, to origin) (http.RoundTripper, error) {
	nc, err := t.options.DialContext(ctx, "tcp", to.addr)
	if err != nil {
		return nil, err
	}
	if !to.tls {
		return &single{Conn: nc, t: t, to: to}, nil
	}
	shake, cancel := context.WithTimeoutCause(ctx, handshakeTimeout, errHandshake)
	defer cancel()
	tc := tls.Client(nc, t.tls(to))
	if err := tc.HandshakeContext(shake); err != nil {
		nc.Close()
		switch {
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case shake.Err() != nil:
			err = errHandshake
		case errors.As(err, new(*tls.CertificateVerificationError)):
			err = fmt.Errorf("%w: check the site's address, and this machine's clock and certificate authorities; or somebody on the way answers in the site's place", err)
		}
		return nil, &UnansweredError{err}
	}
	if tc.ConnectionState().NegotiatedProtocol == "h2" {
		return t.upgrade(to, tc)
	}
	t.mu.Lock()
	delete(t.limits, to) // it has changed its mind
	t.mu.Unlock()
	return &single{Conn: tc, t: t, to: to}, nil
}

// UnansweredError is a request of which nothing was heard: the connection was
// made, and then the TLS handshake failed, or the connection ended or stayed
// silent before an answer began. It may be the way to the site that is at fault.
type UnansweredError struct{ Err error }

// Error says what happened.
func (e *UnansweredError) Error() string { return e.Err.Error() }

// Unwrap returns what happened.
func (e *UnansweredError) Unwrap() error { return e.Err }

// Layer is that of a site that cannot be reached, as package proxies calls it.
func (e *UnansweredError) Layer() string { return "target" }

var errHandshake = fmt.Errorf("the TLS handshake has not ended within %v: %w", handshakeTimeout, os.ErrDeadlineExceeded)

func (t *Transport) tls(to origin) *tls.Config {
	c := t.options.TLS.Clone()
	if c == nil {
		c = &tls.Config{}
	}
	c.NextProtos = []string{"h2", "http/1.1"}
	if c.ServerName == "" {
		c.ServerName, _, _ = net.SplitHostPort(to.addr) // it was joined here
	}
	return c
}

// free is a connection that takes a request at once. Where there is none, news
// ends when it is worth asking again.
func (t *Transport) free(to origin) (c http.RoundTripper, news <-chan struct{}) {
	for {
		t.mu.Lock()
		t.close = false
		if c := t.usable(to); c != nil {
			t.mu.Unlock()
			return c, nil
		}
		s := t.idle[to]
		if s == nil {
			if t.news == nil {
				t.news = make(chan struct{})
			}
			defer t.mu.Unlock()
			return nil, t.news
		}
		delete(t.idle, to)
		t.mu.Unlock()
		if s.wake() {
			return s, nil
		}
		s.Close()
	}
}

// again has those who wait for a connection look again.
func (t *Transport) again() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.announce()
}

// announce does so under t.mu.
func (t *Transport) announce() {
	if t.news != nil {
		close(t.news)
		t.news = nil
	}
}

// keep has a connection rest that has carried its answer to the end: one for
// each origin.
func (t *Transport) keep(s *single) {
	if !t.rests(s) {
		s.Close() // may wait for a site that does not read
	}
}

func (t *Transport) rests(s *single) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.close || t.idle[s.to] != nil || s.SetReadDeadline(time.Now().Add(idleTimeout)) != nil {
		return false
	}
	if t.idle == nil {
		t.idle = map[origin]*single{}
	}
	t.idle[s.to] = s
	s.rested = make(chan error, 1)
	go s.rest()
	t.announce()
	return true
}

// tired closes a connection that has rested for too long or was closed by the
// site, unless it is in use again.
func (t *Transport) tired(s *single) {
	t.mu.Lock()
	resting := t.idle[s.to] == s
	if resting {
		delete(t.idle, s.to)
	}
	t.mu.Unlock()
	if resting {
		s.Close()
	}
}
