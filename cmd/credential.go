package cmd

import (
	"cmp"
	"context"
	"encoding/base64"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdline/scrape/auth"
	"github.com/holdline/scrape/auth/browser"
	"github.com/holdline/scrape/auth/login"
	"github.com/holdline/scrape/auth/oauth"
	"github.com/holdline/scrape/auth/store"
	"github.com/holdline/scrape/framework"
	"github.com/holdline/scrape/targets"
)

const (
	// keyVariable holds the key for kept credentials, instead of a file.
	keyVariable = "SCRAPE_KEY"
	// credentialsDir lies in the data directory.
	credentialsDir = "credentials"
	// personTime is how long a person may take for a login, who may have to be
	// found first.
	personTime = 20 * time.Minute
)

func keyFlag(c *cobra.Command, path *string) {
	c.Flags().StringVar(path, "key-file", "", "file with the key for kept credentials, made when it is missing (default $"+keyVariable+", else holdline/key in your configuration directory)")
}

// openStore opens the credentials kept in a data directory.
func openStore(data, keyFile string) (*store.Store, error) {
	var key store.Key
	var err error
	if text := os.Getenv(keyVariable); text != "" && keyFile == "" {
		key, err = store.ParseKey(auth.NewSecret(text), keyVariable)
	} else {
		if keyFile == "" {
			if keyFile, err = store.DefaultKeyFile(); err != nil {
				return nil, fmt.Errorf("%w: set %s, or name a file with --key-file", err, keyVariable)
			}
		}
		key, err = store.OpenKey(keyFile)
	}
	if err != nil {
		return nil, err
	}
	return store.New(filepath.Join(data, credentialsDir), key), nil
}

// keep opens the kept credentials where a target has some. Without them every
// start logs in, which is no reason not to start.
func (w *wiring) keep(keyFile string) {
	if !w.any((*targets.Credential).Kept) {
		return
	}
	kept, err := openStore(w.data, keyFile)
	if err != nil {
		w.log.Error("credentials are not kept between runs: every start logs in anew", "error", err)
		return
	}
	w.kept = kept
}

// any tells whether a target has such a credential.
func (w *wiring) any(is func(*targets.Credential) bool) bool {
	return slices.ContainsFunc(w.files, func(f *targets.File) bool {
		return f.Auth != nil && slices.ContainsFunc(f.Auth.Parts(), is)
	})
}

// startBrowser gets the browser ready where a target logs in or reads through
// one.
func (w *wiring) startBrowser(ctx context.Context) (stop func(), err error) {
	if !w.any(func(c *targets.Credential) bool { return c.Browser != nil }) && (w.byHand || !slices.ContainsFunc(w.files, readsInside)) {
		return func() {}, nil
	}
	config := browser.Config{Headed: w.headed, Log: w.log}
	if err := browser.Sweep(config); err != nil {
		w.log.Warn("what an earlier run left behind could not be removed", "error", err)
	}
	if _, err := browser.Find(ctx, config); err != nil {
		return nil, err
	}
	if err := browser.Install(ctx, config, func(line string) { w.log.Info(line) }); err != nil {
		return nil, err
	}
	w.runtime = browser.NewRuntime(config)
	return func() {
		closing, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := w.runtime.Close(closing); err != nil {
			w.log.Warn("the browser did not close", "error", err)
		}
	}, nil
}

// keeper makes the keeper of a target's credential.
func (w *wiring) keeper(f *targets.File) (*auth.Keeper, error) {
	var keepers []*auth.Keeper
	whole := time.Duration(0)
	for i, part := range f.Auth.Parts() {
		source, err := w.source(f, part)
		if err != nil {
			return nil, err
		}
		c := auth.Config{
			Name:            f.Name,
			Source:          source,
			RenewBefore:     time.Duration(f.Auth.RenewBefore),
			LoginTimeout:    90 * time.Second,
			AttemptsPerHour: f.Auth.AttemptsPerHour,
			Log:             w.log, // the Name is in every line
		}
		if len(f.Auth.Stack) > 0 {
			c.Name = fmt.Sprintf("%s+%d", f.Name, i+1)
		}
		if w.headed || part.OAuth2 != nil && part.OAuth2.Grant == string(oauth.DeviceCode) {
			c.LoginTimeout = personTime
		}
		whole += c.LoginTimeout
		if w.kept != nil && part.Kept() {
			c.Store = w.kept.For(c.Name, part.Settings())
			if w.byHand {
				c.Store, c.AttemptsPerHour = unread{c.Store}, -1
			}
		}
		keepers = append(keepers, auth.NewKeeper(c))
	}
	if len(f.Auth.Stack) == 0 {
		return keepers[0], nil
	}
	return auth.NewKeeper(auth.Config{
		Name:            f.Name,
		Source:          auth.Stack(keepers...),
		RenewBefore:     time.Duration(f.Auth.RenewBefore),
		LoginTimeout:    whole,
		AttemptsPerHour: -1, // the parts have limits of their own
		Log:             w.log,
	}), nil
}

// unread is a store whose credentials are not read: a login by hand is a login.
// It is not held back by those that failed, and ends their wait.
type unread struct{ auth.Store }

func (unread) Load() ([]*auth.Credential, error) { return nil, nil }

func (u unread) Recall() (auth.History, error) {
	h, err := u.Store.Recall()
	h.Refusal, h.Holds = auth.Hold{}, nil
	return h, err
}

// bound is a login whose target file says where its credential works.
type bound struct {
	auth.Source
	to auth.Binding
}

func (b bound) Bound() auth.Binding { return b.to }

// source makes the source of a credential.
func (w *wiring) source(f *targets.File, c *targets.Credential) (auth.Source, error) {
	var source auth.Source
	var err error
	switch {
	case c.Headers != nil:
		return auth.Static(header(c.Headers), nil), nil
	case c.Basic != nil:
		pair := c.Basic.User.Reveal() + ":" + c.Basic.Password.Reveal()
		return auth.Static(http.Header{"Authorization": {"Basic " + base64.StdEncoding.EncodeToString([]byte(pair))}}, nil), nil
	case !c.Bearer.IsZero():
		return auth.Static(http.Header{"Authorization": {"Bearer " + c.Bearer.Reveal()}}, nil), nil
	case c.Cookies != nil:
		return auth.Static(nil, cookies(f, c.Cookies)), nil
	case c.CookieFile != nil:
		return auth.CookieFile(auth.CookieFileConfig{
			Path: string(c.CookieFile.Path), Header: templates(c.CookieFile.Headers),
			Hosts: hosts(f), ExpiresWith: c.CookieFile.ExpiresWith,
		})
	case c.OAuth2 != nil:
		o := c.OAuth2
		source, err = oauth.New(oauth.Config{
			Grant: oauth.Grant(o.Grant), TokenURL: o.TokenURL, DeviceURL: o.DeviceURL,
			ClientID: o.ClientID, ClientSecret: o.ClientSecret, RefreshToken: o.RefreshToken,
			Scopes: o.Scopes, Params: o.Params, Prompt: w.prompt,
		})
	case c.Login != nil:
		source, err = httpLogin(c.Login)
	default:
		source, err = w.browserLogin(f, c.Browser)
	}
	if err != nil {
		return nil, err
	}
	to := auth.BoundToNone
	if c.BoundTo == "exit" {
		to = auth.BoundToExit
	}
	return bound{source, to}, nil
}

func httpLogin(l *targets.Login) (auth.Source, error) {
	c := login.Config{
		Page: l.Page, URL: l.URL, Fields: l.Fields, JSON: l.As == "json", TOTP: map[string]*auth.TOTP{},
		RequestHeader: l.RequestHeaders, Header: templates(l.Headers),
		ExpiresIn: l.ExpiresIn, ExpiresWith: l.ExpiresWith, FailOn: l.FailOn, UserAgent: framework.DefaultUserAgent,
	}
	for field, secret := range l.TOTP {
		totp, err := auth.NewTOTP(secret)
		if err != nil {
			return nil, err
		}
		c.TOTP[field] = totp
	}
	return login.New(c)
}

func (w *wiring) browserLogin(f *targets.File, b *targets.Browser) (auth.Source, error) {
	c := browser.SourceConfig{
		Runtime:      w.runtime,
		Header:       map[string]string{},
		Person:       w.headed,
		KeepOpen:     readsInside(f) && !w.byHand,
		ArtifactsDir: filepath.Join(w.data, "artifacts", f.Name),
		Log:          w.log.With("target", f.Name),
	}
	for name, text := range templates(b.Headers) {
		c.Header[name] = lateReferences.Replace(text)
	}
	field := "body" // where a key is pressed: the field of the step before
	for _, s := range b.Steps {
		if s.Fill != "" {
			field = s.Fill
		}
		step, err := w.browserStep(s, field)
		if err != nil {
			return nil, err
		}
		c.Steps = append(c.Steps, step)
	}
	source, err := browser.NewSource(c)
	if err == nil {
		w.logins[f] = append(w.logins[f], source)
	}
	return source, err
}

func header(from map[string]auth.Secret) http.Header {
	h := http.Header{}
	for name, value := range from {
		h.Set(name, value.Reveal())
	}
	return h
}

func templates(from map[string]auth.Secret) map[string]string {
	texts := map[string]string{}
	for name, value := range from {
		texts[name] = value.Reveal()
	}
	return texts
}

// hosts are those of the target's streams.
func hosts(f *targets.File) (names []string) {
	for i := range f.Streams {
		if u, err := url.Parse(f.Streams[i].URL); err == nil && !slices.Contains(names, u.Hostname()) { // Load has said so
			names = append(names, u.Hostname())
		}
	}
	return names
}

// cookies are for the hosts of the target's streams.
func cookies(f *targets.File, from map[string]auth.Secret) (all []*http.Cookie) {
	for _, host := range hosts(f) {
		for _, name := range slices.Sorted(maps.Keys(from)) {
			all = append(all, &http.Cookie{Name: name, Value: from[name].Reveal(), Domain: host, Path: "/"})
		}
	}
	return all
}

// lateReferences turns the references of target files into those of
// auth/browser.
var lateReferences = strings.NewReplacer("${storage:", "${storage.", "${cookie:", "${cookie.")

func (w *wiring) browserStep(s targets.Step, field string) (browser.Step, error) {
	to := browser.Step{Timeout: time.Duration(s.Timeout), ErrorSelector: s.FailOn, CaptchaSelector: s.Captcha}
	switch {
	case s.Open != "":
		to.Do, to.Target = browser.Open, s.Open
	case s.Fill != "":
		to.Do, to.Target, to.Value = browser.Fill, s.Fill, s.Value
		if !s.TOTP.IsZero() {
			var err error
			if to.TOTP, err = auth.NewTOTP(s.TOTP); err != nil {
				return to, err
			}
		}
	case s.Click != "":
		to.Do, to.Target = browser.Click, s.Click
	case s.Press != "":
		to.Do, to.Target, to.Value = browser.Press, field, auth.NewSecret(s.Press)
	case s.Call != "":
		to.Do, to.Target, to.Hook = browser.Call, s.Call, w.hooks[s.Call]
	case s.Wait.Cookie != "":
		to.Do, to.Target = browser.WaitCookie, s.Wait.Cookie
	case s.Wait.Selector != "":
		to.Do, to.Target = browser.WaitSelector, s.Wait.Selector
	case s.Wait.URL != "":
		to.Do, to.Target = browser.WaitURL, s.Wait.URL
	case s.Wait.Storage != "":
		to.Do, to.Target = browser.WaitStorage, s.Wait.Storage
	}
	return to, nil
}

// logPrompt asks a person by a log line.
func (w *wiring) logPrompt(p oauth.Prompt) {
	w.log.Warn("a person is needed: open the address and enter the code", "address", cmp.Or(p.Complete, p.Address), "code", p.Code, "until", p.Until.Format(time.RFC3339))
}
