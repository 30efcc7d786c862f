//go:build linux

package browser_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/playwright-community/playwright-go"

	"github.com/holdline/scrape/auth"
	"github.com/holdline/scrape/auth/browser"
)

// newGuardedSite asks for a code after the password, and on another page for a
// person, who takes a while from when the pictures are there. Its clock is two
// hours behind.
func newGuardedSite(t *testing.T, code *string, pictures *atomic.Int64) *httptest.Server {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /login", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, `<!doctype html><form method="post" action="/login"><input id="user" name="user"><input id="code" name="code"><button id="go">Go</button></form>`)
	})
	mux.HandleFunc("POST /login", func(w http.ResponseWriter, r *http.Request) {
		*code = r.FormValue("code")
		if r.FormValue("user") != user || !regexp.MustCompile(`^\d{6}$`).MatchString(*code) {
			fmt.Fprint(w, "no")
			return
		}
		w.Header().Set("Date", time.Now().Add(-2*time.Hour).UTC().Format(http.TimeFormat))
		token := "e30." + base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, `{"exp":%d}`, time.Now().Add(-time.Hour).Unix())) + ".x"
		fmt.Fprintf(w, `<!doctype html><script>localStorage.setItem("token", %q)</script>Welcome`, token)
	})
	mux.HandleFunc("GET /captcha", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, `<!doctype html><div class="captcha">Pick the boats <img src="/boats.png"></div>
			<script>fetch("/person").then(() => setTimeout(() => { document.cookie = "session=s3cret-session; path=/"; document.querySelector(".captcha").remove() }, 3000))</script>`)
	})
	shown := make(chan struct{})
	show := sync.OnceFunc(func() { close(shown) })
	mux.HandleFunc("GET /boats.png", func(w http.ResponseWriter, r *http.Request) { pictures.Add(1); show() })
	mux.HandleFunc("GET /person", func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-shown:
		case <-r.Context().Done():
			panic(http.ErrAbortHandler)
		}
	})
	site := httptest.NewServer(mux)
	t.Cleanup(site.Close)
	return site
}

func TestOneTimeCodeHookAndAnotherClock(t *testing.T) {
	code, pictures := "", atomic.Int64{}
	site := newGuardedSite(t, &code, &pictures)
	totp, err := auth.NewTOTP(auth.NewSecret("JBSWY3DPEHPK3PXP"))
	if err != nil {
		t.Fatal(err)
	}
	hook := func(ctx context.Context, page playwright.Page) error { return page.Locator("#user").Fill(user) }
	steps := []browser.Step{
		{Do: browser.Open, Target: site.URL + "/login"},
		{Do: browser.Call, Target: "fill in", Hook: hook},
		{Do: browser.Fill, Target: "#code", TOTP: totp},
		{Do: browser.Click, Target: "#go"},
		{Do: browser.WaitStorage, Target: "token"},
	}
	runtime := newRuntime(t, browser.Config{})
	source := newSource(t, browser.SourceConfig{Runtime: runtime, Steps: steps, Header: map[string]string{"Authorization": "Bearer ${storage.token}"}})
	c, err := source.Obtain(t.Context(), auth.Via{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if left := time.Until(c.Expires); left < 58*time.Minute || left > 62*time.Minute || c.Skew > -119*time.Minute {
		t.Errorf("ends in %v with a skew of %v, want an hour: the site's clock is two hours behind", left, c.Skew)
	}
	if len(code) != 6 {
		t.Errorf("the site was sent the code %q", code)
	}

	steps[1].Hook = func(context.Context, playwright.Page) error { return errors.New("nothing to solve") }
	source = newSource(t, browser.SourceConfig{Runtime: runtime, Steps: steps})
	if failed := mustFail(t, source, auth.Via{}); failed.Step != 2 || failed.Fault != auth.FaultStep || !strings.Contains(failed.Error(), "call fill in): the hook failed: nothing to solve") {
		t.Errorf("%v", failed)
	}
}

func TestCaptchaNeedsAPerson(t *testing.T) {
	code, pictures := "", atomic.Int64{}
	site := newGuardedSite(t, &code, &pictures)
	runtime := newRuntime(t, browser.Config{})
	steps := []browser.Step{
		{Do: browser.Open, Target: site.URL + "/captcha"},
		{Do: browser.Fill, Target: "#gone", Value: auth.NewSecret(password), Timeout: 300 * time.Millisecond, CaptchaSelector: ".captcha", ErrorSelector: ".captcha"},
		{Do: browser.WaitCookie, Target: "session"},
	}
	failed := mustFail(t, newSource(t, browser.SourceConfig{Runtime: runtime, Steps: steps}), auth.Via{})
	if failed.Fault != auth.FaultPerson || failed.Step != 2 || failed.Selector != ".captcha" || !strings.Contains(failed.Error(), "scrape login FILE --headed") {
		t.Errorf("%v", failed)
	}
	if pictures.Load() != 0 {
		t.Error("pictures were loaded for nobody")
	}
	// With somebody before the window, whose part the page plays here.
	c, err := newSource(t, browser.SourceConfig{Runtime: runtime, Steps: steps, StepTimeout: time.Second, Person: true}).Obtain(t.Context(), auth.Via{}, nil)
	if err != nil || len(c.Cookies) != 1 || c.Cookies[0].Value != "s3cret-session" {
		t.Errorf("%v, %v", c, err)
	}
	if pictures.Load() == 0 {
		t.Error("the person saw no pictures")
	}
	// A person who closes their mind ends with the login's own time.
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	steps[2].Target = "never"
	if c, err := newSource(t, browser.SourceConfig{Runtime: runtime, Steps: steps, Person: true}).Obtain(ctx, auth.Via{}, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, %v", c, err)
	}
}

func TestAWindowNeedsADisplay(t *testing.T) {
	t.Setenv("DISPLAY", "")
	t.Setenv("WAYLAND_DISPLAY", "")
	source := newSource(t, browser.SourceConfig{Runtime: newRuntime(t, browser.Config{Headed: true}), Steps: []browser.Step{{Do: browser.Open, Target: "http://127.0.0.1:9/"}}})
	if failed := mustFail(t, source, auth.Via{}); failed.Fault != auth.FaultSetup || !strings.Contains(failed.Error(), "ssh -X") {
		t.Errorf("%v", failed)
	}
}

func TestStepsThatCannotBe(t *testing.T) {
	totp, err := auth.NewTOTP(auth.NewSecret("JBSWY3DPEHPK3PXP"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = browser.NewSource(browser.SourceConfig{Person: true, Steps: []browser.Step{
		{Do: browser.Open, Target: "http://127.0.0.1/"},
		{Do: browser.Fill, Target: "#x", TOTP: totp, Value: auth.NewSecret("x")},
		{Do: browser.Click, Target: "#x", TOTP: totp},
		{Do: browser.Call, Target: "x"},
		{Do: browser.Click, Target: "#x", Hook: func(context.Context, playwright.Page) error { return nil }},
	}})
	for _, want := range []string{"step 2: fill #x: a value and a one-time code", "step 3: click takes no one-time code", "step 4: call x: a hook belongs", "step 5: click #x: a hook belongs", "the last step must wait"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing in:\n%v", want, err)
		}
	}
}
