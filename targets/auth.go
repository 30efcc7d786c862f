package targets

import (
	"bytes"
	"fmt"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/holdline/scrape/auth"
)

// Auth says how the credential is obtained that opens the site, and how it is
// kept good: one way to obtain it, or a `stack` of several that are used
// together.
type Auth struct {
	Credential `yaml:",inline"`
	// Credentials that are used together, such as the clearance of a browser
	// and a bearer token. Each says for itself where it is bound. Where two
	// send the same header or cookie, the later one counts. Only the part that
	// has ended is renewed.
	Stack []Credential `yaml:"stack"`
	// How long before its end a credential is renewed. Without this key: a
	// fifth of its life, up to an hour.
	RenewBefore Duration `yaml:"renew_before"`
	// The logins that may be begun within an hour, good or bad, so that a form
	// is never hammered, also by a program that is started again and again. A
	// credential that lives T needs one every T for each exit that it is bound
	// to.
	AttemptsPerHour int `yaml:"attempts_per_hour" default:"60" min:"1"`
}

func (a *Auth) check(s *section) {
	if !s.has("stack") {
		a.Credential.checkKind(s)
		return
	}
	s.oneOf("the way to obtain a credential", append(kinds, "stack")...)
	if s.has("bound_to") {
		s.wrong("bound_to", "a stack is bound where its parts are", "move bound_to into the parts")
	}
	if s.good("stack") && len(a.Stack) == 0 {
		s.wrong("stack", "there is nothing in the stack", "list the credentials that are used together")
	}
}

// Parts lists the credentials: those of the stack, or the one.
func (a *Auth) Parts() []*Credential {
	if len(a.Stack) == 0 {
		return []*Credential{&a.Credential}
	}
	parts := make([]*Credential, len(a.Stack))
	for i := range a.Stack {
		parts[i] = &a.Stack[i]
	}
	return parts
}

// Credential is one way to obtain a credential: exactly one of its kinds. What
// `browser`, `login` and `oauth2` obtain is kept for the next run, encrypted.
type Credential struct {
	// Whether the credential works only through the exit that it was obtained
	// through (`exit`), or everywhere (`none`). Without this key: `exit` for
	// `browser` and `login`, `none` for all others.
	BoundTo string `yaml:"bound_to" enum:"exit,none"`
	// Headers sent with every request to the hosts of the target, such as an
	// API key.
	Headers map[string]auth.Secret `yaml:"headers"`
	// A user name and a password sent with every request (HTTP's own login).
	Basic *Basic `yaml:"basic"`
	// A bearer token sent with every request.
	Bearer auth.Secret `yaml:"bearer"`
	// Cookies sent with every request to the hosts of the streams.
	Cookies map[string]auth.Secret `yaml:"cookies"`
	// A session that was exported from a browser.
	CookieFile *CookieFile `yaml:"cookie_file"`
	// A token of an OAuth 2 server.
	OAuth2 *OAuth2 `yaml:"oauth2"`
	// The site's own login, sent over HTTP without a browser.
	Login *Login `yaml:"login"`
	// A headless browser logs in as a person would, step by step, through the
	// exit that the stream will use. It lives only while it is needed. What
	// the site set is then sent with every request: its cookies, the
	// browser's User-Agent and the headers that go with it.
	Browser *Browser `yaml:"browser"`
}

var kinds = []string{"headers", "basic", "bearer", "cookies", "cookie_file", "oauth2", "login", "browser"}

func (c *Credential) check(s *section) { c.checkKind(s) }

func (c *Credential) checkKind(s *section) {
	s.oneOf("the way to obtain a credential", kinds...)
	if c.BoundTo == "" {
		c.BoundTo = "none"
		if c.Browser != nil || c.Login != nil {
			c.BoundTo = "exit"
		}
	}
	if !c.Kept() && s.good("bound_to") && c.BoundTo == "exit" {
		s.wrong("bound_to", "a credential that was obtained elsewhere is bound to no exit of ours", "remove bound_to")
	}
	checkHeaders(s, "headers", c.Headers)
	if s.good("headers") && len(c.Headers) == 0 || s.good("cookies") && len(c.Cookies) == 0 {
		s.wrong("", "the credential is missing"+in(s.path), "write names and values")
	}
	if s.good("bearer") && (c.Bearer.IsZero() || strings.ContainsFunc(c.Bearer.Reveal(), func(r rune) bool { return r <= ' ' || r > '~' })) {
		s.wrong("bearer", `"bearer" is no token`, "it is one word of printable characters, without the word Bearer")
	}
	for _, name := range keysOf(c.Cookies) {
		if err := (&http.Cookie{Name: name, Value: c.Cookies[name].Reveal(), Quoted: false}).Valid(); err != nil {
			// The error quotes the value.
			s.wrong("cookies", "the cookie "+show(name)+" has a name or a value that a cookie cannot carry", "spaces, quotes, commas, semicolons and backslashes must be encoded as the site does it")
		}
	}
}

// Kept tells whether what is obtained is worth keeping for the next run.
func (c *Credential) Kept() bool { return c.Browser != nil || c.Login != nil || c.OAuth2 != nil }

// Settings are all that the credential depends on, secrets included, in a form
// that changes when one of them does.
func (c *Credential) Settings() []byte {
	var b bytes.Buffer
	writeSettings(&b, reflect.ValueOf(c).Elem())
	return b.Bytes()
}

func writeSettings(b *bytes.Buffer, v reflect.Value) {
	if secret, is := v.Interface().(auth.Secret); is {
		fmt.Fprintf(b, "%q", secret.Reveal())
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			writeSettings(b, v.Elem())
		}
	case reflect.Struct:
		for _, f := range fieldsOf(v.Type()) {
			if inner := v.FieldByIndex(f.index); !inner.IsZero() {
				fmt.Fprintf(b, "{%s:", f.name)
				writeSettings(b, inner)
				b.WriteByte('}')
			}
		}
	case reflect.Slice:
		for i := range v.Len() {
			b.WriteByte(',')
			writeSettings(b, v.Index(i))
		}
	case reflect.Map:
		for _, key := range slices.Sorted(func(yield func(string) bool) {
			for _, k := range v.MapKeys() {
				if !yield(k.String()) {
					return
				}
			}
		}) {
			fmt.Fprintf(b, "{%q:", key)
			writeSettings(b, v.MapIndex(reflect.ValueOf(key)))
			b.WriteByte('}')
		}
	default:
		fmt.Fprintf(b, "%q", fmt.Sprint(v.Interface()))
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
// `click`, `press`, `wait` and `call`.
type Step struct {
	// Open the page at this address.
	Open string `yaml:"open"`
	// Fill `value`, or the one-time code of `totp`, into the field that this selector finds. Selectors are
	// Playwright's: CSS, text=…, XPath.
	Fill string `yaml:"fill"`
	// What to fill in.
	Value auth.Secret `yaml:"value"`
	// The secret of the one-time codes of an authenticator app, as the site
	// shows it when they are set up: base32, or an otpauth:// address. The code
	// of the moment is filled in.
	TOTP auth.Secret `yaml:"totp"`
	// Click what this selector finds.
	Click string `yaml:"click"`
	// Press this key, such as Enter, in the field that was filled last.
	Press string `yaml:"press"`
	// Wait until something is there.
	Wait *Wait `yaml:"wait"`
	// Call a hook of this name, which a custom build brings.
	Call string `yaml:"call"`
	// How long the step may take.
	Timeout Duration `yaml:"timeout" default:"20s" min:"1ms"`
	// A selector of what the page shows when it refuses the login, such as its
	// message about a wrong password. From this step on, the login fails at
	// once when that can be seen.
	FailOn string `yaml:"fail_on"`
	// A selector of what only a person can do, such as a captcha. From this
	// step on, the login fails at once when that can be seen, and asks for
	// `scrape login FILE --headed`.
	Captcha string `yaml:"captcha"`
}

func (st *Step) check(s *section) {
	s.oneOf("what to do", "open", "fill", "click", "press", "wait", "call")
	for key, text := range map[string]string{"open": st.Open, "fill": st.Fill, "click": st.Click, "press": st.Press, "fail_on": st.FailOn, "captcha": st.Captcha} {
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
	case s.has("value") && s.has("totp"):
		s.wrong("totp", "value and totp exclude each other"+in(s.path), "keep one of them")
	case s.has("totp") && !s.has("fill"):
		s.wrong("totp", `"totp" belongs to a fill step`, `name the field, as in fill: "#code"`)
	case s.has("fill") && !s.has("value") && !s.has("totp"):
		s.wrong("fill", `"value" is missing`+in(s.path), "say what to fill in, as in value: ${env:PASSWORD}")
	case s.has("value") && !s.has("fill"):
		s.wrong("value", `"value" belongs to a fill step`, `name the field, as in fill: "#password"`)
	case s.good("value") && st.Value.IsZero():
		s.wrong("value", `"value" is empty`, "")
	}
	if s.good("totp") {
		checkTOTP(s, "totp", st.TOTP)
	}
	if hooks := s.d.options.Registry.Hooks; s.good("call") && !slices.Contains(hooks, st.Call) {
		s.wrong("call", "there is no hook "+show(st.Call), didYouMean("hooks of this build", st.Call, hooks))
	}
}

func checkTOTP(s *section, key string, secret auth.Secret) {
	if _, err := auth.NewTOTP(secret); err != nil {
		s.wrong(key, err.Error(), "as in totp: ${env:TOTP_SECRET}")
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
