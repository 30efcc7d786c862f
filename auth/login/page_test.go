package login

import (
	"net/url"
	"testing"

	"github.com/holdline/scrape/auth"
)

func FuzzReadPage(f *testing.F) {
	f.Add([]byte(`<base href="https://site.test/x/"><form action="go"><input type=hidden name=a value="1"><input name=p type=password></form>`))
	f.Add([]byte("<form><form action=\"javascript:x\"><input name=p value=\x00>"))
	f.Fuzz(func(t *testing.T, body []byte) {
		p := readPage(body, map[string]auth.Secret{"p": auth.NewSecret("x")})
		p.address = &url.URL{Scheme: "https", Host: "site.test", Path: "/login"}
		to, err := p.target()
		if err != nil {
			return
		}
		if u, err := url.Parse(to); err != nil || u.Scheme != "https" && u.Scheme != "http" || !p.form {
			t.Errorf("%q of %q", to, body)
		}
	})
}

func TestTarget(t *testing.T) {
	for body, want := range map[string]string{
		`<form>`:                            "https://site.test/a/login?q=1",
		`<form action="">`:                  "https://site.test/a/login?q=1",
		`<form action="in">`:                "https://site.test/a/in",
		`<form action="/in">`:               "https://site.test/in",
		`<base href="/b/"><form action=in>`: "https://site.test/b/in",
		`<form action="https://id.test/">`:  "https://id.test/",
		`<form action="javascript:x">`:      "",
		`<form action="ht%tp:x">`:           "",
		`<p>`:                               "",
	} {
		p := readPage([]byte(body), nil)
		p.address, _ = url.Parse("https://site.test/a/login?q=1")
		got, err := p.target()
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%s goes to %q, %v, want %q", body, got, err, want)
		}
	}
}
