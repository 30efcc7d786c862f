//go:build linux

package browser_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/holdline/scrape/auth"
	"github.com/holdline/scrape/auth/browser"
)

// boundSite has a feed for pages alone: its clearance is a number that the page
// of the login keeps in its memory and puts on every request, and that no
// cookie holds.
type boundSite struct {
	*httptest.Server
	events chan string // what the feed sends, as it is on the wire
	asked  chan *http.Request
	open   atomic.Int64 // feeds
	opened atomic.Int64 // all of them so far
}

func newBoundSite(t testing.TB) *boundSite {
	s := &boundSite{events: make(chan string), asked: make(chan *http.Request, 100)}
	var passes sync.Map
	mux := http.NewServeMux()
	page := func(w http.ResponseWriter, text string) {
		w.Header().Set("Content-Type", "text/html")
		// The hardest that a site can ask of those who look into its pages.
		w.Header().Set("Content-Security-Policy", "default-src 'none'; script-src 'nonce-x'; connect-src 'self'; require-trusted-types-for 'script'")
		fmt.Fprint(w, text)
	}
	mux.HandleFunc("GET /login", func(w http.ResponseWriter, r *http.Request) {
		pass := rand.Text()
		passes.Store(pass, true)
		http.SetCookie(w, &http.Cookie{Name: "session", Value: "in", Path: "/"})
		page(w, `<!doctype html><script nonce="x">
			const plain = window.fetch;
			window.fetch = (address, o) => plain(address, {...o, headers: [...o.headers, ["X-Pass", "`+pass+`"]]});
		</script>Welcome`)
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { page(w, "nothing here") })
	mux.HandleFunc("/feed", func(w http.ResponseWriter, r *http.Request) {
		s.asked <- r.Clone(context.Background())
		session, err := r.Cookie("session")
		_, passed := passes.Load(r.Header.Get("X-Pass"))
		if err != nil || session.Value != "in" || !passed || r.Header.Get("Sec-Fetch-Site") != "same-origin" {
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprint(w, "for browsers only")
			return
		}
		s.serve(w, r)
	})
	mux.HandleFunc("GET /public", s.serve)
	mux.HandleFunc("GET /teapot", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Why", "tea")
		w.WriteHeader(http.StatusTeapot)
		fmt.Fprint(w, "I am a teapot")
	})
	s.Server = httptest.NewServer(mux)
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	return s
}

// serve sends what is given to it until that is "end" or the client goes.
func (s *boundSite) serve(w http.ResponseWriter, r *http.Request) {
	s.open.Add(1)
	s.opened.Add(1)
	defer s.open.Add(-1)
	w.Header().Set("Content-Type", "text/event-stream")
	w.(http.Flusher).Flush()
	for {
		select {
		case text := <-s.events:
			switch text {
			case "end":
				return
			case "cut":
				panic(http.ErrAbortHandler)
			}
			io.WriteString(w, text)
			w.(http.Flusher).Flush()
		case <-r.Context().Done():
			return
		}
	}
}

// login logs in and keeps the page.
func (s *boundSite) login(t testing.TB, runtime *browser.Runtime, via auth.Via) (*browser.Source, *auth.Credential) {
	t.Helper()
	source := newSource(t, browser.SourceConfig{
		Runtime: runtime, KeepOpen: true,
		Steps: []browser.Step{{Do: browser.Open, Target: s.URL + "/login"}, {Do: browser.WaitCookie, Target: "session"}},
	})
	c, err := source.Obtain(t.Context(), via, nil)
	if err != nil {
		t.Fatal(err)
	}
	return source, c
}

func get(t testing.TB, in auth.Inside, page auth.Page, address string, header ...string) (*http.Response, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	return (&http.Client{Transport: in.Transport(page)}).Do(req)
}

func mustGet(t testing.TB, in auth.Inside, page auth.Page, address string, header ...string) *http.Response {
	t.Helper()
	resp, err := get(t, in, page, address, header...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}
