// Package login logs in as a site's own form or script would, over HTTP and
// without a browser.
//
// The main type is Source, an auth.Source: it reads the login page where there
// is one, sends what the page's form holds with the user name and the password,
// and hands on the cookies and what else the answer brought.
//
// It deliberately runs no scripts: a site that wants one needs auth/browser.
package login

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/holdline/scrape/auth"
	"github.com/holdline/scrape/internal/template"
)

// Config is one login as data. Fields is required, and Page or URL.
type Config struct {
	// Page is read first, for its cookies and the hidden fields of its form.
	Page string
	// URL is where the login is sent; empty means where the form of Page goes.
	URL string
	// Fields are what is filled in. Values may hold ${page:NAME}, which is a
	// hidden field or a meta element of Page, and ${cookie:NAME}.
	Fields map[string]auth.Secret
	// JSON sends an object instead of a form: a dot in the name of a field
	// parts the name of an object and the key in it. Hidden fields are then
	// not sent by themselves.
	JSON bool
	// TOTP are fields that get a one-time code.
	TOTP map[string]*auth.TOTP
	// RequestHeader is sent with the login; values as in Fields.
	RequestHeader map[string]auth.Secret
	// Header is what is handed on besides the cookies: header names and texts
	// with ${json:PATH}, ${header:NAME} and ${cookie:NAME} of the answer. A
	// path is gjson's: keys and indexes parted by dots, as in data.tokens.0.
	Header map[string]string
	// ExpiresIn is the path of the seconds that the credential lasts; empty
	// means expires_in.
	ExpiresIn string
	// ExpiresWith is a cookie that a login must bring, and that the credential
	// ends with. So it does with the cookies that Header refers to.
	ExpiresWith string
	// FailOn is a text by which the answer says that the login is refused.
	FailOn string
	// UserAgent is sent with every request.
	UserAgent string
}

// Source is an auth.Source. What it obtains is bound to the exit. Its methods
// may be called from any number of goroutines.
type Source struct {
	config Config
	matter []string // names of the cookies that the end depends on
}

// New checks config and says all that is wrong with it.
func New(config Config) (*Source, error) {
	s := &Source{config: config}
	var errs []error
	if config.Page == "" && config.URL == "" {
		errs = append(errs, errors.New("neither a page nor a URL"))
	}
	for name, address := range map[string]string{"page": config.Page, "URL": config.URL} {
		if u, err := url.Parse(address); address != "" && (err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https") {
			errs = append(errs, fmt.Errorf("the %s is no absolute http or https address", name)) // not quoted: it may hold a secret
		}
	}
	if len(config.Fields) == 0 {
		errs = append(errs, errors.New("there are no fields to fill in"))
	}
	check := func(name, text string, kinds ...string) (refs [][2]string) {
		refs, err := template.References(text, kinds...)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
		return refs
	}
	for _, sent := range []map[string]auth.Secret{config.Fields, config.RequestHeader} {
		for name, value := range sent {
			check(name, value.Reveal(), "page", "cookie")
		}
	}
	if config.ExpiresWith != "" {
		s.matter = append(s.matter, config.ExpiresWith)
	}
	for name, text := range config.Header {
		for _, ref := range check("header "+name, text, "json", "header", "cookie") {
			if ref[0] == "cookie" {
				s.matter = append(s.matter, ref[1])
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("login: %w", err)
	}
	return s, nil
}

// Bound is always auth.BoundToExit.
func (*Source) Bound() auth.Binding { return auth.BoundToExit }

// Obtain logs in through via. Every failure but that of ctx is a
// *auth.LoginError.
func (s *Source) Obtain(ctx context.Context, via auth.Via, _ *auth.Credential) (*auth.Credential, error) {
	transport := via.Transport()
	defer transport.CloseIdleConnections()
	v, err := s.newVisit(transport)
	if err != nil {
		return nil, err
	}
	c, err := v.run(ctx)
	if err != nil && ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return c, err
}

// capture takes what is handed on out of the answer.
func (v *visit) capture(answer *answer) (*auth.Credential, error) {
	config := v.source.config
	c := &auth.Credential{Header: http.Header{}, Cookies: v.jar.cookies(), Skew: answer.skew}
	for _, cookie := range c.Cookies {
		if slices.Contains(v.source.matter, cookie.Name) {
			c.Expires = auth.Earlier(c.Expires, cookie.Expires)
			v.token(c, cookie.Value)
		}
	}
	if config.ExpiresWith != "" && v.jar.value(config.ExpiresWith) == "" {
		return nil, v.step("the answer set no cookie " + config.ExpiresWith + " (" + answer.place() + ")")
	}
	for _, name := range slices.Sorted(maps.Keys(config.Header)) {
		value, err := template.Expand(config.Header[name], func(kind, from string) (string, error) {
			value := ""
			switch kind {
			case "json":
				value, _ = at(answer.json, from)
				v.token(c, value)
			case "header":
				value = v.headers.Get(from)
				v.token(c, value)
			case "cookie":
				value = v.jar.value(from)
			}
			if value == "" {
				return "", v.step(fmt.Sprintf("the answer holds no %s %s for the header %s (%s)", kind, from, name, answer.place()))
			}
			return value, nil
		})
		if err != nil {
			return nil, err
		}
		c.Header.Set(name, value)
	}
	path := config.ExpiresIn
	if path == "" {
		path = "expires_in"
	}
	seconds, there := at(answer.json, path)
	if life, err := time.ParseDuration(seconds + "s"); there && err == nil && life > 0 {
		c.Expires = auth.Earlier(c.Expires, time.Now().Add(life))
	} else if config.ExpiresIn != "" {
		return nil, v.step("the answer holds no seconds at " + path + " (" + answer.place() + ")")
	}
	return c, nil
}

// token counts the end of a JSON Web Token, which is by the site's clock.
func (v *visit) token(c *auth.Credential, value string) {
	if end, ok := auth.JWTExpiry(value); ok {
		c.EndsAt(end)
	}
}
