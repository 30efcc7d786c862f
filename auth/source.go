// Package auth obtains what opens a site and keeps it good.
//
// The main type is Keeper: it holds one Credential per exit (or one in all),
// renews it, and sees to it that any number of streams cause one login. How a
// credential is obtained is a Source: what a person has (Static, CookieFile)
// and several together (Stack) here; OAuth 2 in auth/oauth, the login of a
// site over HTTP in auth/login, browser steps in auth/browser. What is to
// outlive the program goes into a Store: auth/store is one.
//
// It deliberately knows nothing of proxies, streams or settings files: an exit
// is a name and a dial function, and what failed is told by the error.
package auth

import (
	"context"
	"net"
	"net/http"
	"strings"
	"time"
)

// Via is the way out that a credential is obtained through: the exit of the
// identity that it will belong to.
type Via struct {
	// Exit is the exit's name: it binds the credential and appears in
	// messages, so it holds no secret.
	Exit string
	// ID tells the exit apart from another that had its name before a restart,
	// such as a hash of its whole address. Empty: the name is enough.
	ID string
	// Dial opens a connection to addr through the exit. It is called by many
	// goroutines at once. Its errors stay in the chain of what Keeper returns.
	// Nil dials directly.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// DialContext dials through the exit, or directly where there is none.
func (v Via) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	if v.Dial == nil {
		var direct net.Dialer
		return direct.DialContext(ctx, network, addr)
	}
	return v.Dial(ctx, network, addr)
}

// Transport returns an http.Transport of its own that leaves through the exit.
// What cannot be dialled is a *LoginError of FaultExit. Whoever asked closes
// its idle connections in the end.
func (v Via) Transport() *http.Transport {
	return &http.Transport{
		ForceAttemptHTTP2:     true,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: 30 * time.Second,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := v.DialContext(ctx, network, addr)
			if err != nil && ctx.Err() == nil {
				return nil, &LoginError{Fault: FaultExit, Reason: "the site cannot be reached through the exit", Err: err}
			}
			return conn, err
		},
	}
}

// Binding says whether a credential works from one exit only.
type Binding int

const (
	// BoundToNone is a credential that works from everywhere: one serves all
	// exits.
	BoundToNone Binding = iota
	// BoundToExit is a credential that must never leave by another exit than
	// the one that it was obtained through, as what a browser was given.
	BoundToExit
)

// String is the word that target files use for it.
func (b Binding) String() string {
	if b == BoundToExit {
		return "exit"
	}
	return "none"
}

// Source obtains a credential.
type Source interface {
	// Obtain logs in. It is called by a Keeper, from one goroutine at a time
	// for each exit (for each Keeper, when bound to none), but for several
	// exits at once. Everything that it sends leaves through via. It returns
	// soon after ctx ends and leaves nothing running. old is the credential to
	// be replaced, or nil; it must not be changed. The credential returned
	// belongs to the caller. A failure is a *LoginError wherever it can be
	// told what failed.
	Obtain(ctx context.Context, via Via, old *Credential) (*Credential, error)
	// Bound is constant for the life of the Source.
	Bound() Binding
}

// Static is the Source of something that does not change, such as an API key
// or a long-lived bearer token: header and cookies are handed on as they are.
// Whether a bearer token is still good is for the site to say. One that it has
// refused, and whose own end has come, is a *LoginError of FaultSetup.
func Static(header http.Header, cookies []*http.Cookie) Source {
	return static{header: header.Clone(), cookies: cookies}
}

type static struct {
	header  http.Header
	cookies []*http.Cookie
}

// given tells whether a source hands on what a person has, and logs in nowhere.
func given(s Source) bool {
	switch s.(type) {
	case static, cookieFile:
		return true
	}
	return false
}

func (s static) Bound() Binding { return BoundToNone }

func (s static) Obtain(_ context.Context, _ Via, old *Credential) (*Credential, error) {
	c := &Credential{Header: s.header, Cookies: s.cookies}
	_, token, _ := strings.Cut(s.header.Get("Authorization"), " ")
	end, ok := JWTExpiry(token)
	if !ok || time.Now().Before(end.Add(-skewed(old))) {
		return c, nil
	}
	if old != nil {
		return nil, &LoginError{Fault: FaultSetup, Reason: "the site refuses the token that was given, which ended at " + end.Format(time.RFC3339) + byClock(old.Skew) + ": put a new one in its place"}
	}
	c.ended = end
	return c, nil
}
