package targets

import (
	"net/url"
	"strconv"
	"strings"

	"github.com/holdline/scrape/auth"
)

// Basic is a user name and a password sent with every request.
type Basic struct {
	// The user's name; it cannot hold a colon.
	User auth.Secret `yaml:"user" required:"true"`
	// The password.
	Password auth.Secret `yaml:"password" required:"true"`
}

func (b *Basic) check(s *section) {
	if s.good("user") && strings.Contains(b.User.Reveal(), ":") {
		s.wrong("user", "the user's name holds a colon, which parts it from the password (RFC 7617)", "")
	}
}

// CookieFile is a session that was exported from a browser. The file is read
// again whenever the site refuses the session, so a newer one is found.
type CookieFile struct {
	// Cookies in the Netscape format (cookies.txt, as curl and browser
	// extensions write it), or a storage state of Playwright (JSON).
	Path Path `yaml:"path" required:"true"`
	// Headers made of the session and sent with every request to the hosts of
	// the target: `${cookie:NAME}` is the value of a cookie, `${storage:KEY}`
	// that of a storage state's localStorage.
	Headers map[string]auth.Secret `yaml:"headers" late:"storage,cookie"`
	// The cookie that the session ends with. Without this key its end is not
	// known until the site refuses it, unless `headers` refer to a cookie.
	ExpiresWith string `yaml:"expires_with"`
}

func (c *CookieFile) check(s *section) { checkHeaders(s, "headers", c.Headers) }

// OAuth2 is a token of an OAuth 2 server. It is renewed with the refresh token
// that came with it, where one did.
type OAuth2 struct {
	// How the token is asked for. `client_credentials`: the program is the
	// user. `refresh_token`: with a refresh token that somebody has.
	// `device_code`: a person is shown a code and enters it on another device,
	// once.
	Grant string `yaml:"grant" required:"true" enum:"client_credentials,refresh_token,device_code"`
	// Where tokens are asked for.
	TokenURL string `yaml:"token_url" required:"true"`
	// Where the code for a person is asked for.
	DeviceURL string `yaml:"device_url"`
	// The client's id.
	ClientID string `yaml:"client_id" required:"true"`
	// The client's secret.
	ClientSecret auth.Secret `yaml:"client_secret"`
	// The refresh token to begin with. The server may replace it; the last one
	// is kept.
	RefreshToken auth.Secret `yaml:"refresh_token"`
	// What the token shall be good for.
	Scopes []string `yaml:"scopes"`
	// What is sent besides, such as audience.
	Params map[string]auth.Secret `yaml:"params"`
}

func (o *OAuth2) check(s *section) {
	checkLoginURL(s, "token_url", o.TokenURL)
	checkLoginURL(s, "device_url", o.DeviceURL)
	said := s.good("grant")
	for grant, key := range map[string]string{"refresh_token": "refresh_token", "device_code": "device_url"} {
		switch {
		case o.Grant == grant && !s.has(key):
			s.wrong("grant", "the grant "+grant+" needs "+key, "")
		case said && o.Grant != grant && s.has(key):
			s.wrong(key, key+" belongs to the grant "+grant, "remove it, or change grant")
		}
	}
}

// Login is the site's own login, sent over HTTP: the form of a page, or what
// its script would send.
type Login struct {
	// The page with the form. It is read first, for its cookies and its hidden
	// fields, which are sent along.
	Page string `yaml:"page"`
	// Where the login is sent. Without this key: where the form of `page` goes.
	URL string `yaml:"url"`
	// How the fields are sent: as a form's, or as the keys of a JSON object,
	// where a dot in a name parts an object and the key in it.
	As string `yaml:"as" default:"form" enum:"form,json"`
	// What is filled in, by the names of the fields. `${page:NAME}` is a hidden
	// field or a meta element of the page, `${cookie:NAME}` a cookie.
	Fields map[string]auth.Secret `yaml:"fields" required:"true" late:"page,cookie"`
	// Fields that get the one-time code of an authenticator app, and the secret
	// that the site showed when they were set up: base32, or an otpauth://
	// address.
	TOTP map[string]auth.Secret `yaml:"totp"`
	// Headers sent with the login only, with references as in `fields`.
	RequestHeaders map[string]auth.Secret `yaml:"request_headers" late:"page,cookie"`
	// Headers made of the answer and sent with every request to the hosts of
	// the target: `${json:PATH}` is a value of a JSON answer, where PATH is
	// made of keys and indexes parted by dots, `${header:NAME}` a header,
	// `${cookie:NAME}` a cookie. The cookies themselves are sent anyway.
	Headers map[string]auth.Secret `yaml:"headers" late:"json,header,cookie"`
	// The path of the number of seconds that the credential lasts, in a JSON
	// answer. Without this key it is looked for at `expires_in`.
	ExpiresIn string `yaml:"expires_in"`
	// A cookie that a login must bring, and that the credential ends with.
	ExpiresWith string `yaml:"expires_with"`
	// A text that the answer holds when it refuses the login. An error status,
	// and a page that asks for the password again, are understood without it.
	FailOn string `yaml:"fail_on"`
}

func (l *Login) check(s *section) {
	if !s.has("page") && !s.has("url") && !s.meant["page"] && !s.meant["url"] {
		s.wrong("", "there is neither a page nor a url"+in(s.path), "write page: with the address of the form, or url: with the address that it is sent to")
	}
	checkLoginURL(s, "page", l.Page)
	checkLoginURL(s, "url", l.URL)
	if s.good("fields") && len(l.Fields) == 0 {
		s.wrong("fields", "there are no fields", "name the fields of the form, as in username: …")
	}
	checkHeaders(s, "request_headers", l.RequestHeaders)
	checkHeaders(s, "headers", l.Headers)
	for _, field := range keysOf(l.TOTP) {
		checkTOTP(s, "totp", l.TOTP[field])
	}
}

// checkLoginURL wants an http address where the key has a value.
func checkLoginURL(s *section, key, raw string) {
	if !s.good(key) {
		return
	}
	const want = "want an address such as https://example.com/login"
	if message, _ := checkURL(key, raw); message != "" {
		s.wrong(key, message, want)
	} else if u, _ := url.Parse(raw); u.Scheme != "http" && u.Scheme != "https" {
		s.wrong(key, strconv.Quote(key)+" is no http or https address", want)
	}
}
