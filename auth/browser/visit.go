package browser

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/playwright-community/playwright-go"

	"github.com/holdline/scrape/auth"
)

// glance is how often a page is looked at while something is waited for.
const glance = 50 * time.Millisecond

// visit is one login: a space of its own, and one page.
type visit struct {
	*space
	source  *Source
	secrets []string

	page     playwright.Page
	headers  playwright.CDPSession // tells what the page sends
	refused  []string              // the selectors by which the site refuses
	captchas []string              // the selectors of what only a person can do

	seen sync.Mutex  // guards what follows
	sent http.Header // what goes with the User-Agent, as it was sent
	skew time.Duration
}

// run does the steps and takes what they brought.
func (v *visit) run(ctx context.Context) (*auth.Credential, error) {
	err := v.within(ctx, launchTime, v.enter)
	if err != nil {
		return nil, v.failure(ctx, 0, Step{}, err)
	}
	v.refused = v.source.config.FailOn
	steps := v.source.config.Steps
	for i, step := range steps {
		if step.ErrorSelector != "" {
			v.refused = append(slices.Clip(v.refused), step.ErrorSelector)
		}
		if step.CaptchaSelector != "" {
			v.captchas = append(slices.Clip(v.captchas), step.CaptchaSelector)
		}
		if v.source.config.Person && i == len(steps)-1 {
			v.source.config.Log.Info("the window waits for you", "until", step.Do, "what", step.Target)
		}
		began := time.Now()
		err := v.within(ctx, v.timeout(i), func(ctx context.Context) error { return v.do(ctx, step) })
		if err != nil && v.source.config.Person && i < len(steps)-1 && !v.lost(ctx, err) {
			v.source.config.Log.Info("left to you", "step", i+1, "do", step.Do, "error", v.sayable(err))
			continue
		}
		if err != nil {
			return nil, v.failure(ctx, i+1, step, err)
		}
		v.source.config.Log.Debug("login step done", "step", i+1, "do", step.Do, "took", time.Since(began))
	}
	var credential *auth.Credential
	err = v.within(ctx, v.source.config.StepTimeout, func(context.Context) (err error) {
		credential, err = v.capture()
		return err
	})
	if err != nil {
		return nil, v.failure(ctx, 0, Step{}, err)
	}
	return credential, nil
}

// timeout is how long step i may take.
func (v *visit) timeout(i int) time.Duration {
	config, step := v.source.config, v.source.config.Steps[i]
	if config.Person && i == len(config.Steps)-1 {
		return time.Hour // the login's own end comes first
	}
	timeout := step.Timeout
	if timeout == 0 {
		timeout = config.StepTimeout
	}
	if step.TOTP != nil {
		timeout += step.TOTP.Period() // it may wait for the next code
	}
	return timeout
}

// lost tells whether nobody can go on from here.
func (v *visit) lost(ctx context.Context, err error) bool {
	return ctx.Err() != nil || errors.Is(err, errHung) || !v.live.alive() || v.page.IsClosed()
}

// enter makes the space and its page.
func (v *visit) enter(ctx context.Context) error {
	// A person has to see what they click on.
	err := v.open(ctx, playwright.BrowserNewContextOptions{}, v.source.config.Person)
	if err != nil {
		return err
	}
	if v.page, err = v.context.NewPage(); err != nil {
		return err
	}
	return v.listen()
}

// do does one step.
func (v *visit) do(ctx context.Context, step Step) error {
	locator := func() playwright.Locator { return v.page.Locator(step.Target).First() }
	switch step.Do {
	case Open:
		return v.goTo(ctx, step.Target)
	case Fill:
		if err := v.await(ctx, v.visible(step.Target)); err != nil {
			return err
		}
		value := step.Value.Reveal()
		if step.TOTP != nil {
			var err error
			if value, err = step.TOTP.Code(ctx); err != nil {
				return err
			}
			v.secrets = append(slices.Clip(v.secrets), value)
		}
		return locator().Fill(value, playwright.LocatorFillOptions{Timeout: left(ctx)})
	case Click:
		if err := v.await(ctx, v.visible(step.Target)); err != nil {
			return err
		}
		return locator().Click(playwright.LocatorClickOptions{Timeout: left(ctx)})
	case Press:
		if err := v.await(ctx, v.visible(step.Target)); err != nil {
			return err
		}
		return locator().Press(step.Value.Reveal(), playwright.LocatorPressOptions{Timeout: left(ctx)})
	case WaitCookie:
		return v.await(ctx, func() (bool, error) { return v.hasCookie(step.Target) })
	case WaitSelector:
		return v.await(ctx, v.visible(step.Target))
	case WaitURL:
		return v.await(ctx, func() (bool, error) { return matchURL(step.Target, v.page.URL()), nil })
	case WaitStorage:
		return v.await(ctx, func() (bool, error) {
			value, err := v.storage(step.Target)
			return value != "", err
		})
	case Call:
		return step.Hook(ctx, v.page)
	}
	return fmt.Errorf("unknown action %q", step.Do)
}

// goTo opens address and returns when the page is there, which for a page that
// holds a stream open is never "loaded".
func (v *visit) goTo(ctx context.Context, address string) error {
	_, err := v.page.Goto(address, playwright.PageGotoOptions{
		WaitUntil: playwright.WaitUntilStateDomcontentloaded,
		Timeout:   left(ctx),
	})
	if err != nil && strings.Contains(err.Error(), "interrupted by another navigation") {
		return nil // the page went on by itself
	}
	return err
}

// await looks at the page until met, until the site refuses the login, or
// until ctx ends. While a page is being replaced looking at it fails; that is
// not the end.
func (v *visit) await(ctx context.Context, met func() (bool, error)) error {
	ticker := time.NewTicker(glance)
	defer ticker.Stop()
	for {
		ok, err := met()
		if ok {
			return nil
		}
		if refusal := v.refusal(); refusal != nil {
			return refusal
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			if err != nil {
				return err
			}
			return context.Cause(ctx)
		}
		if err != nil && (errors.Is(err, playwright.ErrTargetClosed) || malformedSelector(err)) {
			return err
		}
	}
}

// malformedSelector recognises what no waiting will mend.
func malformedSelector(err error) bool {
	return strings.Contains(err.Error(), "parsing") && strings.Contains(err.Error(), "selector")
}

func (v *visit) visible(selector string) func() (bool, error) {
	return func() (bool, error) { return v.page.Locator(selector).First().IsVisible() }
}

func (v *visit) hasCookie(name string) (bool, error) {
	cookies, err := v.siteCookies()
	return slices.ContainsFunc(cookies, func(c playwright.Cookie) bool { return c.Name == name && c.Value != "" }), err
}

// storage reads a value of the page's local or session storage; "" is none.
func (v *visit) storage(key string) (string, error) {
	value, err := v.page.Evaluate(`key => localStorage.getItem(key) ?? sessionStorage.getItem(key) ?? ""`, key)
	text, _ := value.(string)
	return text, err
}

// refusal is the site's own word that it does not accept the login.
type refusal struct{ selector, text string }

func (r *refusal) Error() string { return fmt.Sprintf("the site says: %q", r.text) }

// captcha is what only a person can do.
type captcha struct{ selector string }

func (*captcha) Error() string {
	return "the site asks for a person, who has to log in by hand once: scrape login FILE --headed"
}

// refusal looks for the elements by which the site refuses, or asks for a
// person.
func (v *visit) refusal() error {
	if v.source.config.Person {
		return nil // they see it
	}
	for _, selector := range v.captchas {
		if seen, err := v.page.Locator(selector).First().IsVisible(); err == nil && seen {
			return &captcha{selector}
		}
	}
	for _, selector := range v.refused {
		element := v.page.Locator(selector).First()
		if seen, err := element.IsVisible(); err != nil || !seen {
			continue
		}
		text, err := element.InnerText(playwright.LocatorInnerTextOptions{Timeout: playwright.Float(1000)})
		if text = strings.TrimSpace(text); err == nil && text != "" {
			return &refusal{selector: selector, text: v.blank(short(text, 200))}
		}
	}
	return nil
}

// host is that of the page, "" where there is none.
func (v *visit) host() string {
	if v.page == nil {
		return ""
	}
	u, err := url.Parse(v.page.URL())
	if err != nil {
		return ""
	}
	return u.Hostname()
}

// left is what remains of ctx's time, for Playwright.
func left(ctx context.Context) *float64 {
	deadline, _ := ctx.Deadline()
	return milliseconds(time.Until(deadline))
}

// short cuts s to n runes.
func short(s string, n int) string {
	if runes := []rune(s); len(runes) > n {
		return string(runes[:n]) + "…"
	}
	return s
}
