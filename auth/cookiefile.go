package auth

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/holdline/scrape/internal/template"
)

// maxCookieFile is far more than any browser exports.
const maxCookieFile = 16 << 20

// CookieFileConfig says which session a person has exported from a browser. Path
// is required.
type CookieFileConfig struct {
	// Path is a file of cookies in the Netscape format, as curl and browser
	// extensions write it, or a storage state of Playwright. It is read anew
	// whenever the credential is renewed.
	Path string
	// Header is what is handed on besides the cookies: header names and texts
	// with ${storage:KEY} and ${cookie:NAME}. Storage is in storage states
	// only.
	Header map[string]string
	// Hosts are the hosts whose storage is looked at; none means all.
	Hosts []string
	// ExpiresWith is the cookie that the session ends with, besides those that
	// Header refers to. Without any the end is not known.
	ExpiresWith string
}

// CookieFile is the Source of a session that a person exported from a browser.
// A file that is missing, or whose session has ended, is a *LoginError of
// FaultPerson.
func CookieFile(config CookieFileConfig) (Source, error) {
	f := cookieFile{config: config}
	if config.ExpiresWith != "" {
		f.matter = append(f.matter, config.ExpiresWith)
	}
	for name, text := range config.Header {
		refs, err := template.References(text, "storage", "cookie")
		if err != nil {
			return nil, fmt.Errorf("header %s: %w", name, err)
		}
		for _, ref := range refs {
			if ref[0] == "cookie" {
				f.matter = append(f.matter, ref[1])
			}
		}
	}
	return f, nil
}

type cookieFile struct {
	config CookieFileConfig
	matter []string // names of the cookies that the end depends on
}

func (cookieFile) Bound() Binding { return BoundToNone }

func (f cookieFile) Obtain(_ context.Context, _ Via, old *Credential) (*Credential, error) {
	needed := func(format string, args ...any) error {
		return &LoginError{Fault: FaultPerson, Reason: fmt.Sprintf("%s: ", f.config.Path) + fmt.Sprintf(format, args...) + ": log in with your browser and export the session anew"}
	}
	data, err := readLimited(f.config.Path)
	if err != nil {
		return nil, needed("%v", reason(err))
	}
	session, err := parseSession(data)
	if err != nil {
		return nil, needed("%v", err)
	}
	now := time.Now()
	c := &Credential{Header: http.Header{}, Skew: skewed(old)}
	token := func(text string) {
		end, ok := JWTExpiry(text)
		switch {
		case !ok:
		case old == nil && !now.Before(end):
			c.ended = Earlier(c.ended, end) // the site has not been asked yet
		default:
			c.Expires = Earlier(c.Expires, end.Add(-c.Skew))
		}
	}
	for _, cookie := range session.cookies {
		matters := slices.Contains(f.matter, cookie.Name)
		if ended := !cookie.Expires.IsZero() && !now.Before(cookie.Expires); ended && matters {
			return nil, needed("the cookie %s ended at %s", cookie.Name, cookie.Expires.Format(time.RFC3339))
		} else if ended {
			continue
		}
		c.Cookies = append(c.Cookies, cookie)
		if matters {
			c.Expires = Earlier(c.Expires, cookie.Expires)
			token(cookie.Value)
		}
	}
	if len(c.Cookies) == 0 && len(session.cookies) > 0 {
		return nil, needed("all of its %d cookies have ended", len(session.cookies))
	}
	for name, text := range f.config.Header {
		value, err := template.Expand(text, func(kind, name string) (string, error) {
			value := ""
			if kind == "storage" {
				value = session.stored(name, f.config.Hosts)
				token(value)
			} else if i := slices.IndexFunc(c.Cookies, func(c *http.Cookie) bool { return c.Name == name }); i >= 0 {
				value = c.Cookies[i].Value
			}
			if value == "" {
				return "", needed("there is no %s %s in it", kind, name)
			}
			return value, nil
		})
		if err != nil {
			return nil, err
		}
		c.Header.Set(name, value)
	}
	if f.config.ExpiresWith != "" && !slices.ContainsFunc(c.Cookies, func(c *http.Cookie) bool { return c.Name == f.config.ExpiresWith }) {
		return nil, needed("there is no cookie %s in it", f.config.ExpiresWith)
	}
	if c.Expired(now) {
		return nil, needed("its session ended at %s%s", c.Expires.Add(c.Skew).Format(time.RFC3339), byClock(c.Skew))
	}
	return c, nil
}

// Earlier returns the earlier of two ends, of which a zero one is not known.
func Earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// reason is an error of the file system without the path, which is said anyway.
func reason(err error) error {
	if path := (*fs.PathError)(nil); errors.As(err, &path) {
		return path.Err
	}
	return err
}

func readLimited(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxCookieFile+1))
	if err == nil && len(data) > maxCookieFile {
		err = fmt.Errorf("it is larger than %d bytes", maxCookieFile)
	}
	return data, err
}

// session is what a browser held.
type session struct {
	cookies []*http.Cookie
	origins []origin
}

type origin struct {
	Origin       string `json:"origin"`
	LocalStorage []struct {
		Name  string `json:"name"`
		Value string `json:"value"`
	} `json:"localStorage"`
}

// stored is the value of a key in the storage of the hosts.
func (s *session) stored(key string, hosts []string) string {
	for _, o := range s.origins {
		u, err := url.Parse(o.Origin)
		if err != nil || len(hosts) > 0 && !slices.ContainsFunc(hosts, func(h string) bool {
			return strings.EqualFold(h, u.Hostname()) || strings.EqualFold(h, u.Host)
		}) {
			continue
		}
		for _, item := range o.LocalStorage {
			if item.Name == key {
				return item.Value
			}
		}
	}
	return ""
}

// parseSession reads a storage state or a Netscape cookie file. Errors quote no
// values.
func parseSession(data []byte) (*session, error) {
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf")) // a byte order mark
	switch trimmed := bytes.TrimSpace(data); {
	case len(trimmed) == 0:
		return nil, errors.New("it is empty")
	case trimmed[0] == '{':
		return parseState(trimmed)
	}
	cookies, err := parseNetscape(data)
	return &session{cookies: cookies}, err
}

// parseState reads what Playwright's storageState() writes.
func parseState(data []byte) (*session, error) {
	var state struct {
		Cookies []struct {
			Name, Value, Domain, Path string
			Expires                   float64
			HTTPOnly, Secure          bool
		} `json:"cookies"`
		Origins []origin `json:"origins"`
	}
	if err := json.Unmarshal(data, &state); err != nil {
		// The error may quote a value.
		return nil, errors.New("it is no storage state as Playwright writes it")
	}
	s := &session{origins: state.Origins}
	for i, c := range state.Cookies {
		cookie := &http.Cookie{Name: c.Name, Value: c.Value, Domain: c.Domain, Path: c.Path, HttpOnly: c.HTTPOnly, Secure: c.Secure}
		if c.Expires > 0 && c.Expires < year10000 {
			cookie.Expires = time.UnixMilli(int64(c.Expires * 1000))
		}
		if c.Name == "" || c.Domain == "" {
			return nil, fmt.Errorf("cookie %d has no name or no domain", i+1)
		}
		s.cookies = append(s.cookies, cookie)
	}
	if len(s.cookies) == 0 && len(s.origins) == 0 {
		return nil, errors.New("it is a storage state without cookies and storage")
	}
	return s, nil
}

// parseNetscape reads cookies.txt: domain, whether the hosts below it get the
// cookie, path, secure, end, name and value, parted by tabs. #HttpOnly_ before
// the domain is curl's.
func parseNetscape(data []byte) (cookies []*http.Cookie, err error) {
	lines := bufio.NewScanner(bytes.NewReader(data))
	lines.Buffer(nil, maxCookieFile)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimRight(lines.Text(), "\r")
		line, httpOnly := strings.CutPrefix(line, "#HttpOnly_")
		if strings.TrimSpace(line) == "" || line[0] == '#' {
			continue
		}
		fields := strings.Split(line, "\t")
		if len(fields) == 6 {
			fields = append(fields, "") // a cookie without a value
		}
		if len(fields) != 7 {
			return nil, fmt.Errorf("line %d has %d fields parted by tabs, a cookie file has 7", n, len(fields))
		}
		end, err := strconv.ParseFloat(fields[4], 64)
		if err != nil || fields[5] == "" || strings.Trim(fields[0], ".") == "" {
			return nil, fmt.Errorf("line %d has no domain, no name, or an end that is no number", n)
		}
		c := &http.Cookie{
			Name: fields[5], Value: fields[6], Path: fields[2],
			Domain: strings.TrimLeft(fields[0], "."), Secure: fields[3] == "TRUE", HttpOnly: httpOnly,
		}
		if fields[1] == "TRUE" {
			c.Domain = "." + c.Domain
		}
		if end > 0 && end < year10000 {
			c.Expires = time.Unix(int64(end), 0)
		}
		cookies = append(cookies, c)
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if len(cookies) == 0 {
		return nil, errors.New("there are no cookies in it")
	}
	return cookies, nil
}
