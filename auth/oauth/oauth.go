// Package oauth obtains credentials from an OAuth 2 server.
//
// The main type is Source, an auth.Source for the grants that need no browser
// of ours: client credentials, a refresh token, and the device code that a
// person enters elsewhere. It renews with the refresh token that it was given
// last.
//
// It deliberately knows nothing of settings files and exits: what it sends
// leaves through the auth.Via of the login.
package oauth

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"

	"github.com/holdline/scrape/auth"
)

// Grant is how a token is asked for. The values are the words of target files.
type Grant string

const (
	// ClientCredentials: the program itself is the user (RFC 6749, section 4.4).
	ClientCredentials Grant = "client_credentials"
	// RefreshToken: somebody has obtained a refresh token already (section 6).
	RefreshToken Grant = "refresh_token"
	// DeviceCode: a person allows it once on another device (RFC 8628).
	DeviceCode Grant = "device_code"
)

// Config is one client of one server. Grant, TokenURL and ClientID are
// required.
type Config struct {
	Grant        Grant
	TokenURL     string
	DeviceURL    string // for DeviceCode
	ClientID     string
	ClientSecret auth.Secret
	RefreshToken auth.Secret // for RefreshToken
	Scopes       []string
	// Params are sent besides, such as audience, with all but a refresh.
	Params map[string]auth.Secret
	// Prompt shows a person what to do, for DeviceCode. It returns at once.
	Prompt func(Prompt)
}

// Prompt is what a person is asked to do: to open Address and enter Code there
// before Until. Complete, if not empty, is an address that holds the code
// already. None of it opens anything by itself.
type Prompt struct {
	Address, Code, Complete string
	Until                   time.Time
}

// Source is an auth.Source. What it obtains is bound to no exit. Its methods
// may be called from any number of goroutines.
type Source struct{ config Config }

// New checks config and says all that is wrong with it.
func New(config Config) (*Source, error) {
	var errs []error
	missing := func(is bool, what string) {
		if is {
			errs = append(errs, errors.New(what))
		}
	}
	missing(!slices.Contains([]Grant{ClientCredentials, RefreshToken, DeviceCode}, config.Grant), "no such grant")
	missing(!absolute(config.TokenURL), "the token URL is no absolute http or https address")
	missing(config.ClientID == "", "no client id")
	missing(config.Grant == DeviceCode && !absolute(config.DeviceURL), "the device URL is no absolute http or https address")
	missing(config.Grant == DeviceCode && config.Prompt == nil, "nobody to show the code to")
	missing(config.Grant == RefreshToken && config.RefreshToken.IsZero(), "no refresh token")
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("oauth: %w", err)
	}
	return &Source{config}, nil
}

func absolute(address string) bool {
	u, err := url.Parse(address)
	return err == nil && u.Host != "" && (u.Scheme == "http" || u.Scheme == "https")
}

// Bound is always auth.BoundToNone.
func (*Source) Bound() auth.Binding { return auth.BoundToNone }

// Obtain asks for a token: with the refresh token of old where there is one,
// else as the grant says. Every failure but that of ctx is a *auth.LoginError.
func (s *Source) Obtain(ctx context.Context, via auth.Via, old *auth.Credential) (*auth.Credential, error) {
	transport := via.Transport()
	defer transport.CloseIdleConnections()
	t := &talk{source: s, ctx: ctx, transport: transport, secrets: []auth.Secret{s.config.ClientSecret, s.config.RefreshToken}}
	for _, value := range s.config.Params {
		t.secrets = append(t.secrets, value)
	}
	t.ctx = context.WithValue(ctx, oauth2.HTTPClient, &http.Client{Transport: t})

	if old != nil && !old.Refresh.IsZero() {
		t.secrets = append(t.secrets, old.Refresh)
		c, err := t.refresh(old.Refresh)
		if login := (*auth.LoginError)(nil); err == nil || !errors.As(err, &login) || login.Fault != auth.FaultRefused {
			return c, err
		}
		if s.config.Grant == RefreshToken && s.config.RefreshToken.Reveal() == old.Refresh.Reveal() {
			return nil, err
		}
	}
	switch s.config.Grant {
	case RefreshToken:
		return t.refresh(s.config.RefreshToken)
	case DeviceCode:
		return t.device()
	}
	token, err := (&clientcredentials.Config{
		ClientID: s.config.ClientID, ClientSecret: s.config.ClientSecret.Reveal(), TokenURL: s.config.TokenURL,
		Scopes: s.config.Scopes, EndpointParams: s.params(),
	}).Token(t.ctx)
	return t.credential(token, err, "client credentials")
}

func (s *Source) params() url.Values {
	values := url.Values{}
	for name, value := range s.config.Params {
		values.Set(name, value.Reveal())
	}
	return values
}

func (s *Source) oauth() *oauth2.Config {
	style := oauth2.AuthStyleAutoDetect
	if s.config.Grant == DeviceCode || s.config.ClientSecret.IsZero() {
		// To detect it costs a second request whenever the answer is an error,
		// and "not yet" is one.
		style = oauth2.AuthStyleInParams
	}
	return &oauth2.Config{
		ClientID: s.config.ClientID, ClientSecret: s.config.ClientSecret.Reveal(), Scopes: s.config.Scopes,
		Endpoint: oauth2.Endpoint{TokenURL: s.config.TokenURL, DeviceAuthURL: s.config.DeviceURL, AuthStyle: style},
	}
}

// talk is what is said to the server for one credential. As a RoundTripper it
// lends its context to requests that have none of their own.
type talk struct {
	source    *Source
	ctx       context.Context
	transport *http.Transport
	secrets   []auth.Secret // what an answer may repeat
	skew      time.Duration
}

func (t *talk) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := t.transport.RoundTrip(r.WithContext(t.ctx))
	if err == nil {
		t.skew = auth.Skew(resp.Header)
	}
	return resp, err
}

func (t *talk) refresh(token auth.Secret) (*auth.Credential, error) {
	got, err := t.source.oauth().TokenSource(t.ctx, &oauth2.Token{RefreshToken: token.Reveal()}).Token()
	return t.credential(got, err, "refresh token")
}

func (t *talk) device() (*auth.Credential, error) {
	config := t.source.oauth()
	var options []oauth2.AuthCodeOption
	for name, values := range t.source.params() {
		options = append(options, oauth2.SetAuthURLParam(name, values[0]))
	}
	answer, err := config.DeviceAuth(t.ctx, options...)
	if err != nil {
		return nil, t.failure(err, "device code")
	}
	if answer.UserCode == "" || answer.VerificationURI == "" {
		return nil, &auth.LoginError{Fault: auth.FaultStep, Action: "device code", Reason: "the server gave no code to enter, or no address for it"}
	}
	// A ticker takes no other; the standard's default is 5 (RFC 8628, 3.2).
	if answer.Interval < 1 || answer.Interval > 600 {
		answer.Interval = 5
	}
	t.source.config.Prompt(Prompt{
		Address: answer.VerificationURI, Code: answer.UserCode, Complete: answer.VerificationURIComplete, Until: answer.Expiry,
	})
	token, err := config.DeviceAccessToken(t.ctx, answer)
	for err != nil && passing(err) && t.ctx.Err() == nil {
		// The person is at it: what passes does not take their code away. Less
		// often, as the standard asks (section 3.5).
		answer.Interval = min(2*answer.Interval, 60)
		token, err = config.DeviceAccessToken(t.ctx, answer)
	}
	if errors.Is(err, context.DeadlineExceeded) && t.ctx.Err() == nil {
		err = &oauth2.RetrieveError{ErrorCode: "expired_token"}
	}
	return t.credential(token, err, "device code")
}

// passing tells whether err is about the way or a server in trouble, and not
// about what was asked for.
func passing(err error) bool {
	if answer := (*oauth2.RetrieveError)(nil); errors.As(err, &answer) {
		return answer.ErrorCode == "" && answer.Response.StatusCode >= 500
	}
	return errors.As(err, new(*url.Error)) && !errors.Is(err, context.DeadlineExceeded)
}

// credential makes one of what the server answered.
func (t *talk) credential(token *oauth2.Token, err error, action string) (*auth.Credential, error) {
	if err != nil {
		return nil, t.failure(err, action)
	}
	c := &auth.Credential{
		Header:  http.Header{"Authorization": {token.Type() + " " + token.AccessToken}},
		Expires: token.Expiry,
		Refresh: auth.NewSecret(token.RefreshToken),
		Skew:    t.skew,
	}
	if end, ok := auth.JWTExpiry(token.AccessToken); ok {
		c.EndsAt(end)
	}
	return c, nil
}

// refusals are the errors by which a server says that it will never do what it
// is asked for (RFC 6749, section 5.2, and RFC 8628, section 3.5).
var refusals = []string{
	"invalid_client", "invalid_grant", "unauthorized_client", "unsupported_grant_type", "invalid_scope", "access_denied",
}

// failure sorts what went wrong, and keeps secrets out of it: an answer may
// repeat what was sent.
func (t *talk) failure(err error, action string) error {
	if t.ctx.Err() != nil {
		return context.Cause(t.ctx)
	}
	failed := &auth.LoginError{Fault: auth.FaultStep, Action: action}
	var login *auth.LoginError
	var answer *oauth2.RetrieveError
	var outer *url.Error
	switch {
	case errors.As(err, &login):
		return login
	case errors.As(err, &answer) && answer.ErrorCode == "expired_token":
		failed.Fault, failed.Reason = auth.FaultPerson, "nobody entered the code in time; the next one comes with the next try"
	case errors.As(err, &answer):
		status := 0
		if answer.Response != nil {
			status = answer.Response.StatusCode
			failed.Wait = auth.RetryAfter(answer.Response.Header)
		}
		if slices.Contains(refusals, answer.ErrorCode) || answer.ErrorCode == "" && (status == 401 || status == 403) {
			failed.Fault = auth.FaultRefused
		}
		failed.Reason = fmt.Sprintf("the server answers %d %s", status, t.blank(cmp.Or(answer.ErrorCode, http.StatusText(status))))
		if answer.ErrorDescription != "" {
			failed.Reason += fmt.Sprintf(": %q", t.blank(answer.ErrorDescription))
		}
	case errors.As(err, &outer):
		failed.Err = outer.Err // without the URL
	default:
		failed.Reason = "the server's answer is none of OAuth 2" // the library's error may quote it
	}
	return failed
}

// blank takes the client's secrets out of a text of the server's, and cuts it.
func (t *talk) blank(text string) string {
	for _, secret := range t.secrets {
		if !secret.IsZero() {
			text = strings.ReplaceAll(text, secret.Reveal(), secret.String())
		}
	}
	if runes := []rune(text); len(runes) > 200 {
		text = string(runes[:200]) + "…"
	}
	return text
}
