package framework

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/publicsuffix"

	"github.com/holdline/scrape/auth"
	"github.com/holdline/scrape/internal/transport"
	"github.com/holdline/scrape/proxies"
)

// IdentityConfig says what the identities of a target are made of. The zero
// value makes anonymous ones that leave directly.
type IdentityConfig struct {
	// Key names who uses the identities, usually the target. The same key
	// gets the same exit again after a restart, as long as it is healthy.
	Key string
	// Pool gives the exits; nil leaves directly.
	Pool *proxies.Pool
	// Kind is the kind of exit wanted, empty for any; Fallback is taken where
	// there is none of that kind.
	Kind, Fallback proxies.Kind
	// Keeper gives the credential; nil makes anonymous identities.
	Keeper *auth.Keeper
	// Hosts are the hosts ("example.com" or "example.com:8443") that may see
	// the credential's headers. Cookies go where they were set for.
	Hosts []string
	// UserAgent is sent where the credential brings none; empty means the
	// program's own name.
	UserAgent string
	// OpenTimeout is the longest wait for the head of an answer; 0 means 15 s.
	OpenTimeout time.Duration
	// TLS is for connections to the site; nil means Go's defaults.
	TLS *tls.Config
	// Browser has a place for each identity, for the streams that are read
	// inside a browser; nil where there are none.
	Browser auth.Browser
	// MaxStreams is how many streams may be open at once with the credential;
	// zero means any number.
	MaxStreams int
	Log        *slog.Logger
}

// DefaultUserAgent is what identities without a browser's send.
const DefaultUserAgent = "holdline-scrape/1 (+https://github.com/holdline/scrape)"

// Identities makes the identities of one target and holds the one in use, for
// all of its streams. An identity is exit, cookie jar, User-Agent and
// credential, made together and replaced together; each owns its own
// transport, since HTTP/2 pools connections by target alone. Its methods
// may be called concurrently.
type Identities struct {
	config IdentityConfig

	// making is held by the one caller that makes or replaces the identity;
	// the others wait for it with their contexts.
	making chan struct{}
	gate   gate // of the open streams with the credential

	mu        sync.Mutex
	current   *identity
	serial    uint64
	rotations uint64
	slots     []*Identities // those of further lines: see slot
	first     *Identities   // whose slot this is, nil for none's
	closed    bool          // identities belong to those who asked for them

	claims  sync.Mutex // taken before mu; of the first slot, for all of them
	claimed string     // the exit of the identity that is being made; guarded by claims
}

// NewIdentities returns an Identities that has made none yet.
func NewIdentities(c IdentityConfig) *Identities {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.UserAgent == "" {
		c.UserAgent = DefaultUserAgent
	}
	if c.OpenTimeout <= 0 {
		c.OpenTimeout = 15 * time.Second
	}
	m := &Identities{config: c, making: make(chan struct{}, 1)}
	if c.Keeper != nil {
		m.gate.what, m.gate.limit = "credential of "+c.Key, c.MaxStreams
	}
	return m
}

// SetMaxStreams changes IdentityConfig.MaxStreams from now on.
func (m *Identities) SetMaxStreams(n int) {
	if m.config.Keeper != nil {
		m.gate.change(n)
	}
}

// slot returns the identities of the n-th line of a stream that is held by
// several: n is 0 for those of the first one, m itself. Each slot has an exit
// of its own, as far as there are as many.
func (m *Identities) slot(n int) *Identities {
	if n == 0 {
		return m
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := len(m.slots); i < n; i++ {
		c := m.config
		c.Key = fmt.Sprintf("%s#%d", c.Key, i+2)
		s := NewIdentities(c)
		s.first, s.closed = m, m.closed
		m.slots = append(m.slots, s)
	}
	return m.slots[n-1]
}

// others are the names of the exits that the other slots use, or are about to.
// It runs with the claims of all slots held.
func (m *Identities) others() (exits []string) {
	first := m.whole()
	first.mu.Lock()
	all := append([]*Identities{first}, first.slots...)
	first.mu.Unlock()
	for _, s := range all {
		if s == m {
			continue
		}
		if s.claimed != "" {
			exits = append(exits, s.claimed)
		}
		s.mu.Lock()
		if s.current != nil && s.current.lease != nil {
			exits = append(exits, s.current.lease.exit())
		}
		s.mu.Unlock()
	}
	return exits
}

// whole is the first slot, which knows all of them.
func (m *Identities) whole() *Identities {
	if m.first != nil {
		return m.first
	}
	return m
}

// claim takes the exit for the identity that is being made, until settle, unless
// another slot has taken it that was not among those known to be taken.
func (m *Identities) claim(exit string, known []string) bool {
	first := m.whole()
	first.claims.Lock()
	defer first.claims.Unlock()
	if slices.Contains(m.others(), exit) && !slices.Contains(known, exit) {
		return false
	}
	m.claimed = exit
	return true
}

func (m *Identities) taken() []string {
	first := m.whole()
	first.claims.Lock()
	defer first.claims.Unlock()
	return m.others()
}

// settle says that the identity was made, or will not be.
func (m *Identities) settle() {
	first := m.whole()
	first.claims.Lock()
	defer first.claims.Unlock()
	m.claimed = ""
}

// identity is one generation of them. It lives as long as anybody holds it.
type identity struct {
	serial     uint64
	lease      *lease
	credential *auth.Credential // nil when anonymous
	transport  *transport.Transport
	client     *http.Client
	inside     auth.Inside // nil where no stream is read inside a browser

	owner   *Identities
	holders int  // guarded by owner.mu; the current identity is held by the owner
	bad     bool // guarded by owner.mu: it is being replaced because it is of no use
}

// lease shares one proxies.Lease between an identity and the successor that
// keeps its exit.
type lease struct {
	*proxies.Lease
	holders int // guarded by Identities.mu
	outcome proxies.Outcome
}

func (l *lease) exit() string {
	if l == nil {
		return "direct"
	}
	return l.Exit().Name
}

func (l *lease) expires() time.Time {
	if l == nil {
		return time.Time{}
	}
	return l.Expires()
}

// removed ends when the exit is taken out of its pool.
func (l *lease) removed() context.Context {
	if l == nil {
		return context.Background()
	}
	return l.Removed()
}

func (l *lease) via() auth.Via {
	if l == nil {
		return auth.Via{Exit: "direct", Dial: proxies.DialDirect}
	}
	return auth.Via{Exit: l.Exit().Name, ID: exitID(l.Exit()), Dial: l.DialContext}
}

// exitID is a hash of the whole address: names are places in a list, which may
// be another list after a restart.
func exitID(e proxies.Exit) string {
	if e.URL == nil {
		return ""
	}
	sum := sha256.Sum256([]byte(e.URL.String()))
	return hex.EncodeToString(sum[:16])
}

// acquire returns the identity in use, making it if there is none. The caller
// releases it.
func (m *Identities) acquire(ctx context.Context) (*identity, error) {
	return m.replace(ctx, nil, func(ctx context.Context) (*identity, error) {
		l, err := m.lease(ctx, m.preferred(), nil)
		if err != nil {
			return nil, err
		}
		return m.make(ctx, l, nil)
	})
}

// preferred is the exit of a credential that an earlier run has left.
func (m *Identities) preferred() string {
	if m.config.Keeper == nil {
		return ""
	}
	return m.config.Keeper.PreferredExit()
}

// Login obtains a credential and gives the exit back that it was obtained
// through, for a login by hand: nothing else is made of it. prefer names an
// exit, and may be empty. Errors are those of the pool and of the Keeper.
func (m *Identities) Login(ctx context.Context, prefer string) (*auth.Credential, string, error) {
	if prefer == "" {
		prefer = m.preferred()
	}
	defer m.settle()
	l, err := m.lease(ctx, prefer, nil)
	if err != nil {
		return nil, "", err
	}
	if l != nil {
		defer l.Release(proxies.Unused)
	}
	c, err := m.config.Keeper.Get(ctx, l.via())
	return c, l.exit(), err
}

// latest returns the identity in use, which the caller then releases, or nil
// where that is id itself.
func (m *Identities) latest(id *identity) *identity {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.current == nil || m.current == id {
		return nil
	}
	m.current.holders++
	return m.current
}

// reauthenticate replaces old by an identity with a new credential on the same
// exit. Where somebody has replaced it already, that one is returned. refused
// says that the site does not take the old credential any more: then nobody
// gets it, even when no login is possible now.
func (m *Identities) reauthenticate(ctx context.Context, old *identity, refused bool) (*identity, error) {
	if old.credential == nil {
		m.mu.Lock()
		defer m.mu.Unlock()
		old.holders++
		return old, nil // there is nothing to renew
	}
	if refused {
		m.spoil(old)
	}
	return m.replace(ctx, old, func(ctx context.Context) (*identity, error) {
		if refused {
			m.config.Keeper.Reject(old.lease.via(), old.credential.Generation)
		}
		return m.make(ctx, old.lease, old.credential)
	})
}

// takeOver replaces old by an identity with the credential that somebody else
// has brought, through the exit that this was obtained through.
func (m *Identities) takeOver(ctx context.Context, old *identity) (*identity, error) {
	return m.replace(ctx, old, func(ctx context.Context) (*identity, error) {
		exit := m.preferred()
		if old.lease == nil || exit == "" || exit == old.lease.exit() {
			return m.make(ctx, old.lease, old.credential)
		}
		l, err := m.lease(ctx, exit, nil)
		if err != nil {
			return nil, err
		}
		return m.make(ctx, l, nil)
	})
}

// rotate replaces old by an identity with another exit. outcome is what the
// pool is told of the old one.
func (m *Identities) rotate(ctx context.Context, old *identity, outcome proxies.Outcome) (*identity, error) {
	if old.lease == nil {
		return m.reauthenticate(ctx, old, outcome == proxies.TargetRefused) // there is no other way out
	}
	if outcome != proxies.Healthy {
		m.spoil(old)
	}
	return m.replace(ctx, old, func(ctx context.Context) (*identity, error) {
		old.lease.Report(outcome)
		l, err := m.lease(ctx, "", []string{old.lease.exit()})
		if err != nil {
			return nil, err
		}
		id, err := m.make(ctx, l, nil)
		if err == nil {
			m.mu.Lock()
			m.rotations++
			m.mu.Unlock()
			m.config.Log.Info("rotated", "from", old.lease.exit(), "to", l.exit())
		}
		return id, err
	})
}

// another replaces old by an identity with another exit, because somebody
// asked for one. Where there is no other exit it is a new one through the same.
func (m *Identities) another(ctx context.Context, old *identity) (*identity, error) {
	if old.lease != nil {
		return m.rotate(ctx, old, poolOutcome(nil))
	}
	return m.replace(ctx, old, func(ctx context.Context) (*identity, error) { return m.make(ctx, nil, nil) })
}

// spoil has those who ask for an identity wait for the successor of old. While
// a replacement is only planned they get the one in use at once.
func (m *Identities) spoil(old *identity) {
	m.mu.Lock()
	defer m.mu.Unlock()
	old.bad = true
}

// replace runs fn for at most one caller at a time, unless old is not the
// identity in use any more: then the one in use is the answer.
func (m *Identities) replace(ctx context.Context, old *identity, fn func(context.Context) (*identity, error)) (*identity, error) {
	m.mu.Lock()
	if cur := m.current; cur != nil && cur != old && !cur.bad {
		cur.holders++
		m.mu.Unlock()
		return cur, nil
	}
	m.mu.Unlock()
	select {
	case m.making <- struct{}{}:
		defer func() { <-m.making }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	m.mu.Lock()
	if cur := m.current; cur != nil && cur != old {
		cur.holders++
		m.mu.Unlock()
		return cur, nil
	}
	m.mu.Unlock()
	defer m.settle()
	id, err := fn(ctx)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	m.serial++
	id.serial = m.serial
	if id.holders = 1; m.closed {
		m.mu.Unlock()
		return id, nil
	}
	id.holders = 2 // the owner and the caller
	was := m.current
	m.current = id
	m.mu.Unlock()
	if was != nil {
		was.release()
	}
	return id, nil
}

// lease takes an exit that no other slot has, as far as there is one. Lines that
// begin together ask together: what one has been given meanwhile the others
// give back.
func (m *Identities) lease(ctx context.Context, prefer string, avoid []string) (*lease, error) {
	if m.config.Pool == nil {
		return nil, nil
	}
	target := ""
	if len(m.config.Hosts) > 0 {
		target = m.config.Hosts[0]
	}
	for {
		taken := m.taken()
		l, err := m.config.Pool.Lease(ctx, proxies.Request{
			Key: m.config.Key, Kind: m.config.Kind, Fallback: m.config.Fallback, Target: target, Prefer: prefer, Avoid: slices.Concat(avoid, taken),
		})
		if err != nil {
			return nil, err
		}
		if m.claim(l.Exit().Name, taken) {
			return &lease{Lease: l}, nil
		}
		l.Release(proxies.Unused)
	}
}

// make completes an identity on the lease, which it takes over. rejected is
// the credential to be replaced, nil to take whichever is good.
func (m *Identities) make(ctx context.Context, l *lease, rejected *auth.Credential) (id *identity, err error) {
	if l != nil {
		m.mu.Lock()
		l.holders++
		m.mu.Unlock()
	}
	defer func() {
		if err != nil {
			m.dropLease(l)
		}
	}()
	id = &identity{owner: m, lease: l}
	if k := m.config.Keeper; k != nil {
		if rejected != nil {
			id.credential, err = k.Renew(ctx, l.via(), rejected.Generation)
		} else {
			id.credential, err = k.Get(ctx, l.via())
		}
		if err != nil {
			return nil, err
		}
	}
	jar, err := cookiejar.New(&cookiejar.Options{PublicSuffixList: publicsuffix.List})
	if err != nil {
		return nil, err
	}
	if id.credential != nil {
		id.credential.SetCookies(jar)
	}
	id.transport = transport.New(transport.Options{
		DialContext:   l.via().DialContext,
		TLS:           m.config.TLS,
		HeaderTimeout: m.config.OpenTimeout,
	})
	id.client = &http.Client{
		Transport:     &signer{id: id, to: id.transport},
		CheckRedirect: transport.CheckRedirect,
		Jar:           jar,
	}
	if m.config.Browser != nil {
		id.inside = m.config.Browser.Inside(l.via(), id.credential)
	}
	return id, nil
}

// clientFor is the client of a stream that is read inside a browser as page
// says, or of one that is not, for nil.
func (id *identity) clientFor(page *auth.Page) *http.Client {
	if page == nil {
		return id.client
	}
	return &http.Client{Transport: &signer{id: id, to: id.inside.Transport(*page), browser: true}}
}

// renewAt is when a planned renewal of the credential should begin; zero for
// never.
func (id *identity) renewAt() time.Time {
	if id.credential == nil {
		return time.Time{}
	}
	return id.owner.config.Keeper.RenewAt(id.credential)
}

// expired tells whether the credential's own clock has run out.
func (id *identity) expired() bool {
	return id.credential != nil && id.credential.Expired(time.Now())
}

// again takes the identity once more, for another holder.
func (id *identity) again() *identity {
	id.owner.mu.Lock()
	defer id.owner.mu.Unlock()
	id.holders++
	return id
}

// release gives the identity back. The last holder closes what it owns.
func (id *identity) release() {
	m := id.owner
	m.mu.Lock()
	id.holders--
	last := id.holders == 0
	m.mu.Unlock()
	if last {
		id.transport.CloseIdleConnections()
		if id.inside != nil {
			id.inside.Close()
		}
		m.dropLease(id.lease)
	}
}

func (m *Identities) dropLease(l *lease) {
	if l == nil {
		return
	}
	m.mu.Lock()
	l.holders--
	last := l.holders == 0
	m.mu.Unlock()
	if last {
		l.Release(l.outcome)
	}
}

// Close gives up the identity in use. Streams that still hold it go on with
// it; it is called after they have ended, or have others to move to.
func (m *Identities) Close() {
	m.mu.Lock()
	id, slots := m.current, m.slots
	m.current, m.closed = nil, true
	m.mu.Unlock()
	if id != nil {
		id.release()
	}
	for _, s := range slots {
		s.Close()
	}
}

// Rotations counts the changes of exit so far.
func (m *Identities) Rotations() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.rotations
	for _, s := range m.slots {
		n += s.Rotations()
	}
	return n
}

// Logins counts the good logins of the credential so far.
func (m *Identities) Logins() uint64 {
	if m.config.Keeper == nil {
		return 0
	}
	return m.config.Keeper.Stats().Logins
}

// signer puts the identity's headers on every request, and its credential on
// those to the target's own hosts. A redirect to a foreign host is followed
// without it.
type signer struct {
	id      *identity
	to      http.RoundTripper
	browser bool // a browser sends them, with a User-Agent of its own
}

func (s *signer) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.WithContext(req.Context()) // a copy, of which the headers are ours
	req.Header = req.Header.Clone()
	c := s.id.credential
	if !s.browser {
		s.introduce(req, c)
	}
	if c != nil && s.own(req.URL) {
		for name, values := range c.Header {
			req.Header[http.CanonicalHeaderKey(name)] = values
		}
	}
	resp, err := s.to.RoundTrip(req)
	if err != nil {
		return nil, fmt.Errorf("exit %s: %w", s.id.lease.exit(), err)
	}
	if s.id.credential != nil && s.own(req.URL) {
		s.id.owner.config.Keeper.Answered(resp.Header)
	}
	return resp, nil
}

// introduce sets the User-Agent and the headers that go with it.
func (s *signer) introduce(req *http.Request, c *auth.Credential) {
	if req.Header.Get("User-Agent") == "" {
		req.Header.Set("User-Agent", s.id.owner.config.UserAgent)
	}
	if c == nil {
		return
	}
	if c.UserAgent != "" {
		req.Header.Set("User-Agent", c.UserAgent)
	}
	for name, values := range c.BrowserHeader {
		if _, set := req.Header[name]; !set {
			req.Header[name] = values
		}
	}
}

// CloseIdleConnections is found by http.Client.
func (s *signer) CloseIdleConnections() { s.id.transport.CloseIdleConnections() }

// own tells whether an address is of the target's own hosts.
func (s *signer) own(to *url.URL) bool {
	for _, h := range s.id.owner.config.Hosts {
		if transport.SameSite(&url.URL{Scheme: to.Scheme, Host: h}, to) {
			return true
		}
	}
	return false
}
