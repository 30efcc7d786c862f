package browser

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/playwright-community/playwright-go"

	"github.com/holdline/scrape/auth"
)

// Action is what a step does. The values are the words of target files.
type Action string

const (
	// Open goes to the URL in Target. What the site answers with, also an
	// interstitial with an error status, is for the next steps to wait out.
	Open Action = "open"
	// Fill types Value into the field that the selector Target finds.
	Fill Action = "fill"
	// Click clicks on what the selector Target finds.
	Click Action = "click"
	// Press presses the key Value, such as Enter, on what the selector Target
	// finds.
	Press Action = "press"
	// WaitCookie waits until the site has set the cookie named Target.
	WaitCookie Action = "wait_cookie"
	// WaitSelector waits until what the selector Target finds can be seen.
	WaitSelector Action = "wait_selector"
	// WaitURL waits until the page's address is Target, in which * stands for
	// anything.
	WaitURL Action = "wait_url"
	// WaitStorage waits until the page's local or session storage has the key
	// Target.
	WaitStorage Action = "wait_storage"
	// Call calls Hook; Target is its name in messages.
	Call Action = "call"
)

// Hook is a step in Go, for what steps as data cannot say. It may do anything
// with the page, whose calls fail when ctx ends. Its error is shown: it must
// hold no secret.
type Hook func(ctx context.Context, page playwright.Page) error

var actions = map[Action]bool{
	Open: true, Fill: true, Click: true, Press: true,
	WaitCookie: true, WaitSelector: true, WaitURL: true, WaitStorage: true, Call: true,
}

// Step is one thing to do in the browser. Fill, Click and Press wait until
// what they look for can be seen. Selectors are Playwright's: CSS, text=…,
// XPath; where one finds several, the first counts.
type Step struct {
	Do     Action
	Target string
	// Value is what Fill types and Press presses.
	Value auth.Secret
	// TOTP makes the one-time code that Fill types, in the place of Value.
	TOTP *auth.TOTP
	Hook Hook
	// CaptchaSelector finds what only a person can do. When it can be seen the
	// login ends with auth.FaultPerson, in this step and the ones after it.
	CaptchaSelector string
	// ErrorSelector finds an element by which the site says that it refuses
	// the login. When it can be seen the login ends with auth.FaultRefused and
	// the element's text, in this step and the ones after it.
	ErrorSelector string
	// Timeout limits the step; zero means SourceConfig.StepTimeout.
	Timeout time.Duration
}

func (s Step) check() error {
	switch {
	case !actions[s.Do]:
		return fmt.Errorf("unknown action %q", s.Do)
	case s.Target == "":
		return fmt.Errorf("%s: what?", s.Do)
	case s.Do == Fill && s.TOTP != nil && !s.Value.IsZero():
		return fmt.Errorf("%s %s: a value and a one-time code", s.Do, s.Target)
	case s.Do != Fill && s.TOTP != nil:
		return fmt.Errorf("%s takes no one-time code", s.Do)
	case (s.Do == Call) != (s.Hook != nil):
		return fmt.Errorf("%s %s: a hook belongs to a call, and a call to a hook", s.Do, s.Target)
	case (s.Do == Fill || s.Do == Press) && s.Value.IsZero() && s.TOTP == nil:
		return fmt.Errorf("%s %s: no value", s.Do, s.Target)
	case s.Do != Fill && s.Do != Press && !s.Value.IsZero():
		return fmt.Errorf("%s takes no value", s.Do)
	case s.Timeout < 0:
		return fmt.Errorf("%s: negative timeout", s.Do)
	}
	if s.Do == Open {
		u, err := url.Parse(s.Target)
		if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
			// The address may hold a secret: not quoted.
			return errors.New("open: not an absolute http or https URL")
		}
	}
	return nil
}

// matchURL reports whether address is pattern, in which * stands for anything.
func matchURL(pattern, address string) bool {
	parts := strings.Split(pattern, "*")
	for i := range parts {
		parts[i] = regexp.QuoteMeta(parts[i])
	}
	matched, err := regexp.MatchString("^(?s:"+strings.Join(parts, ".*")+")$", address)
	return err == nil && matched
}

// reference is what a header template may refer to: ${cookie.NAME} and
// ${storage.KEY}.
var reference = regexp.MustCompile(`\$\{([^}]*)\}`)

// references lists kind and name of what template refers to.
func references(template string) (refs [][2]string, err error) {
	for _, match := range reference.FindAllStringSubmatch(template, -1) {
		kind, name, _ := strings.Cut(match[1], ".")
		if (kind != "cookie" && kind != "storage") || name == "" {
			return nil, fmt.Errorf("%s is neither ${cookie.NAME} nor ${storage.KEY}", match[0])
		}
		refs = append(refs, [2]string{kind, name})
	}
	return refs, nil
}
