package proxies

import (
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Kind says what sort of address an exit leaves from. A request may ask for one, and for another to fall back to.
type Kind string

const (
	ISP         Kind = "isp"         // a static address of an access provider: sticky, long-lived
	Datacenter  Kind = "datacenter"  // a static address of a hosting provider: sticky, long-lived
	Residential Kind = "residential" // somebody's line: short-lived, forced closes are expected
	Direct      Kind = "direct"      // no proxy
)

// Exit is one way out to the internet. It is a plain value: it can be written by hand, come from ParseExit, or be rendered
// from a provider's template, with the session in whatever part of the URL that provider wants it.
type Exit struct {
	// Name labels the exit in logs, errors and tables, and is what a key is bound to: renaming an exit moves its keys.
	// It must not hold a secret. Empty: New gives it its host and port.
	Name string
	// Kind is one of the kinds above, or empty for an exit that no request asks for by kind.
	Kind Kind
	// URL is the proxy: scheme http, https, socks5 or socks5h (the two are the same here: the proxy resolves names), user
	// name and password, host and port. Nil means direct.
	URL *url.URL
	// Account labels the provider account that pays for this exit. When the proxy refuses a password, all exits of the
	// account stop. Empty: exits with the same user name and password are one account.
	Account string
	// MaxConns is how many connections may be open through the exit at once. 0 means Config.MaxConnsPerExit.
	MaxConns int
	// AccountConns is how many connections may be open through all exits of the account at once. 0 means any number.
	AccountConns int
	// Lifetime is how long the provider keeps the exit: for one lease, or a provider's session from its first connection on.
	// 0 means for ever.
	Lifetime time.Duration
	// Budget is how many bytes may pass through the exit in a day (UTC), AccountBudget through all exits of the account. What
	// has used its budget up is out until midnight. 0 means any number.
	Budget, AccountBudget int64
	// Header is sent with CONNECT.
	Header http.Header

	session *session // of Provider.Exits, nil for others
}

// ParseExit reads an exit from a proxy URL such as http://user:pass@host:port, or from the word "direct". The port must be
// given. Characters of the user name and password that mean something in a URL must be percent-encoded. Errors never quote
// the input, since any part of a mistyped URL may be the password.
func ParseExit(raw string) (Exit, error) {
	if raw == "direct" {
		return Exit{Kind: Direct}, nil
	}
	u, err := url.Parse(raw)
	if err != nil {
		return Exit{}, errors.New("proxy URL: cannot be read: write scheme://user:password@host:port and percent-encode special characters of the user name and password (/ is %2F, ? is %3F, # is %23, @ is %40, % is %25)")
	}
	e := Exit{URL: u}
	if err := e.validate(); err != nil {
		return Exit{}, err
	}
	return e, nil
}

// validate reports what is wrong with the exit, without quoting any of its URL.
func (e Exit) validate() error {
	switch e.Kind {
	case "", ISP, Datacenter, Residential:
	case Direct:
		if e.URL != nil {
			return errors.New("exit of kind direct has a proxy URL: remove the URL or change the kind")
		}
	default:
		return fmt.Errorf("unknown kind %q: use isp, datacenter, residential or direct", string(e.Kind))
	}
	if e.MaxConns < 0 {
		return fmt.Errorf("max connections is %d: it must not be negative", e.MaxConns)
	}
	if e.AccountConns < 0 || e.Budget < 0 || e.AccountBudget < 0 {
		return errors.New("a cap or a budget must not be negative")
	}
	if e.Lifetime < 0 {
		return fmt.Errorf("lifetime is %v: it must not be negative", e.Lifetime)
	}
	if e.URL == nil {
		if e.Kind != "" && e.Kind != Direct {
			return fmt.Errorf("exit of kind %s has no proxy URL", e.Kind)
		}
		return nil
	}
	return validateURL(e.URL)
}

func validateURL(u *url.URL) error {
	user := u.User.Username()
	password, _ := u.User.Password()
	socks := false
	switch u.Scheme {
	case "http", "https":
		// RFC 7617, section 2: the first colon ends the user name.
		if strings.Contains(user, ":") {
			return errors.New("proxy URL: a user name for an HTTP proxy cannot hold a colon (RFC 7617)")
		}
	case "socks5", "socks5h":
		socks = true
	default:
		return errors.New("proxy URL: the scheme must be http, https, socks5 or socks5h, as in http://user:password@host:port")
	}
	if u.Opaque != "" || u.Hostname() == "" {
		return errors.New("proxy URL: no host: write scheme://user:password@host:port")
	}
	if u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" {
		return errors.New("proxy URL: something follows the port: if it belongs to the user name or password, percent-encode it (/ is %2F, ? is %3F, # is %23)")
	}
	port, err := strconv.ParseUint(u.Port(), 10, 16)
	if err != nil || port == 0 {
		return errors.New("proxy URL: the port is missing or not between 1 and 65535")
	}
	if !socks {
		return nil
	}
	// RFC 1929, section 2: both lengths are one byte, and the user name is not empty.
	if n := max(len(user), len(password)); n > 255 {
		return fmt.Errorf("proxy URL: user name or password is %d bytes long and SOCKS5 carries at most 255 (RFC 1929): shorten the session or use the provider's HTTP port", n)
	}
	if user == "" && password != "" {
		return errors.New("proxy URL: SOCKS5 cannot carry a password without a user name (RFC 1929)")
	}
	return nil
}

// address is the scheme, host and port of the proxy, or "direct".
func (e Exit) address() string {
	if e.URL == nil {
		return "direct"
	}
	return e.URL.Scheme + "://" + e.URL.Host
}

// String names the exit for people: its name and its address, without user name and password.
func (e Exit) String() string {
	if e.Name == "" || e.Name == e.address() {
		return e.address()
	}
	return e.Name + " (" + e.address() + ")"
}

// LogValue is String, so that a logged exit shows neither user name nor password.
func (e Exit) LogValue() slog.Value { return slog.StringValue(e.String()) }

// GoString is String, so that %#v shows neither user name nor password.
func (e Exit) GoString() string { return e.String() }

// label is the name New gives to an exit that has none.
func (e Exit) label() string {
	if e.URL == nil {
		return "direct"
	}
	return e.URL.Host
}

// account is what the exit shares its password with.
func (e Exit) account() string {
	if e.session != nil {
		return e.session.account
	}
	if e.Account != "" {
		return "account\x00" + e.Account
	}
	if e.URL == nil {
		return "direct"
	}
	if e.URL.User == nil {
		// Let in by our address: a refusal says nothing about other proxies.
		return "open\x00" + e.URL.Host
	}
	password, _ := e.URL.User.Password()
	return "user\x00" + e.URL.User.Username() + "\x00" + password
}

// accountName is what the account is called in errors.
func (e Exit) accountName() string {
	if e.Account != "" {
		return e.Account
	}
	return e.address()
}

// proxyAddr is the host and port to dial.
func (e Exit) proxyAddr() string { return net.JoinHostPort(e.URL.Hostname(), e.URL.Port()) }

// basicAuth is the value of Proxy-Authorization, empty without credentials (RFC 7617).
func (e Exit) basicAuth() string {
	if e.URL.User == nil {
		return ""
	}
	password, _ := e.URL.User.Password()
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(e.URL.User.Username()+":"+password))
}

// scrubber blanks this exit's secrets in text that a proxy sent us: some proxies put our user name into their error pages.
func (e Exit) scrubber() *strings.Replacer {
	if e.URL == nil || e.URL.User == nil {
		return strings.NewReplacer()
	}
	user := e.URL.User.Username()
	password, _ := e.URL.User.Password()
	secrets := []string{strings.TrimPrefix(e.basicAuth(), "Basic ")}
	own := []string{user, password}
	if e.session != nil {
		own = append(own, e.session.values["user"], e.session.values["password"])
	}
	for _, s := range own {
		secrets = append(secrets, s, url.QueryEscape(s), url.PathEscape(s))
	}
	// The longest first, since one may begin with another.
	slices.SortFunc(secrets, func(a, b string) int { return len(b) - len(a) })
	var pairs []string
	for _, s := range secrets {
		if s != "" {
			pairs = append(pairs, s, "***")
		}
	}
	return strings.NewReplacer(pairs...)
}

// cloneURL copies u, so that nobody changes a pool's exit from outside. User information cannot be changed.
func cloneURL(u *url.URL) *url.URL {
	c := *u
	return &c
}
