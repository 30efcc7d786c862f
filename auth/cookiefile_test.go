package auth

import (
	"errors"
	"net/http"
	"net/http/cookiejar"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const netscape = "# Netscape HTTP Cookie File\r\n" +
	"\n" +
	"#HttpOnly_.site.test\tTRUE\t/\tTRUE\t4102444800\tsession\ts3cret\n" +
	"www.site.test\tFALSE\t/api\tFALSE\t0\tcsrf\ttoken\n" +
	"www.site.test\tFALSE\t/\tFALSE\t1000000000\told\tx\n" +
	"www.site.test\tFALSE\t/\tFALSE\t0\tempty\n"

const state = `{
  "cookies": [
    {"name": "session", "value": "s3cret", "domain": ".site.test", "path": "/", "expires": 4102444800.5, "httpOnly": true, "secure": true, "sameSite": "Lax"},
    {"name": "csrf", "value": "token", "domain": "www.site.test", "path": "/api", "expires": -1, "httpOnly": false, "secure": false, "sameSite": "None"},
    {"name": "old", "value": "x", "domain": "www.site.test", "path": "/", "expires": 1000000000, "httpOnly": false, "secure": false, "sameSite": "None"}
  ],
  "origins": [
    {"origin": "https://other.test", "localStorage": [{"name": "token", "value": "wrong"}]},
    {"origin": "https://www.site.test", "localStorage": [{"name": "token", "value": "right"}]}
  ]
}`

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "session")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func obtain(t *testing.T, c CookieFileConfig) (*Credential, error) {
	t.Helper()
	s, err := CookieFile(c)
	if err != nil {
		t.Fatal(err)
	}
	return s.Obtain(t.Context(), Via{}, nil)
}

func TestCookieFiles(t *testing.T) {
	for name, text := range map[string]string{"netscape": netscape, "state": state} {
		t.Run(name, func(t *testing.T) {
			c, err := obtain(t, CookieFileConfig{Path: write(t, text), ExpiresWith: "session", Header: map[string]string{"X-Csrf": "<${cookie:csrf}>"}})
			if err != nil {
				t.Fatal(err)
			}
			got := map[string]*http.Cookie{}
			for _, cookie := range c.Cookies {
				got[cookie.Name] = cookie
			}
			if s := got["session"]; s == nil || s.Value != "s3cret" || s.Domain != ".site.test" || !s.Secure || !s.HttpOnly || s.Expires.Unix() != 4102444800 {
				t.Errorf("session %+v", s)
			}
			if s := got["csrf"]; s == nil || s.Domain != "www.site.test" || s.Path != "/api" || s.Secure || s.HttpOnly || !s.Expires.IsZero() {
				t.Errorf("csrf %+v", s)
			}
			if got["old"] != nil {
				t.Error("a cookie that has ended is handed on")
			}
			if c.Expires.Unix() != 4102444800 || c.Header.Get("X-Csrf") != "<token>" {
				t.Errorf("expires %v, header %v", c.Expires, c.Header)
			}
		})
	}
	c, err := obtain(t, CookieFileConfig{Path: write(t, state), Hosts: []string{"www.site.test"}, Header: map[string]string{"Authorization": "Bearer ${storage:token}"}})
	if err != nil || c.Header.Get("Authorization") != "Bearer right" || !c.Expires.IsZero() {
		t.Errorf("%v, %v", c, err)
	}
}

func TestCookieFilesThatNeedAPerson(t *testing.T) {
	for want, c := range map[string]CookieFileConfig{
		"no such file":                    {Path: "/nonexistent"},
		"it is empty":                     {Path: write(t, " \n")},
		"cookies in it":                   {Path: write(t, "# Netscape HTTP Cookie File\n")},
		"line 1 has 3 fields":             {Path: write(t, "s3cret\ts3cret\ts3cret")},
		"line 1 has no domain":            {Path: write(t, "a\tTRUE\t/\tTRUE\ts3cret\tn\tv")},
		"no storage state":                {Path: write(t, `{"cookies": "s3cret"}`)},
		"without cookies and storage":     {Path: write(t, `{}`)},
		"cookie 1 has no name":            {Path: write(t, `{"cookies": [{"value": "s3cret"}]}`)},
		"all of its 1 cookies have ended": {Path: write(t, "a\tTRUE\t/\tTRUE\t1000\tn\ts3cret")},
		"the cookie n ended at":           {Path: write(t, "a\tTRUE\t/\tTRUE\t1000\tn\ts3cret"), ExpiresWith: "n"},
		"there is no cookie other":        {Path: write(t, netscape), ExpiresWith: "other"},
		"there is no storage token":       {Path: write(t, netscape), Header: map[string]string{"A": "${storage:token}"}},
	} {
		_, err := obtain(t, c)
		login, ok := errors.AsType[*LoginError](err)
		if !ok || login.Fault != FaultPerson || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), c.Path) || strings.Contains(err.Error(), "s3cret") || strings.Contains(err.Error(), "%!") {
			t.Errorf("%q: %v", want, err)
		}
	}
}

func TestANewerCookieFileIsFound(t *testing.T) {
	path := write(t, "a\tTRUE\t/\tTRUE\t1000\tn\tv")
	s, err := CookieFile(CookieFileConfig{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	if c, err := s.Obtain(t.Context(), Via{}, nil); err == nil {
		t.Fatal(c)
	}
	if err := os.WriteFile(path, []byte("a\tTRUE\t/\tTRUE\t0\tn\tv"), 0o600); err != nil {
		t.Fatal(err)
	}
	if c, err := s.Obtain(t.Context(), Via{}, nil); err != nil || len(c.Cookies) != 1 {
		t.Error(c, err)
	}
}

func FuzzParseSession(f *testing.F) {
	f.Add([]byte(netscape))
	f.Add([]byte(state))
	f.Add([]byte("\xef\xbb\xbf{}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := parseSession(data)
		if err != nil {
			return
		}
		for _, c := range s.cookies {
			if c.Name == "" || c.Domain == "" || c.Domain == "." || c.Expires.After(time.Unix(year10000, 0)) {
				t.Errorf("%+v", c)
			}
		}
		jar, err := cookiejar.New(nil)
		if err != nil {
			t.Fatal(err)
		}
		(&Credential{Cookies: s.cookies}).SetCookies(jar)
	})
}
