//go:build linux

package browser_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/playwright-community/playwright-go"

	"github.com/holdline/scrape/auth"
	"github.com/holdline/scrape/auth/browser"
)

func TestLogin(t *testing.T) {
	site := newSite(t)
	out := &exit{}
	source := newSource(t, browser.SourceConfig{
		Runtime: newRuntime(t, browser.Config{}),
		Steps:   site.steps(password),
		Header:  map[string]string{"Authorization": "Bearer ${storage.access_token}", "X-Clearance": "${cookie.clearance}"},
	})
	c, err := source.Obtain(t.Context(), out.via(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := c.Header.Get("Authorization"); got != "Bearer "+site.token() {
		t.Errorf("Authorization %q", got)
	}
	if got := c.Header.Get("X-Clearance"); got != "42" {
		t.Errorf("X-Clearance %q", got)
	}
	if !c.Expires.Equal(site.tokenEnd) {
		t.Errorf("expires %v, want the token's %v: neither the session's hour nor the advert's second", c.Expires, site.tokenEnd)
	}
	var session *http.Cookie
	for _, cookie := range c.Cookies {
		if cookie.Name == "session" {
			session = cookie
		}
	}
	if session == nil || !session.HttpOnly || session.Value != "sess-0123456789" || time.Until(session.Expires) < 50*time.Minute {
		t.Errorf("session cookie %+v", session)
	}
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	c.SetCookies(jar)
	u, err := url.Parse(site.URL)
	if err != nil {
		t.Fatal(err)
	}
	if len(jar.Cookies(u)) < 2 {
		t.Errorf("the jar sends %v", jar.Cookies(u))
	}
	// A Go client with these looks as the page's own requests did.
	sent := *site.lastHeader.Load()
	if c.UserAgent == "" || c.UserAgent != sent.Get("User-Agent") {
		t.Errorf("User-Agent %q, the page sent %q", c.UserAgent, sent.Get("User-Agent"))
	}
	for name := range sent {
		want := name == "Accept-Language" || strings.HasPrefix(name, "Sec-Ch-")
		if got := c.BrowserHeader.Get(name); want && got != sent.Get(name) || !want && got != "" {
			t.Errorf("browser header %s: %q, the page sent %q", name, got, sent.Get(name))
		}
	}
	if len(c.BrowserHeader) == 0 {
		t.Error("no browser headers")
	}
	if out.bytes.Load() == 0 {
		t.Error("nothing left through the exit")
	}
	// The browser opens some that it does not use: the exit may hear of them
	// after the site.
	eventually(t, "every connection that the site sees is one of the exit's", func() (all bool) {
		all = true
		site.conns.Range(func(addr, _ any) bool {
			all = out.made(addr.(string))
			return all
		})
		return all
	})
	if site.images.Load() != 0 {
		t.Error("an image was loaded")
	}
}

func TestTenLoginsAtOnceAreStrangers(t *testing.T) {
	site := newSite(t)
	runtime := newRuntime(t, browser.Config{MaxLogins: 3})
	source := newSource(t, browser.SourceConfig{Runtime: runtime, Steps: site.steps(password)})
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			// A context that knew an earlier one's cookies would see no interstitial
			// and no form.
			out := &exit{}
			if c, err := source.Obtain(t.Context(), out.via(), nil); err != nil || len(c.Cookies) < 2 {
				t.Errorf("%v, %v", c, err)
			}
			if out.dials.Load() == 0 {
				t.Error("a login left through another's exit")
			}
		})
	}
	wg.Wait()
}

// mustFail logs in and returns how that failed.
func mustFail(t *testing.T, source *browser.Source, via auth.Via) *auth.LoginError {
	t.Helper()
	c, err := source.Obtain(t.Context(), via, nil)
	failed, ok := errors.AsType[*auth.LoginError](err)
	if !ok {
		t.Fatalf("got %v, %v, want a *auth.LoginError", c, err)
	}
	if strings.Contains(err.Error(), password) || strings.Contains(err.Error(), user) {
		t.Errorf("the error shows a secret: %v", err)
	}
	return failed
}

// artifacts reads what a failed login left and sees to its secrecy.
func artifacts(t *testing.T, dir string) string {
	t.Helper()
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Fatalf("artifacts: %v, %v", info, err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "page.txt"))
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{password, user, url.QueryEscape(password)} {
		if strings.Contains(string(text), secret) {
			t.Errorf("the page's text shows a secret:\n%s", text)
		}
	}
	picture, err := os.ReadFile(filepath.Join(dir, "page.png"))
	if err != nil || http.DetectContentType(picture) != "image/png" {
		t.Errorf("screenshot: %d bytes, %v", len(picture), err)
	}
	return string(text)
}

func TestLoginsThatFail(t *testing.T) {
	site := newSite(t)
	runtime := newRuntime(t, browser.Config{})
	dialErr := errors.New("proxy refuses the password")
	steps := func(change func([]browser.Step)) []browser.Step {
		all := site.steps(password)
		change(all)
		return all
	}
	for name, test := range map[string]struct {
		steps     []browser.Step
		header    map[string]string
		dialErr   error
		fault     auth.Fault
		step      int
		selector  string
		says      string
		shows     string // in the page's text
		artifacts bool
	}{
		"wrong password": {
			steps: site.steps("wrong-" + password), fault: auth.FaultRefused, step: 5, selector: "p.error",
			says: "Wrong password for ***: ", shows: "Wrong password", artifacts: true,
		},
		"selector gone": {
			steps: steps(func(s []browser.Step) { s[3].Target = "#gone"; s[3].Timeout = 500 * time.Millisecond }),
			fault: auth.FaultStep, step: 4, selector: "#gone", says: "not within 500ms", shows: "Log in", artifacts: true,
		},
		"selector that is none": {
			steps: steps(func(s []browser.Step) { s[3].Target = "##"; s[3].Timeout = time.Minute }),
			fault: auth.FaultStep, step: 4, selector: "##", says: "selector", artifacts: true,
		},
		"cookie never set": {
			steps: []browser.Step{
				{Do: browser.Open, Target: site.URL + "/never?token=" + password},
				{Do: browser.WaitCookie, Target: "session", Timeout: 500 * time.Millisecond},
				{Do: browser.Fill, Target: "#unreached", Value: auth.NewSecret(password)},
			},
			fault: auth.FaultStep, step: 2, selector: "session", says: "the cookie was never set", shows: "Please wait", artifacts: true,
		},
		"storage key gone": {
			steps:  site.steps(password),
			header: map[string]string{"Authorization": "Bearer ${storage.gone}"},
			fault:  auth.FaultStep, says: `no storage "gone"`, shows: "Welcome", artifacts: true,
		},
		"page that hangs": {
			steps: []browser.Step{
				{Do: browser.Open, Target: site.URL + "/never"},
				{Do: browser.Call, Target: "hang", Hook: func(_ context.Context, page playwright.Page) error {
					_, err := page.Evaluate("() => { setTimeout(() => { for (;;); }) }")
					return err
				}},
				{Do: browser.WaitCookie, Target: "session", Timeout: 500 * time.Millisecond},
				{Do: browser.WaitStorage, Target: "k", Timeout: 500 * time.Millisecond},
			},
			fault: auth.FaultStep, step: 3,
		},
		"dead exit": {
			steps: site.steps(password), dialErr: dialErr, fault: auth.FaultExit, step: 1, says: "proxy refuses the password",
		},
		"dead exit, TLS": {
			steps:   steps(func(s []browser.Step) { s[0].Target = strings.Replace(s[0].Target, "http:", "https:", 1) }),
			dialErr: dialErr, fault: auth.FaultExit, step: 1, says: "proxy refuses the password",
		},
	} {
		t.Run(name, func(t *testing.T) {
			source := newSource(t, browser.SourceConfig{
				Runtime: runtime, Steps: test.steps, Header: test.header, ArtifactsDir: filepath.Join(t.TempDir(), "artifacts"),
			})
			out := &exit{err: test.dialErr}
			failed := mustFail(t, source, out.via())
			if failed.AuthFault() != test.fault || failed.Step != test.step || !strings.Contains(failed.Error(), test.says) {
				t.Errorf("%s at step %d: %v", failed.Fault, failed.Step, failed)
			}
			if test.selector != "" && failed.Selector != test.selector {
				t.Errorf("selector %q", failed.Selector)
			}
			if test.dialErr != nil && !errors.Is(failed, test.dialErr) {
				t.Errorf("the dial error is not in the chain: %v", failed)
			}
			if test.artifacts {
				if text := artifacts(t, failed.Artifacts); !strings.Contains(text, test.shows) {
					t.Errorf("the page's text:\n%s", text)
				}
			}
		})
	}
}

func TestCancelInTheMiddle(t *testing.T) {
	site := newSite(t)
	source := newSource(t, browser.SourceConfig{
		Runtime: newRuntime(t, browser.Config{}),
		Steps: []browser.Step{
			{Do: browser.Open, Target: site.URL + "/never"},
			{Do: browser.WaitCookie, Target: "session", Timeout: time.Hour},
		},
	})
	out := &exit{}
	stopped := errors.New("stopped")
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		for out.bytes.Load() == 0 && ctx.Err() == nil { // the page is on its way
			time.Sleep(time.Millisecond)
		}
		cancel(stopped)
	}()
	if _, err := source.Obtain(ctx, out.via(), nil); !errors.Is(err, stopped) {
		t.Errorf("%v", err)
	}
}

// TestCancelWhileTheBrowserStarts has the driver, and then the browser, take
// for ever to start the first time.
func TestCancelWhileTheBrowserStarts(t *testing.T) {
	site := newSite(t)
	tools, err := browser.Find(t.Context(), browser.Config{})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"driver", "browser"} {
		t.Run(name, func(t *testing.T) {
			began, script := filepath.Join(t.TempDir(), "began"), filepath.Join(t.TempDir(), "script")
			real := map[string]string{"driver": tools.Node, "browser": tools.Chromium}[name]
			text := fmt.Sprintf("#!/bin/sh\ncase $1 in --version) ;; *) if mkdir %s 2>/dev/null; then exec sleep 3600; fi ;; esac\nexec %s \"$@\"\n", began, real)
			if err := os.WriteFile(script, []byte(text), 0o700); err != nil {
				t.Fatal(err)
			}
			dir := tempDir(t)
			config := browser.Config{TempDir: dir, Node: tools.Node, Chromium: tools.Chromium}
			if name == "driver" {
				config.Node = script
			} else {
				config.Chromium = script
			}
			source := newSource(t, browser.SourceConfig{Runtime: newRuntime(t, config), Steps: site.steps(password)})
			stopped := errors.New("stopped")
			ctx, cancel := context.WithCancelCause(t.Context())
			go func() {
				for ctx.Err() == nil {
					if _, err := os.Stat(began); err == nil {
						cancel(stopped)
					}
					time.Sleep(time.Millisecond)
				}
			}()
			if _, err := source.Obtain(ctx, (&exit{}).via(), nil); !errors.Is(err, stopped) {
				t.Errorf("%v", err)
			}
			nothingLeft(t, dir)
			// It is nobody's fault: the next login starts afresh.
			if _, err := source.Obtain(t.Context(), (&exit{}).via(), nil); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestArtifactsAreBounded(t *testing.T) {
	site := newSite(t)
	dir := filepath.Join(t.TempDir(), "artifacts")
	source := newSource(t, browser.SourceConfig{
		Runtime: newRuntime(t, browser.Config{}),
		Steps: []browser.Step{
			{Do: browser.Open, Target: site.URL + "/never"},
			{Do: browser.WaitSelector, Target: "#gone", Timeout: time.Millisecond},
		},
		ArtifactsDir: dir,
	})
	var last string
	for range 12 {
		last = mustFail(t, source, auth.Via{}).Artifacts
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 10 || filepath.Join(dir, entries[9].Name()) != last {
		t.Errorf("%d left, %v", len(entries), err)
	}
}

func TestNewSourceSaysAllThatIsWrong(t *testing.T) {
	_, err := browser.NewSource(browser.SourceConfig{
		Steps: []browser.Step{
			{Do: browser.Click},
			{Do: "hover", Target: "#x"},
			{Do: browser.Open, Target: "ftp://" + password + "@host/"},
			{Do: browser.Fill, Target: "#x"},
			{Do: browser.Click, Target: "#x", Value: auth.NewSecret("x")},
			{Do: browser.WaitURL, Target: "x", Timeout: -1},
		},
		Header: map[string]string{"Authorization": "${session.x}"},
	})
	if err == nil || strings.Contains(err.Error(), password) {
		t.Fatal(err)
	}
	for _, want := range []string{
		"no browser runtime", "first step must open", "step 1: click: what?", `step 2: unknown action "hover"`,
		"step 3: open: not an absolute", "step 4: fill #x: no value", "step 5: click takes no value",
		"step 6: wait_url: negative", "header Authorization: ${session.x}",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing in:\n%v", want, err)
		}
	}
}

func TestPressAndWaits(t *testing.T) {
	site := newSite(t)
	steps := append(site.steps(password)[:3],
		browser.Step{Do: browser.Press, Target: "#password", Value: auth.NewSecret("Enter")},
		browser.Step{Do: browser.WaitSelector, Target: "text=Welcome"},
		browser.Step{Do: browser.WaitURL, Target: "http://127.0.0.1:*/login"},
	)
	source := newSource(t, browser.SourceConfig{Runtime: newRuntime(t, browser.Config{}), Steps: steps})
	if _, err := source.Obtain(t.Context(), auth.Via{}, nil); err != nil {
		t.Error(err)
	}
}
