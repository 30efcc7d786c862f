package framework

import (
	"context"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// Request is an HTTP request as data.
type Request struct {
	// URL is required. Method is GET where it is empty.
	URL    string
	Method string
	// Query is added to the URL's own.
	Query  map[string]string
	Header map[string]string
	// Cookies are sent with this request, besides those of the identity.
	Cookies map[string]string
	Body    string
}

// New makes the request. Its body can be sent again after a redirect.
func (r Request) New(ctx context.Context) (*http.Request, error) {
	method := r.Method
	if method == "" {
		method = http.MethodGet
	}
	var req *http.Request
	var err error
	if r.Body == "" {
		req, err = http.NewRequestWithContext(ctx, method, r.URL, nil)
	} else {
		req, err = http.NewRequestWithContext(ctx, method, r.URL, strings.NewReader(r.Body))
	}
	if err != nil {
		return nil, err
	}
	if len(r.Query) > 0 {
		q := req.URL.Query()
		for k, v := range r.Query {
			q.Set(k, v)
		}
		req.URL.RawQuery = q.Encode()
	}
	for k, v := range r.Header {
		req.Header.Set(k, v)
		if strings.EqualFold(k, "Host") {
			req.Host = v
		}
	}
	if len(r.Cookies) > 0 {
		var pairs []string
		if own := req.Header.Get("Cookie"); own != "" {
			pairs = append(pairs, own)
		}
		for _, name := range slices.Sorted(maps.Keys(r.Cookies)) {
			pairs = append(pairs, name+"="+r.Cookies[name])
		}
		req.Header.Set("Cookie", strings.Join(pairs, "; "))
	}
	return req, nil
}

// Host is "host:port" of the URL, with the scheme's port where it names none;
// empty when the URL is none.
func (r Request) Host() string {
	u, err := url.Parse(r.URL)
	if err != nil || u.Host == "" {
		return ""
	}
	if u.Port() == "" {
		if u.Scheme == "https" {
			return u.Host + ":443"
		}
		return u.Host + ":80"
	}
	return u.Host
}

// SSE is the built-in [Target]: it reads the Server-Sent Events of a request
// and resumes by Last-Event-ID.
type SSE struct {
	Request Request
	Options SSEOptions
}

// Open implements [Target].
func (t *SSE) Open(ctx context.Context, s *Session, from Cursor) (Connection, error) {
	req, err := t.Request.New(ctx)
	if err != nil {
		return nil, err
	}
	return OpenSSE(ctx, s, req, from, t.Options)
}
