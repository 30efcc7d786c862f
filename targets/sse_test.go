package targets

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

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
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close() // nobody answers there
	f := mustLoad(t, "streams: [{name: a, url: 'http://"+ln.Addr().String()+"/feed', query: {key: '${env:PASSWORD}'}}]\n")
	_, err = f.Target.Open(t.Context(), &framework.Session{Client: http.DefaultClient, Stream: "t/a"}, "")
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
