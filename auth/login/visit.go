package login

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/tidwall/gjson"

	"github.com/holdline/scrape/auth"
	"github.com/holdline/scrape/internal/template"
)

// maxAnswer is more than any login page has.
const maxAnswer = 8 << 20

// visit is one login.
type visit struct {
	source  *Source
	client  *http.Client
	jar     *jar
	page    *page
	headers http.Header // of all answers since the login was sent, the last of a name
	sent    []string    // what an answer may repeat
	action  string      // what is being done, for errors
}

func (s *Source) newVisit(transport http.RoundTripper) (*visit, error) {
	jar, err := newJar()
	if err != nil {
		return nil, err
	}
	v := &visit{source: s, jar: jar}
	v.client = &http.Client{Transport: transport, Jar: jar, CheckRedirect: func(next *http.Request, before []*http.Request) error {
		for name, values := range next.Response.Header {
			v.note(name, values)
		}
		first := before[0].URL
		switch {
		case len(before) >= 10:
			return v.step("the site redirects without end")
		case next.Method == http.MethodPost && (next.URL.Host != first.Host || next.URL.Scheme != first.Scheme):
			// A redirect of this kind takes the password along.
			return v.step("the site redirects the login to " + place(next.URL) + ": if that is right, name it as the address")
		}
		return nil
	}}
	return v, nil
}

func (v *visit) note(name string, values []string) {
	if v.headers != nil {
		v.headers[name] = values
	}
}

func (v *visit) run(ctx context.Context) (*auth.Credential, error) {
	config := v.source.config
	to := config.URL
	if config.Page != "" {
		v.action = "reading the page"
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, config.Page, nil)
		if err != nil {
			return nil, v.step("the address of the page cannot be used")
		}
		got, err := v.do(req)
		if err != nil {
			return nil, err
		}
		if got.status >= 400 {
			return nil, v.refusal(got)
		}
		v.page = readPage(got.body, config.Fields)
		v.page.address = got.url
		if to == "" {
			action, err := v.page.target()
			if err != nil {
				return nil, v.step(err.Error() + " (" + got.place() + ")")
			}
			to = action
		}
	}
	v.action = "sending the login"
	req, err := v.request(ctx, to)
	if err != nil {
		return nil, err
	}
	v.headers = http.Header{}
	got, err := v.do(req)
	if err != nil {
		return nil, err
	}
	if got.status >= 400 {
		return nil, v.refusal(got)
	}
	if config.FailOn != "" && bytes.Contains(got.body, []byte(config.FailOn)) {
		return nil, v.failed(auth.FaultRefused, fmt.Sprintf("the site says %q", config.FailOn))
	}
	if got.json == nil && readPage(got.body, nil).password {
		return nil, v.failed(auth.FaultRefused, "the site shows a login form again: it does not accept the user name or the password ("+got.place()+")")
	}
	return v.capture(got)
}

// request is the login itself.
func (v *visit) request(ctx context.Context, to string) (*http.Request, error) {
	config := v.source.config
	fields := map[string]string{}
	if v.page != nil && !config.JSON {
		for name, value := range v.page.hidden {
			fields[name] = value
		}
	}
	for name, value := range config.Fields {
		text, err := v.fill(value)
		if err != nil {
			return nil, err
		}
		fields[name] = text
	}
	for name, totp := range config.TOTP {
		code, err := totp.Code(ctx)
		if err != nil {
			return nil, err
		}
		v.sent = append(v.sent, code)
		fields[name] = code
	}
	body, contentType := form(fields), "application/x-www-form-urlencoded"
	if config.JSON {
		var err error
		if body, err = object(fields); err != nil {
			return nil, v.step(err.Error())
		}
		contentType = "application/json"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, to, bytes.NewReader(body))
	if err != nil {
		return nil, v.step("the address that the login goes to cannot be used")
	}
	req.Header.Set("Content-Type", contentType)
	if v.page != nil { // sites that know no token compare these
		origin := url.URL{Scheme: v.page.address.Scheme, Host: v.page.address.Host}
		req.Header.Set("Origin", origin.String())
		if v.page.address.Scheme == req.URL.Scheme {
			req.Header.Set("Referer", place(v.page.address))
		}
	}
	for name, value := range config.RequestHeader {
		text, err := v.fill(value)
		if err != nil {
			return nil, err
		}
		req.Header.Set(name, text)
	}
	return req, nil
}

// fill puts what the page brought into a value.
func (v *visit) fill(value auth.Secret) (string, error) {
	text, err := template.Expand(value.Reveal(), func(kind, name string) (string, error) {
		value := ""
		if kind == "cookie" {
			value = v.jar.value(name)
		} else if v.page != nil {
			value = cmp.Or(v.page.hidden[name], v.page.meta[name])
		}
		if value == "" {
			return "", v.step(fmt.Sprintf("the page brought no %s %s", map[string]string{"cookie": "cookie", "page": "hidden field or meta element"}[kind], name))
		}
		return value, nil
	})
	v.sent = append(v.sent, text)
	return text, err
}

func form(fields map[string]string) []byte {
	values := url.Values{}
	for name, value := range fields {
		values.Set(name, value)
	}
	return []byte(values.Encode())
}

func object(fields map[string]string) ([]byte, error) {
	root := map[string]any{}
	for name, value := range fields {
		at, keys := root, strings.Split(name, ".")
		for _, key := range keys[:len(keys)-1] {
			below, ok := at[key].(map[string]any)
			if _, taken := at[key]; taken && !ok {
				return nil, fmt.Errorf("the field %s is a value and an object", key)
			}
			if !ok {
				below = map[string]any{}
				at[key] = below
			}
			at = below
		}
		last := keys[len(keys)-1]
		if _, taken := at[last]; taken {
			return nil, fmt.Errorf("the field %s is a value and an object", name)
		}
		at[last] = value
	}
	return json.Marshal(root)
}

// answer is what the site answered in the end.
type answer struct {
	status int
	url    *url.URL
	body   []byte
	json   []byte // the body, nil where it is none
	header http.Header
	skew   time.Duration
}

// place says where an answer is from, without what may hold a secret.
func (a *answer) place() string { return fmt.Sprintf("status %d from %s", a.status, place(a.url)) }

func place(u *url.URL) string {
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
}

func (v *visit) do(req *http.Request) (*answer, error) {
	if agent := v.source.config.UserAgent; agent != "" {
		req.Header.Set("User-Agent", agent)
	}
	if req.Header.Get("Accept") == "" {
		req.Header.Set("Accept", "text/html,application/json;q=0.9,*/*;q=0.8")
	}
	resp, err := v.client.Do(req)
	if err != nil {
		var login *auth.LoginError
		var outer *url.Error
		switch {
		case errors.As(err, &login):
			return nil, login
		case errors.As(err, &outer):
			err = outer.Err // without the URL
		}
		return nil, &auth.LoginError{Fault: auth.FaultStep, Action: v.action, Err: err}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return nil, &auth.LoginError{Fault: auth.FaultStep, Action: v.action, Reason: "the answer ended early", Err: err}
	}
	if len(body) > maxAnswer {
		return nil, v.step(fmt.Sprintf("the answer is larger than %d bytes", maxAnswer))
	}
	for name, values := range resp.Header {
		v.note(name, values)
	}
	a := &answer{status: resp.StatusCode, url: resp.Request.URL, body: body, header: resp.Header, skew: auth.Skew(resp.Header)}
	v.jar.reckon(a.skew)
	if gjson.ValidBytes(body) {
		a.json = body
	}
	return a, nil
}

// refusal is an error status, with the site's own words where it has some.
func (v *visit) refusal(a *answer) error {
	fault := auth.FaultStep
	if slices.Contains([]int{http.StatusBadRequest, http.StatusUnauthorized, http.StatusUnprocessableEntity}, a.status) {
		fault = auth.FaultRefused
	}
	said := ""
	for _, path := range []string{"error_description", "message", "error.message", "error"} {
		if text, ok := at(a.json, path); ok && text != "" {
			said = fmt.Sprintf(": %q", v.blank(text))
			break
		}
	}
	err := v.failed(fault, a.place()+said)
	err.Wait = auth.RetryAfter(a.header)
	return err
}

func (v *visit) step(reason string) *auth.LoginError { return v.failed(auth.FaultStep, reason) }

func (v *visit) failed(fault auth.Fault, reason string) *auth.LoginError {
	return &auth.LoginError{Fault: fault, Action: v.action, Reason: reason}
}

// blank takes what was sent out of a text of the site's, and cuts it.
func (v *visit) blank(text string) string {
	for _, value := range v.sent {
		if len(value) >= 3 {
			text = strings.ReplaceAll(text, value, "***")
		}
	}
	if runes := []rune(text); len(runes) > 200 {
		text = string(runes[:200]) + "…"
	}
	return text
}

// at is the text, number or truth value at a path of gjson's.
func at(json []byte, path string) (string, bool) {
	v := gjson.GetBytes(json, path)
	switch v.Type {
	case gjson.String:
		return v.Str, true
	case gjson.Number, gjson.True, gjson.False:
		return v.Raw, true
	}
	return "", false
}
