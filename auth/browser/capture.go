package browser

import (
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/playwright-community/playwright-go"
	"golang.org/x/net/publicsuffix"

	"github.com/holdline/scrape/auth"
)

// capture takes from the page what is handed on.
func (v *visit) capture() (*auth.Credential, error) {
	if refusal := v.refusal(); refusal != nil {
		return nil, refusal
	}
	cookies, err := v.siteCookies()
	if err != nil {
		return nil, err
	}
	v.seen.Lock()
	credential := &auth.Credential{Header: http.Header{}, Skew: v.skew}
	v.seen.Unlock()
	expires := earliest{skew: credential.Skew}
	for _, cookie := range cookies {
		credential.Cookies = append(credential.Cookies, httpCookie(cookie))
		if slices.Contains(v.source.matter, cookie.Name) {
			expires.cookie(cookie)
			expires.token(cookie.Value)
		}
	}
	for name, template := range v.source.config.Header {
		value, err := v.expand(template, cookies, &expires)
		if err != nil {
			return nil, fmt.Errorf("header %s: %w", name, err)
		}
		credential.Header.Set(name, value)
	}
	credential.Expires = expires.time
	agent, err := v.page.Evaluate("navigator.userAgent")
	if err != nil {
		return nil, err
	}
	credential.UserAgent, _ = agent.(string)
	v.seen.Lock()
	credential.BrowserHeader = v.sent
	v.seen.Unlock()
	return credential, nil
}

// listen has the browser tell what headers it really sends to the site.
// Playwright itself does not know them all: it blocks images, and what it
// intercepts it sees before the network adds some.
func (v *visit) listen() error {
	session, err := v.context.NewCDPSession(v.page)
	if err != nil {
		return err
	}
	v.headers = session
	session.On("Network.requestWillBeSentExtraInfo", func(params map[string]any) {
		headers, _ := params["headers"].(map[string]any)
		v.noteSent(headers)
	})
	session.On("Network.responseReceived", func(params map[string]any) {
		response, _ := params["response"].(map[string]any)
		v.noteClock(response)
	})
	// Without buffers, because a page that reads a stream hangs when they are
	// full.
	_, err = session.Send("Network.enable", map[string]any{"maxTotalBufferSize": 0, "maxResourceBufferSize": 0})
	return err
}

// noteSent keeps those headers of a request to the site that go with the
// User-Agent. It is called by playwright-go's goroutine.
func (v *visit) noteSent(headers map[string]any) {
	host := ""
	kept := http.Header{}
	for name, value := range headers {
		text, _ := value.(string)
		switch name = strings.ToLower(name); {
		case name == "host", name == ":authority":
			host = (&url.URL{Host: text}).Hostname()
		case name == "accept-language", strings.HasPrefix(name, "sec-ch-"):
			kept.Set(name, text)
		}
	}
	if v.ours(host) && kept.Get("Accept-Language") != "" {
		v.seen.Lock()
		v.sent = kept
		v.seen.Unlock()
	}
}

// noteClock reads the site's clock off an answer. It is called by
// playwright-go's goroutine.
func (v *visit) noteClock(response map[string]any) {
	address, _ := response["url"].(string)
	u, err := url.Parse(address)
	cached, _ := response["fromDiskCache"].(bool)
	if err != nil || cached || !v.ours(u.Hostname()) {
		return
	}
	headers, _ := response["headers"].(map[string]any)
	said := http.Header{}
	for name, value := range headers {
		text, _ := value.(string)
		said.Set(name, text)
	}
	if said.Get("Date") != "" {
		v.seen.Lock()
		v.skew = auth.Skew(said)
		v.seen.Unlock()
	}
}

// ours tells whether host belongs to a site whose pages are opened.
func (v *visit) ours(host string) bool {
	return slices.ContainsFunc(v.source.hosts, func(h string) bool { return site(h) == site(host) })
}

// expand fills in a header template.
func (v *visit) expand(template string, cookies []playwright.Cookie, expires *earliest) (string, error) {
	var firstErr error
	value := reference.ReplaceAllStringFunc(template, func(match string) string {
		kind, name, _ := strings.Cut(match[2:len(match)-1], ".")
		value := ""
		if kind == "cookie" {
			if i := slices.IndexFunc(cookies, func(c playwright.Cookie) bool { return c.Name == name }); i >= 0 {
				value = cookies[i].Value
			}
		} else {
			var err error
			if value, err = v.storage(name); err != nil && firstErr == nil {
				firstErr = err
			}
		}
		if value == "" && firstErr == nil {
			firstErr = fmt.Errorf("the page has no %s %q after the last step; is a step missing that waits for it?", kind, name)
		}
		expires.token(value)
		return value
	})
	if strings.ContainsAny(value, "\r\n\x00") && firstErr == nil {
		firstErr = fmt.Errorf("its value holds a line break")
	}
	return value, firstErr
}

// siteCookies returns the cookies of the sites that were opened: those of
// their hosts, and of the hosts that share a registrable domain with them.
func (v *visit) siteCookies() ([]playwright.Cookie, error) {
	all, err := v.context.Cookies()
	if err != nil {
		return nil, err
	}
	sites := map[string]bool{site(v.host()): true}
	for _, host := range v.source.hosts {
		sites[site(host)] = true
	}
	return slices.DeleteFunc(all, func(c playwright.Cookie) bool {
		return !sites[site(strings.TrimPrefix(c.Domain, "."))]
	}), nil
}

// site is the registrable domain of host, or host itself where it has none.
func site(host string) string {
	host = strings.Trim(host, "[]")
	if net.ParseIP(host) == nil {
		if domain, err := publicsuffix.EffectiveTLDPlusOne(host); err == nil {
			return domain
		}
	}
	return host
}

func httpCookie(c playwright.Cookie) *http.Cookie {
	cookie := &http.Cookie{
		Name: c.Name, Value: c.Value, Domain: c.Domain, Path: c.Path,
		Secure: c.Secure, HttpOnly: c.HttpOnly,
	}
	if c.Expires > 0 {
		cookie.Expires = cookieEnd(c)
	}
	if c.SameSite != nil {
		switch *c.SameSite {
		case *playwright.SameSiteAttributeStrict:
			cookie.SameSite = http.SameSiteStrictMode
		case *playwright.SameSiteAttributeLax:
			cookie.SameSite = http.SameSiteLaxMode
		case *playwright.SameSiteAttributeNone:
			cookie.SameSite = http.SameSiteNoneMode
		}
	}
	return cookie
}

func cookieEnd(c playwright.Cookie) time.Time { return time.UnixMilli(int64(c.Expires * 1000)) }

// earliest keeps the first of several ends. The browser has reckoned those of
// cookies by the site's clock, which is skew ahead, but not those of tokens.
type earliest struct {
	time time.Time
	skew time.Duration
}

func (e *earliest) add(t time.Time) {
	if e.time.IsZero() || t.Before(e.time) {
		e.time = t
	}
}

func (e *earliest) cookie(c playwright.Cookie) {
	if c.Expires > 0 {
		e.add(cookieEnd(c))
	}
}

func (e *earliest) token(value string) {
	if t, ok := auth.JWTExpiry(value); ok {
		e.add(t.Add(-e.skew))
	}
}
