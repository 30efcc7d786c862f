package auth_test

import (
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"slices"
	"testing"

	"github.com/holdline/scrape/auth"
)

func TestSetCookiesKeepsEachCookieToItsHosts(t *testing.T) {
	c := &auth.Credential{Cookies: []*http.Cookie{
		{Name: "host", Value: "1", Domain: "www.site.test", Path: "/"},
		{Name: "domain", Value: "2", Domain: ".site.test", Path: "/"},
		{Name: "path", Value: "3", Domain: "www.site.test", Path: "/api"},
		{Name: "secure", Value: "4", Domain: "www.site.test", Path: "/", Secure: true},
		{Name: "ip", Value: "5", Domain: "127.0.0.1", Path: "/"},
		{Name: "ip6", Value: "6", Domain: "[::1]", Path: "/"},
	}}
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	c.SetCookies(jar)
	for address, want := range map[string][]string{
		"http://www.site.test/":     {"domain", "host"},
		"http://www.site.test/api":  {"domain", "host", "path"},
		"https://www.site.test/":    {"domain", "host", "secure"},
		"http://api.site.test/":     {"domain"},
		"http://sub.www.site.test/": {"domain"},
		"http://127.0.0.1:8080/":    {"ip"},
		"http://[::1]:8080/":        {"ip6"},
		"http://other.test/":        nil,
	} {
		u, err := url.Parse(address)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, cookie := range jar.Cookies(u) {
			got = append(got, cookie.Name)
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s gets %v, want %v", address, got, want)
		}
	}
	if c.Cookies[0].Domain != "www.site.test" {
		t.Error("SetCookies changed the credential")
	}
}
