// Package demotest visits a demo exchange without a browser.
//
// Its main type is [Visitor]. It does what the pages' scripts do, over HTTP
// only, and knows nothing of the exchange's inside. It is for tests.
package demotest

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"regexp"
	"strconv"
	"strings"
)

// Visitor is one browser-like client: cookies, a User-Agent, and the way it
// leaves by. Not for concurrent use, except that several streams may be open.
type Visitor struct {
	Site      string       // the exchange's URL
	UserAgent string       // sent with every request
	Client    *http.Client // holds the cookies; its Transport may be replaced
	Token     string       // access token of the last call of Refresh
}

// New makes a visitor that leaves through proxy, or directly for nil.
// Its connections end with CloseIdleConnections of its Client.
func New(site string, proxy *url.URL) *Visitor {
	jar, _ := cookiejar.New(nil) // never fails
	return &Visitor{
		Site:      site,
		UserAgent: "demotest/1",
		Client:    &http.Client{Jar: jar, Transport: &http.Transport{Proxy: http.ProxyURL(proxy)}},
	}
}

// StatusError is an answer other than the one wanted.
type StatusError struct {
	Path   string
	Status int
	Body   string
}

func (e *StatusError) Error() string { return fmt.Sprintf("%s: status %d", e.Path, e.Status) }

// ErrLogin is a login that the site refused.
var ErrLogin = errors.New("login refused")

// Enter earns a clearance, logs in and fetches an access token.
func (v *Visitor) Enter(ctx context.Context, user, password string) error {
	if err := v.Clear(ctx); err != nil {
		return err
	}
	if err := v.Login(ctx, user, password); err != nil {
		return err
	}
	return v.Refresh(ctx)
}

var challenge = regexp.MustCompile(`data-challenge="([^"]+)" data-bits="(\d+)"`)

// Clear earns a clearance as the interstitial's script does.
func (v *Visitor) Clear(ctx context.Context) error {
	status, body, err := v.fetch(ctx, http.MethodGet, "/", nil)
	if err != nil {
		return err
	}
	m := challenge.FindStringSubmatch(body)
	if status != http.StatusForbidden || m == nil {
		return &StatusError{"/", status, body}
	}
	bits, _ := strconv.Atoi(m[2]) // digits by the expression
	site, err := url.Parse(v.Site)
	if err != nil {
		return err
	}
	for n := 0; ; n++ {
		clearance := m[1] + "." + strconv.Itoa(n)
		sum := sha256.Sum256([]byte(clearance + " " + v.UserAgent))
		if binary.BigEndian.Uint32(sum[:])>>(32-bits) == 0 {
			v.Client.Jar.SetCookies(site, []*http.Cookie{{Name: "clearance", Value: clearance, Path: "/"}})
			return nil
		}
	}
}

var csrf = regexp.MustCompile(`name="csrf" value="([^"]+)"`)

// Login fills in the form. A refusal is ErrLogin.
func (v *Visitor) Login(ctx context.Context, user, password string) error {
	status, body, err := v.fetch(ctx, http.MethodGet, "/login", nil)
	if err != nil {
		return err
	}
	m := csrf.FindStringSubmatch(body)
	if m == nil {
		return &StatusError{"/login", status, body}
	}
	status, body, err = v.fetch(ctx, http.MethodPost, "/login", url.Values{
		"csrf": {m[1]}, "username": {user}, "password": {password},
	})
	switch {
	case err != nil:
		return err
	case strings.Contains(body, `class="error"`):
		return ErrLogin
	case status != http.StatusOK:
		return &StatusError{"/login", status, body}
	}
	return nil
}

// Refresh fetches an access token for the session.
func (v *Visitor) Refresh(ctx context.Context) error {
	status, body, err := v.fetch(ctx, http.MethodPost, "/api/v1/token", url.Values{})
	if err != nil {
		return err
	}
	var answer struct {
		AccessToken string `json:"access_token"`
	}
	if status != http.StatusOK || json.Unmarshal([]byte(body), &answer) != nil {
		return &StatusError{"/api/v1/token", status, body}
	}
	v.Token = answer.AccessToken
	return nil
}

// Get asks for a page of the API with the access token; lastEventID may be
// empty. The caller closes the body.
func (v *Visitor) Get(ctx context.Context, path, lastEventID string) (*http.Response, error) {
	req, err := v.request(ctx, http.MethodGet, path, nil)
	if err != nil {
		return nil, err
	}
	if v.Token != "" {
		req.Header.Set("Authorization", "Bearer "+v.Token)
	}
	if lastEventID != "" {
		req.Header.Set("Last-Event-ID", lastEventID)
	}
	return v.Client.Do(req)
}

// Stream opens the event stream after lastEventID, which may be empty. The
// caller closes the body. An answer other than 200 is a *StatusError.
func (v *Visitor) Stream(ctx context.Context, lastEventID string) (*http.Response, error) {
	resp, err := v.Get(ctx, "/api/v1/market/stream", lastEventID)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
		return resp, &StatusError{"/api/v1/market/stream", resp.StatusCode, string(body)}
	}
	return resp, nil
}

func (v *Visitor) request(ctx context.Context, method, path string, form url.Values) (*http.Request, error) {
	var body io.Reader
	if form != nil {
		body = strings.NewReader(form.Encode())
	}
	req, err := http.NewRequestWithContext(ctx, method, v.Site+path, body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", v.UserAgent)
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	return req, nil
}

func (v *Visitor) fetch(ctx context.Context, method, path string, form url.Values) (status int, body string, err error) {
	req, err := v.request(ctx, method, path, form)
	if err != nil {
		return 0, "", err
	}
	resp, err := v.Client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return resp.StatusCode, string(b), err
}
