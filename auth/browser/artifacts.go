package browser

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/playwright-community/playwright-go"

	"github.com/holdline/scrape/auth"
)

const (
	artifactsPrefix = "login-"
	artifactsKept   = 10
	// leastSecret is the length from which a value is blanked: shorter ones
	// would blank half of the page.
	leastSecret = 4
)

// failure tells what a step failed on, and leaves what the page looked like.
func (v *visit) failure(ctx context.Context, number int, step Step, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("login given up at step %d: %w", number, context.Cause(ctx))
	}
	failed := &auth.LoginError{Fault: auth.FaultStep, Step: number, Action: string(step.Do)}
	if step.Do != Open {
		failed.Selector = step.Target
	}
	var refused *refusal
	var person *captcha
	dialErr := v.forwarder.dialError(append(slices.Clip(v.source.hosts), v.host()))
	switch {
	case errors.As(err, &refused):
		failed.Fault, failed.Selector, failed.Err = auth.FaultRefused, refused.selector, err
	case errors.As(err, &person):
		failed.Fault, failed.Selector, failed.Err = auth.FaultPerson, person.selector, err
	case dialErr != nil:
		failed.Fault, failed.Reason, failed.Err = auth.FaultExit, "the site cannot be reached through the exit", dialErr
		return failed
	case !v.live.alive():
		failed.Fault, failed.Reason = auth.FaultBrowser, "the browser ended in the middle"
		return failed
	case v.page == nil:
		failed.Fault, failed.Reason, failed.Err = auth.FaultBrowser, "the browser gives no page", v.sayable(err)
		return failed
	case errors.Is(err, errHung):
		failed.Reason, failed.Err = "the page or the browser hung", err
		return failed
	default:
		failed.Reason, failed.Err = reason(step), v.sayable(err)
	}
	if err := v.within(ctx, 5*time.Second, func(context.Context) error { return v.leaveArtifacts(failed) }); err != nil {
		v.source.config.Log.Warn("the failed login left no artifacts", "error", v.sayable(err))
	}
	return failed
}

// reason says what a step was waiting for.
func reason(step Step) string {
	switch step.Do {
	case Open:
		return "the page did not open"
	case Fill, Click, Press, WaitSelector:
		return "the element was not there to be used"
	case WaitCookie:
		return "the cookie was never set"
	case WaitURL:
		return "the page never got there"
	case WaitStorage:
		return "the key was never set"
	case Call:
		return "the hook failed"
	}
	return "what is to be handed on is not there"
}

// sayable is Playwright's error without its secrets: it quotes what is filled
// in. The chain ends here for the same reason.
func (v *visit) sayable(err error) error {
	text := err.Error()
	text, _, _ = strings.Cut(text, "Call log:")
	for _, step := range v.source.config.Steps {
		if step.Do == Open {
			text = strings.ReplaceAll(text, step.Target, place(step.Target))
		}
	}
	text = strings.TrimPrefix(strings.TrimPrefix(strings.TrimSpace(text), "playwright: "), "timeout: ")
	return errors.New(v.blank(short(firstLines(text, 3), 300)))
}

// leaveArtifacts writes what the page looks like.
func (v *visit) leaveArtifacts(failed *auth.LoginError) error {
	base := v.source.config.ArtifactsDir
	if base == "" || v.page == nil {
		return nil
	}
	v.learnSecrets()
	if err := os.MkdirAll(base, 0o700); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(base, artifactsPrefix+time.Now().UTC().Format("20060102T150405.000Z")+"-")
	if err != nil {
		return err
	}
	failed.Artifacts = dir
	prune(base)

	v.page.Evaluate(blankPage, v.longSecrets())
	title, _ := v.page.Title()
	text, err := v.page.Locator("body").InnerText(playwright.LocatorInnerTextOptions{Timeout: playwright.Float(2000)})
	page := fmt.Sprintf("%v\n\npage:  %s\ntitle: %s\n\n%s\n", failed, place(v.page.URL()), title, text)
	errs := []error{err, os.WriteFile(filepath.Join(dir, "page.txt"), []byte(v.blank(page)), 0o600)}
	// What was typed into fields is covered.
	picture, err := v.page.Screenshot(playwright.PageScreenshotOptions{
		Mask:    []playwright.Locator{v.page.Locator("input, textarea, select, [contenteditable]")},
		Timeout: playwright.Float(3000),
	})
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "page.png"), picture, 0o600)
	}
	return errors.Join(append(errs, err)...)
}

// learnSecrets takes note of what the page was given, so that it is blanked
// should the page show it.
func (v *visit) learnSecrets() {
	cookies, _ := v.context.Cookies()
	for _, cookie := range cookies {
		v.secrets = append(slices.Clip(v.secrets), cookie.Value)
	}
	stored, _ := v.page.Evaluate("[...Object.values(localStorage), ...Object.values(sessionStorage)]")
	values, _ := stored.([]any)
	for _, value := range values {
		if text, ok := value.(string); ok {
			v.secrets = append(slices.Clip(v.secrets), text)
		}
	}
}

// blankPage takes the secrets out of the page's own text, for the picture.
const blankPage = `secrets => {
	const walker = document.createTreeWalker(document.documentElement, NodeFilter.SHOW_TEXT);
	while (walker.nextNode()) {
		const node = walker.currentNode;
		for (const secret of secrets) {
			if (node.data.includes(secret)) node.data = node.data.replaceAll(secret, "***");
		}
	}
}`

// longSecrets lists what is to be blanked, the longest first: one may be part
// of another.
func (v *visit) longSecrets() []string {
	secrets := slices.DeleteFunc(slices.Clone(v.secrets), func(s string) bool { return len(s) < leastSecret })
	slices.SortFunc(secrets, func(a, b string) int { return cmp.Compare(len(b), len(a)) })
	return secrets
}

// blank takes the secrets out of text.
func (v *visit) blank(text string) string {
	for _, secret := range v.longSecrets() {
		text = strings.ReplaceAll(text, secret, "***")
		text = strings.ReplaceAll(text, url.QueryEscape(secret), "***")
	}
	return text
}

// place is an address without query and fragment, where tokens travel.
func place(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return "an address that is none"
	}
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
}

// prune keeps the newest artifacts.
func prune(base string) {
	dirs, _ := filepath.Glob(filepath.Join(base, artifactsPrefix+"*"))
	slices.Sort(dirs)
	for len(dirs) > artifactsKept {
		os.RemoveAll(dirs[0])
		dirs = dirs[1:]
	}
}
