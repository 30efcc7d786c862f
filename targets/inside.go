package targets

import (
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/holdline/scrape/auth"
	"github.com/holdline/scrape/framework"
)

// InPage says how the stream is read inside a browser; nil where it is not.
func (st *Stream) InPage() *auth.Page {
	if st.Transport != "browser" {
		return nil
	}
	return &auth.Page{URL: st.Page, EventSource: st.byEventSource(), Types: st.Types}
}

func (st *Stream) byEventSource() bool { return st.Transport == "browser" && st.Via == "eventsource" }

// checkInside finds what a page of a browser cannot do.
func (st *Stream) checkInside(s *section) {
	if s.bad["transport"] || s.bad["via"] {
		return
	}
	if st.Transport != "browser" {
		for _, key := range []string{"via", "page"} {
			if s.has(key) {
				s.wrong(key, key+" is for streams that are read inside a browser", "write transport: browser, or remove "+key)
			}
		}
		return
	}
	if s.good("page") {
		if message, remedy := checkURL("page", st.Page); message != "" {
			s.wrong("page", message, remedy)
		} else if u, err := url.Parse(st.Page); err != nil || u.Scheme != "http" && u.Scheme != "https" {
			s.wrong("page", `"page" is neither http nor https`, "")
		}
	}
	if s.has("cookies") {
		s.wrong("cookies", "a browser sends its own cookies", "put them into auth, as cookies")
	}
	for _, name := range keysOf(st.Headers) {
		if auth.BrowsersOwn(name) {
			s.wrong("headers", "the header "+http.CanonicalHeaderKey(name)+" is the browser's own affair", "remove it")
		}
	}
	if st.byEventSource() {
		st.checkEventSource(s)
	}
}

// checkEventSource finds what an EventSource cannot do.
func (st *Stream) checkEventSource(s *section) {
	const other = "remove it, or write via: fetch"
	for _, key := range []string{"headers", "body", "body_file"} {
		if s.has(key) {
			s.wrong(key, "an EventSource sends no "+strings.TrimSuffix(key, "_file"), other)
		}
	}
	if s.good("method") && st.Method != http.MethodGet {
		s.wrong("method", "an EventSource can only GET", other)
	}
	if s.good("wire") && st.Wire == framework.WireNDJSON {
		s.wrong("wire", "an EventSource reads Server-Sent Events only", other)
	}
	switch {
	case !s.has("resume"):
		// It has no way to say where it was, and must not be thought to.
		st.Resume = ResumeBy{From: "none", As: "header"}
		if s.has("from") {
			s.wrong("from", "an EventSource cannot say in a header where to begin", "say with resume: {as: query} how the cursor is sent")
		}
	case s.good("resume") && st.Resume.As != "query" && st.Resume.From != "none":
		s.wrong("resume", "an EventSource cannot send the cursor in a header", "write as: query and the name of the parameter, or from: none, or via: fetch")
	}
}

// checkEventSources finds credentials that an EventSource cannot send.
func (f *File) checkEventSources(s *section) {
	if f.Auth == nil || s.bad["auth"] {
		return
	}
	i := slices.IndexFunc(f.Streams, func(st Stream) bool { return st.byEventSource() })
	if i < 0 {
		return
	}
	for _, c := range f.Auth.Parts() {
		if len(c.Headers) > 0 || c.Basic != nil || !c.Bearer.IsZero() || c.OAuth2 != nil ||
			c.Login != nil && len(c.Login.Headers) > 0 || c.Browser != nil && len(c.Browser.Headers) > 0 || c.CookieFile != nil && len(c.CookieFile.Headers) > 0 {
			f.Streams[i].section.wrong("via", "an EventSource sends no headers, and auth brings some", "write via: fetch, or leave the headers away")
			return
		}
	}
}
