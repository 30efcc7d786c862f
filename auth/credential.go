package auth

import (
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// Credential is what opens the site: cookies, headers, and the User-Agent that
// they belong to. A Keeper shares one Credential between all its callers, so
// nobody changes it after it was obtained. It prints without its secrets.
type Credential struct {
	// Cookies carry Domain, Path, Secure and Expires. A Domain that begins
	// with a dot covers the hosts below it; without the dot the cookie is for
	// that host alone. SetCookies knows the difference.
	Cookies []*http.Cookie
	// Header holds what is sent to be let in, such as Authorization.
	Header http.Header
	// UserAgent is the one that the credential was obtained with; many sites
	// refuse it from another. Empty means that it does not matter.
	UserAgent string
	// BrowserHeader holds the request headers that go with UserAgent, such as
	// Accept-Language and Sec-Ch-Ua. They are no secrets.
	BrowserHeader http.Header
	// Expires is the earliest end of what matters; zero means unknown.
	Expires time.Time
	// Skew is how far the site's clock was found to be ahead of this machine's.
	// Expires allows for it: it is by this machine's clock.
	Skew time.Duration
	// Refresh is what the Source renews the credential with, such as the
	// refresh token of OAuth 2. It is not sent with requests.
	Refresh Secret
	// Obtained, Exit, ExitID and Generation are set by the Keeper. Exit is the
	// name of the exit that the credential is bound to, and ExitID its Via.ID;
	// both are empty when it is bound to none. Generation grows by at least one
	// with every login of a Keeper and is never zero.
	Obtained     time.Time
	Exit, ExitID string
	Generation   uint64

	parts []*Credential // of a Stack
	ended time.Time     // when what a person gave has ended by this machine's clock, if it has
}

// Expired reports whether the credential's known end has come.
func (c *Credential) Expired(now time.Time) bool {
	return !c.Expires.IsZero() && !now.Before(c.Expires)
}

// EndsAt counts an end that the site's clock tells, such as the exp of a token,
// for a Source that has just obtained it. Skew is set before. What the site has
// just given is good: an end that has passed already by this machine's clock
// tells no end, but that this clock is ahead by as much at least.
func (c *Credential) EndsAt(end time.Time) {
	now := time.Now()
	if by := end.Add(-c.Skew); now.Before(by) {
		c.Expires = Earlier(c.Expires, by)
		return
	}
	c.Skew = end.Sub(now)
}

// Has reports whether the credential is part, or a stack that holds it.
func (c *Credential) Has(part *Credential) bool { return c == part || slices.Contains(c.parts, part) }

// SetCookies puts the cookies into an identity's jar, each for the hosts and
// paths that it was set for.
func (c *Credential) SetCookies(jar http.CookieJar) {
	for _, cookie := range c.Cookies {
		host := strings.TrimPrefix(cookie.Domain, ".")
		own := *cookie
		if host == cookie.Domain {
			// To a jar a Domain attribute, whatever it says, means "and the
			// hosts below it".
			own.Domain = ""
		}
		// With a port, because cookiejar takes an IPv6 address without one for
		// another host than the same address with one. Ports do not separate
		// cookies (RFC 6265, section 8.5).
		host = net.JoinHostPort(strings.Trim(host, "[]"), "443")
		jar.SetCookies(&url.URL{Scheme: "https", Host: host, Path: "/"}, []*http.Cookie{&own})
	}
}

// String names the exit, the generation, the end, and the names (not the
// values) of cookies and headers.
func (c Credential) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "credential generation %d", c.Generation)
	if c.Exit != "" {
		fmt.Fprintf(&b, " exit %s", c.Exit)
	}
	if !c.Expires.IsZero() {
		fmt.Fprintf(&b, " expires %s", c.Expires.Format(time.RFC3339))
	}
	if len(c.Cookies) > 0 {
		fmt.Fprintf(&b, " cookies %s", strings.Join(c.cookieNames(), ","))
	}
	if len(c.Header) > 0 {
		fmt.Fprintf(&b, " headers %s", strings.Join(c.headerNames(), ","))
	}
	return b.String()
}

// Format makes every verb print what String returns.
func (c Credential) Format(f fmt.State, _ rune) { io.WriteString(f, c.String()) }

// LogValue is what slog prints.
func (c Credential) LogValue() slog.Value {
	attrs := []slog.Attr{slog.Uint64("generation", c.Generation)}
	if c.Exit != "" {
		attrs = append(attrs, slog.String("exit", c.Exit))
	}
	if !c.Expires.IsZero() {
		attrs = append(attrs, slog.Time("expires", c.Expires))
	}
	return slog.GroupValue(append(attrs,
		slog.Any("cookies", c.cookieNames()),
		slog.Any("headers", c.headerNames()))...)
}

// MarshalText is what JSON and YAML print.
func (c Credential) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

func (c Credential) cookieNames() []string {
	names := make([]string, 0, len(c.Cookies))
	for _, cookie := range c.Cookies {
		names = append(names, cookie.Name)
	}
	return names
}

func (c Credential) headerNames() []string { return slices.Sorted(maps.Keys(c.Header)) }
