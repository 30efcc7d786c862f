package proxies

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"
)

func TestParseExit(t *testing.T) {
	for raw, want := range map[string]string{
		"direct":                                   "direct",
		"http://h:1":                               "http://h:1",
		"http://h:1/":                              "http://h:1",
		"https://u:p@h.example:65535":              "https://h.example:65535",
		"socks5://u@127.0.0.1:1080":                "socks5://127.0.0.1:1080",
		"socks5h://u:p@[::1]:1080":                 "socks5h://[::1]:1080",
		"http://u:" + url.PathEscape(odd) + "@h:1": "http://h:1",
		"HTTP://u:p@h:1":                           "http://h:1",
	} {
		e, err := ParseExit(raw)
		if err != nil || e.String() != want {
			t.Errorf("%s gives %v, %v", raw, e, err)
		}
		if e.URL != nil && strings.Contains(raw, "%") {
			if password, _ := e.URL.User.Password(); password != odd {
				t.Errorf("the password is %q", password)
			}
		}
	}
	long := strings.Repeat("x", 256)
	for raw, want := range map[string]string{
		"":                                   "scheme must be",
		"h:1":                                "scheme must be",
		"sEcrEt:sEcrEt@h:1":                  "scheme must be",
		"ftp://sEcrEt:sEcrEt@h:1":            "scheme must be",
		"http://sEcrEt:sEcrEt@h":             "port is missing",
		"http://sEcrEt:sEcrEt@h:0":           "port is missing",
		"http://sEcrEt:sEcrEt@h:65536":       "port is missing",
		"http://sEcrEt:sEcrEt@:80":           "no host",
		"http:sEcrEt":                        "no host",
		"http://sEcrEt:12/sEcrEt@h:1":        "percent-encode",
		"http://sEcrEt:sEc#rEt@h:1":          "percent-encode",
		"http://sEcrEt:12?sEcrEt@h:1":        "percent-encode",
		"http://sEcrEt:%zz@h:1":              "percent-encode",
		"http://sEcrEt:a b@h:1":              "percent-encode",
		"http://sEcrEt:sEcrEt@h:1/path":      "percent-encode",
		"http://sEcrEt%3Aa:b@h:1":            "RFC 7617",
		"socks5://:sEcrEt@h:1":               "RFC 1929",
		"socks5://sEcrEt" + long + ":p@h:1":  "255 (RFC 1929)",
		"socks5h://u:sEcrEt" + long + "@h:1": "255 (RFC 1929)",
	} {
		_, err := ParseExit(raw)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s gives %v, want something with %q", raw, err, want)
		} else if strings.Contains(strings.ToLower(err.Error()), "sec") {
			t.Errorf("the error quotes its input: %v", err)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	secret := func(raw string) *url.URL {
		u, err := url.Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	ok := secret("http://sEcrEt:sEcrEt@h:1")
	for want, c := range map[string]Config{
		"no exits":              {},
		"unknown kind":          {Exits: []Exit{{URL: ok, Kind: "isq"}}},
		"of kind isp has no":    {Exits: []Exit{{Kind: ISP}}},
		"of kind direct has a":  {Exits: []Exit{{URL: ok, Kind: Direct}}},
		"max connections is -1": {Exits: []Exit{{URL: ok, MaxConns: -1}}},
		"lifetime is -1s":       {Exits: []Exit{{URL: ok, Lifetime: -time.Second}}},
		"exit 2 b: is the same": {Exits: []Exit{{URL: ok}, {URL: ok, Name: "b"}}},
		"names must differ":     {Exits: []Exit{{URL: ok, Name: "a"}, {Name: "a"}}},
		"exit 1 : proxy URL":    {Exits: []Exit{{URL: secret("http://sEcrEt:sEcrEt@h")}}},
		"WaitTimeout":           {Exits: []Exit{{}}, WaitTimeout: -1},
	} {
		_, err := New(c)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "sEcrEt") {
			t.Errorf("want something with %q: %v", want, err)
		}
	}
}

func TestSessionsOfOneGatewayAreExitsOfTheirOwn(t *testing.T) {
	var exits []Exit
	for i := range 3 {
		exits = append(exits, Exit{URL: &url.URL{Scheme: "http", Host: "gw.example:1", User: url.UserPassword(fmt.Sprint("session-", i), "p")}})
	}
	p := newPool(t, Config{Exits: exits})
	var names []string
	for _, s := range p.Stats() {
		names = append(names, s.Name)
	}
	if got := strings.Join(names, " "); got != "gw.example:1 gw.example:1#2 gw.example:1#3" {
		t.Error(got)
	}
	exits[0].URL.Host = "changed.example:1"
	if got := lease(t, p, Request{Prefer: "gw.example:1"}).Exit().URL.Host; got != "gw.example:1" {
		t.Error("the pool's exit was changed from outside")
	}
}

func TestExitShowsNoSecret(t *testing.T) {
	e, err := ParseExit("http://name%40x:" + url.PathEscape(odd) + "@h:1")
	if err != nil {
		t.Fatal(err)
	}
	e.Name = "isp-1"
	j, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("%v %+v %#v %s %q %v %#v %s", e, e, e, e, e, []Exit{e}, []Exit{e}, j)
	noSecrets(t, text)
	if !strings.Contains(text, "isp-1 (http://h:1)") {
		t.Error(text)
	}
}

func FuzzParseExit(f *testing.F) {
	for _, s := range []string{"direct", "http://sEcrEt:sEcrEt@h:1", "socks5://u:p@[::1]:1080", "http://u:p%40@h:1/", "http://sEcrEt:%zz@h:1", "http://sEc/rEt@h:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		e, err := ParseExit(raw)
		if err != nil {
			// Every error is one of a fixed few, so it cannot quote: the same whatever follows the scheme, but for lengths.
			if len(raw) > 20 && strings.Contains(err.Error(), raw) {
				t.Errorf("quoted: %v", err)
			}
			return
		}
		if e.URL == nil {
			if raw != "direct" {
				t.Fatalf("%q is direct", raw)
			}
			return
		}
		// What was accepted makes a pool, and comes back from its own text.
		again, err := ParseExit(e.URL.String())
		if err != nil || again.URL.String() != e.URL.String() {
			t.Fatalf("%q does not come back: %v", raw, err)
		}
		if _, err := New(Config{Exits: []Exit{e}}); err != nil {
			t.Fatalf("%q makes no pool: %v", raw, err)
		}
	})
}
