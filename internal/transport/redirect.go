package transport

import (
	"net/http"
	"net/url"
	"strings"
	"time"
)

// MaxRedirects is how many redirects in a row are followed.
const MaxRedirects = 10

// redirectTimeout bounds the wait for the end of an answer that is a redirect.
const redirectTimeout = 5 * time.Second

// harmless headers say what is asked for and not who asks: they follow a
// redirect to another host. The Referer that net/http adds is none of them: it
// holds the whole query of the address before.
var harmless = map[string]bool{
	"Accept": true, "Accept-Encoding": true, "Accept-Language": true, "Cache-Control": true,
	"Content-Language": true, "Content-Type": true, "Last-Event-Id": true, "User-Agent": true,
}

// CheckRedirect is the policy for http.Client: at most [MaxRedirects], never
// from https to http, and beyond the first request's own site without any
// header that may be a secret, even if a later one leads back. A redirect that
// is not followed is itself the answer. One that is followed is read for a few
// seconds at most.
func CheckRedirect(req *http.Request, via []*http.Request) error {
	if len(via) > MaxRedirects || req.URL.Scheme != "https" && via[len(via)-1].URL.Scheme == "https" {
		return http.ErrUseLastResponse
	}
	if req.Response != nil { // http.Client reads it, so that its connection can be used again
		time.AfterFunc(redirectTimeout, func() { req.Response.Body.Close() })
	}
	foreign := false
	for _, r := range append(via[1:len(via):len(via)], req) {
		foreign = foreign || !SameSite(via[0].URL, r.URL)
	}
	if foreign {
		for name := range req.Header {
			if !harmless[name] {
				delete(req.Header, name)
			}
		}
	}
	return nil
}

// SameSite tells whether what is meant for one address may be sent to the
// other: it has the same host and port, or moved from http to https on the
// ports that need no name.
func SameSite(from, to *url.URL) bool {
	if !strings.EqualFold(from.Hostname(), to.Hostname()) {
		return false
	}
	upgraded := from.Scheme == "http" && to.Scheme == "https" && port(from) == "80" && port(to) == "443"
	return upgraded || port(from) == port(to)
}

func port(u *url.URL) string {
	switch p := u.Port(); {
	case p != "":
		return p
	case u.Scheme == "https":
		return "443"
	default:
		return "80"
	}
}
