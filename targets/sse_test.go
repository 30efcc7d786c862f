package targets

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdline/scrape/framework"
)

func TestSSESendsWhatTheFileSays(t *testing.T) {
	type request struct{ method, query, key, lastID, body string }
	requests := make(chan request, 1)
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		requests <- request{r.Method, r.URL.RawQuery, r.Header.Get("X-Key"), r.Header.Get("Last-Event-ID"), string(body)}
		w.Header().Set("Content-Type", "text/event-stream")
		fmt.Fprint(w, "id: 8\nevent: price\ndata: 1\n\ndata: [DONE]\n\n")
	}))
	defer site.Close()

	f := mustLoad(t, `
streams:
  - name: a
    url: `+site.URL+`/feed?x=1
    method: POST
    query: {key: "${env:PASSWORD}"}
    headers: {X-Key: "${env:PASSWORD}"}
    body: hello
    from: 7
    done: "[DONE]"
`)
	st := f.Streams[0]
	stream := &framework.Stream{Name: f.Name + "/" + st.Name, Target: f.Target, From: framework.Cursor(st.From)}
	var got []string
	for ev, err := range stream.Events(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, ev.Type+" "+string(ev.ID)+" "+string(ev.Data))
	}
	if len(got) != 1 || got[0] != "price 8 1" {
		t.Errorf("events are %q", got)
	}
	want := request{"POST", "key=" + url.QueryEscape(testEnv["PASSWORD"]) + "&x=1", testEnv["PASSWORD"], "7", "hello"}
	if r := <-requests; r != want {
		t.Errorf("the request was %+v, want %+v", r, want)
	}
}

func TestSSEErrorsHideTheQuery(t *testing.T) {
	// Nobody answers there, not even by chance: the system gives no such port.
	f := mustLoad(t, "streams: [{name: a, url: 'http://127.0.0.1:1/feed', query: {key: '${env:PASSWORD}'}}]\n")
	_, err := f.Target.Open(t.Context(), &framework.Session{Client: http.DefaultClient, Stream: "t/a"}, "")
	if err == nil || strings.Contains(err.Error(), "s3cret") || !strings.Contains(err.Error(), "/feed") {
		t.Errorf("error is %v", err)
	}
	if _, ok := errors.AsType[*net.OpError](err); !ok {
		t.Errorf("the chain is cut: %v", err)
	}
	if _, err := f.Target.Open(t.Context(), &framework.Session{Stream: "t/b"}, ""); err == nil {
		t.Error("a stream that is not in the file was opened")
	}
}

func TestRequestsSayEverythingTheFileSays(t *testing.T) {
	var n int
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n++
		body, _ := io.ReadAll(r.Body)
		switch {
		case r.URL.Path == "/page":
			if r.Header.Get("Cookie") != "session="+testEnv["DOLLAR"] {
				t.Errorf("the page was asked for with the cookies %q", r.Header.Get("Cookie"))
			}
			fmt.Fprint(w, `<script id="state">{"n": 0}</script>`)
		case n == 2:
			w.WriteHeader(http.StatusTeapot)
		case n == 4:
			after := r.URL.Query().Get("starting_after")
			if r.Method != "POST" || string(body) != "{\"model\": \"m\", \"stream\": true}\n" || after != "41" || r.Header.Get("Last-Event-ID") != "" {
				t.Errorf("%s %q, after %q, %v", r.Method, body, after, r.Header)
			}
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprintln(w, "{}\nno JSON\n{\"n\": 42}")
		default:
			w.WriteHeader(http.StatusGone)
		}
	}))
	defer site.Close()
	text, err := os.ReadFile("testdata/body.json")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "body.json"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "t.yaml")
	err = os.WriteFile(path, []byte(`
streams:
  - name: a
    url: `+site.URL+`/feed
    method: POST
    body_file: body.json
    cookies: {session: "${env:DOLLAR}"}
    wire: ndjson
    from: 41
    resume: {from: "json:n", as: query, name: starting_after}
    preface: {url: `+site.URL+`/page, select: "script#state"}
    answers: {418: {remedy: reconnect, wait: 1ms}, 410: stop}
`), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	f, err := Load(path, testOptions(t))
	if err != nil {
		t.Fatal(err)
	}
	stream := &framework.Stream{Name: "t/a", Target: f.Target, From: "41", MinWait: 1}
	var got []string
	for ev, err := range stream.Events(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, ev.Type+" "+string(ev.Cursor)+" "+string(ev.Data))
	}
	// Connections that are refused deliver no preface.
	want := []string{`preface 41 {"n": 0}`, `message 41 {}`, `message 42 {"n": 42}`}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q after %d requests", got, want, n)
	}
}

func TestOptionsOfTheStream(t *testing.T) {
	f := mustLoad(t, `
streams:
  - name: a
    url: http://127.0.0.1/
    payload: base64
    on_too_large: fail
    max_event: 5
    wire: sse
    resume: {from: none}
    answers: {404: fail, 403: rotate, 401: reauthenticate, 200: {remedy: reconnect, wait: 2m}, 204: stop, 410: forget}
  - {name: b, url: "http://127.0.0.1/"}
`)
	o := f.Streams[0].request().Options
	if !o.Base64 || !o.FailTooLarge || o.MaxEvent != 5 || o.Wire != framework.WireSSE || o.Resume.From != "none" || o.Preface != nil {
		t.Errorf("options are %+v", o)
	}
	want := map[int]framework.Verdict{
		404: {Remedy: framework.Fail}, 403: {Remedy: framework.Rotate}, 401: {Remedy: framework.Reauthenticate},
		200: {Remedy: framework.Reconnect, Wait: 2 * time.Minute}, 204: {Remedy: framework.Stop}, 410: {Remedy: framework.Forget},
	}
	if !maps.Equal(o.Answers, want) {
		t.Errorf("answers are %+v", o.Answers)
	}
	if o := f.Streams[1].request().Options; o.Base64 || o.FailTooLarge || o.Wire != framework.WireAuto || o.Resume != (framework.ResumeBy{From: "id", As: "header"}) || len(o.Answers) != 0 {
		t.Errorf("the defaults are %+v", o)
	}
}
