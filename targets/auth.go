package targets

import (
	"net/http"
	"net/url"
	"strconv"

	"github.com/holdline/scrape/auth"
)

// Auth says how the credential is obtained that opens the site, and how it is
// kept good. It holds exactly one of `browser` and `static`.
type Auth struct {
	// Whether the credential works only through the exit that it was obtained
	// through (`exit`), or everywhere (`none`). Without this key: `exit` for
	// `browser`, `none` for `static`.
	BoundTo string `yaml:"bound_to" enum:"exit,none"`
	// A headless browser logs in as a person would, step by step, through the
	// exit that the stream will use. It lives only while it is needed. What
	// the site set is then sent with every request: its cookies, the
	// browser's User-Agent and the headers that go with it.
	Browser *Browser `yaml:"browser"`
	// Something that does not change, such as an API key.
	Static *Static `yaml:"static"`
	// How long before its end a credential is renewed. Without this key: a
	// fifth of its life, up to an hour.
	RenewBefore Duration `yaml:"renew_before"`
	// The logins that may be begun within an hour, good or bad, so that a form
	// is never hammered. A credential that lives T needs one every T for each
	// exit that it is bound to.
	AttemptsPerHour int `yaml:"attempts_per_hour" default:"60" min:"1"`
}

func (a *Auth) check(s *section) {
	s.oneOf("the way to obtain a credential", "browser", "static")
	if a.BoundTo == "" {
		a.BoundTo = "none"
		if a.Browser != nil {
			a.BoundTo = "exit"
		}
	}
	if a.Static != nil && s.good("bound_to") && a.BoundTo == "exit" {
		s.wrong("bound_to", "a static credential is bound to no exit", "remove bound_to")
	}
}

// Browser is a login by a headless browser.
type Browser struct {
	// What to do, in order.
	Steps []Step `yaml:"steps" required:"true"`
	// Headers that are made of what the login left behind and sent with every
	// request to the hosts of the target: `${storage:KEY}` is a value of the
	// page's localStorage or sessionStorage, `${cookie:NAME}` that of a
	// cookie.
	Headers map[string]auth.Secret `yaml:"headers" late:"storage,cookie"`
}

func (b *Browser) check(s *section) {
	switch {
	case s.good("steps") && len(b.Steps) == 0:
		s.wrong("steps", "there are no steps", "the first one opens the login page")
	case len(b.Steps) > 0 && b.Steps[0].Open == "":
		s.wrong("steps", "the first step opens no page", "begin with - open: https://…")
	}
	checkHeaders(s, "headers", b.Headers)
}

// Step is one thing that the browser does: exactly one of `open`, `fill`,
// `click`, `press` and `wait`.
type Step struct {
	// Open the page at this address.
	Open string `yaml:"open"`
	// Fill `value` into the field that this selector finds. Selectors are
	// Playwright's: CSS, text=…, XPath.
	Fill string `yaml:"fill"`
	// What to fill in.
	Value auth.Secret `yaml:"value"`
	// Click what this selector finds.
	Click string `yaml:"click"`
	// Press this key, such as Enter, in the field that was filled last.
	Press string `yaml:"press"`
	// Wait until something is there.
	Wait *Wait `yaml:"wait"`
	// How long the step may take.
	Timeout Duration `yaml:"timeout" default:"20s" min:"1ms"`
	// A selector of what the page shows when it refuses the login, such as its
	// message about a wrong password. From this step on, the login fails at
	// once when that can be seen.
	FailOn string `yaml:"fail_on"`
}

func (st *Step) check(s *section) {
	s.oneOf("what to do", "open", "fill", "click", "press", "wait")
	for key, text := range map[string]string{"open": st.Open, "fill": st.Fill, "click": st.Click, "press": st.Press, "fail_on": st.FailOn} {
		if s.good(key) && text == "" {
			s.wrong(key, strconv.Quote(key)+" is empty", "")
		}
	}
	if st.Open != "" {
		if message, remedy := checkURL("open", st.Open); message != "" {
			s.wrong("open", message, remedy)
		} else if u, _ := url.Parse(st.Open); u.Scheme != "http" && u.Scheme != "https" {
			s.wrong("open", "\"open\" is no http or https address", "want an address such as https://example.com/login")
		}
	}
	switch {
	case s.has("fill") && !s.has("value"):
		s.wrong("fill", `"value" is missing`+in(s.path), "say what to fill in, as in value: ${env:PASSWORD}")
	case s.has("value") && !s.has("fill"):
		s.wrong("value", `"value" belongs to a fill step`, `name the field, as in fill: "#password"`)
	case s.good("value") && st.Value.IsZero():
		s.wrong("value", `"value" is empty`, "")
	}
}

// Wait says what a step waits for: exactly one of its keys.
type Wait struct {
	// A cookie with this name.
	Cookie string `yaml:"cookie"`
	// Something visible that this selector finds.
	Selector string `yaml:"selector"`
	// An address of the page, the whole of it; * stands for anything.
	URL string `yaml:"url"`
	// A value of the page's localStorage or sessionStorage under this key.
	Storage string `yaml:"storage"`
}

func (w *Wait) check(s *section) {
	s.oneOf("what to wait for", "cookie", "selector", "url", "storage")
	for key, text := range map[string]string{"cookie": w.Cookie, "selector": w.Selector, "url": w.URL, "storage": w.Storage} {
		if s.good(key) && text == "" {
			s.wrong(key, strconv.Quote(key)+" is empty", "")
		}
	}
}

// Static is a credential that does not change.
type Static struct {
	// Headers sent with every request to the hosts of the target.
	Headers map[string]auth.Secret `yaml:"headers"`
	// Cookies sent with every request to the hosts of the target.
	Cookies map[string]auth.Secret `yaml:"cookies"`
}

func (st *Static) check(s *section) {
	if !s.has("headers") && !s.has("cookies") {
		s.wrong("", "the credential is missing"+in(s.path), "write headers: or cookies:")
	}
	checkHeaders(s, "headers", st.Headers)
	for _, name := range keysOf(st.Cookies) {
		if err := (&http.Cookie{Name: name, Value: st.Cookies[name].Reveal(), Quoted: false}).Valid(); err != nil {
			// The error quotes the value.
			s.wrong("cookies", "the cookie "+show(name)+" has a name or a value that a cookie cannot carry", "spaces, quotes, commas, semicolons and backslashes must be encoded as the site does it")
		}
	}
}
