package login

import (
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/publicsuffix"
)

// jar is a cookie jar that remembers where its cookies belong and when they
// end, which cookiejar keeps to itself.
type jar struct {
	*cookiejar.Jar
	mu   sync.Mutex
	all  []*http.Cookie // in the order in which they were set
	site []*http.Cookie // those of all whose end is by the site's clock
}

func newJar() (*jar, error) {
	inner, err := cookiejar.New(&cookiejar.Options{PublicSuffixList: publicsuffix.List})
	return &jar{Jar: inner}, err
}

// SetCookies is called by http.Client.
func (j *jar) SetCookies(u *url.URL, cookies []*http.Cookie) {
	j.Jar.SetCookies(u, cookies)
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, set := range cookies {
		c := *set
		host := strings.ToLower(u.Hostname())
		switch domain := strings.ToLower(strings.TrimPrefix(c.Domain, ".")); {
		case domain == "" || domain == host && strings.Trim(host, "0123456789.") == "":
			c.Domain = host
		case domain == host || strings.HasSuffix(host, "."+domain):
			c.Domain = "." + domain
		default:
			continue // for another site: no jar takes it
		}
		if c.Path == "" || c.Path[0] != '/' { // RFC 6265, section 5.1.4
			c.Path = u.Path[:max(0, strings.LastIndexByte(u.Path, '/'))]
			if c.Path == "" {
				c.Path = "/"
			}
		}
		j.drop(&c)
		switch {
		case c.MaxAge < 0:
			continue
		case c.MaxAge > 0:
			c.Expires = time.Now().Add(time.Duration(c.MaxAge) * time.Second)
			c.MaxAge = 0
		case !c.Expires.IsZero():
			j.site = append(j.site, &c)
		}
		j.all = append(j.all, &c)
	}
}

// drop removes the cookie that c replaces. j.mu is held.
func (j *jar) drop(c *http.Cookie) {
	for i, o := range j.all {
		if o.Name == c.Name && o.Domain == c.Domain && o.Path == c.Path {
			j.all = append(j.all[:i:i], j.all[i+1:]...)
			return
		}
	}
}

// reckon has the ends of cookies read by the site's clock, which is skew ahead.
func (j *jar) reckon(skew time.Duration) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, c := range j.site {
		c.Expires = c.Expires.Add(-skew)
	}
	j.site = nil
}

// cookies lists what is good.
func (j *jar) cookies() (good []*http.Cookie) {
	j.mu.Lock()
	defer j.mu.Unlock()
	now := time.Now()
	for _, c := range j.all {
		if c.Expires.IsZero() || now.Before(c.Expires) {
			good = append(good, c)
		}
	}
	return good
}

// value is that of the cookie set last under a name, "" where there is none.
func (j *jar) value(name string) (value string) {
	for _, c := range j.cookies() {
		if c.Name == name {
			value = c.Value
		}
	}
	return value
}
