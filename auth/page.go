package auth

import (
	"fmt"
	"net/http"
	"strings"
)

// Browser sends requests inside a real browser, for what does not move out of
// it. auth/browser has one. Its methods may be called from any number of
// goroutines.
type Browser interface {
	// Inside returns the place in the browser of an identity: it leaves through
	// via, and has the credential's cookies, or the page itself that the login
	// was made in. The credential is nil for an anonymous identity. Nothing is
	// started before the first request.
	Inside(via Via, c *Credential) Inside
}

// Inside is the place of one identity in a browser.
type Inside interface {
	// Transport sends requests from a page as it says. Cookies and all that
	// makes a browser recognised are the browser's own, and it follows
	// redirects by itself. Where the site refuses what could be restored of a
	// login, the error is a *LostError.
	Transport(p Page) http.RoundTripper
	// Close ends the answers that are still read, and gives the pages back. It
	// does not wait for the browser. It is called once.
	Close()
}

// Page says how a request is sent inside a browser.
type Page struct {
	// URL is the page that it is sent from. Where it is empty: the page that a
	// login has left open, if that is of the same origin as the request, and
	// otherwise the root of that origin.
	URL string
	// EventSource reads the answer with the page's EventSource instead of
	// fetch, where the request accepts text/event-stream. It sends no header and
	// no body, can only GET, and tells nothing of comments. What comes out is a
	// stream of Server-Sent Events again.
	EventSource bool
	// Types are the events that an EventSource listens to besides "message".
	Types []string
}

// LostError says that a credential does not open the site any more although its
// end has not come, and that another login through the same exit is the cure:
// the browser that it was bound to is gone.
type LostError struct {
	// Status is what the site answered.
	Status int
}

// Error says so.
func (e *LostError) Error() string {
	return fmt.Sprintf("the site answered %d to a browser that has the cookies of the login and not the page it was made in", e.Status)
}

// BrowsersOwn tells whether a header is the browser's own affair in requests
// that a page sends (Fetch, section 2.2.2): such a header is left away.
func BrowsersOwn(name string) bool {
	switch name = http.CanonicalHeaderKey(name); name {
	case "Accept-Charset", "Accept-Encoding", "Access-Control-Request-Headers", "Access-Control-Request-Method", "Cache-Control",
		"Connection", "Content-Length", "Cookie", "Cookie2", "Date", "Dnt", "Expect", "Host", "Keep-Alive", "Origin", "Referer",
		"Set-Cookie", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "User-Agent", "Via":
		return true
	}
	return strings.HasPrefix(name, "Proxy-") || strings.HasPrefix(name, "Sec-")
}
