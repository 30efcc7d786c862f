package framework

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestPrefaceIsFoundInPages(t *testing.T) {
	const page = `<!doctype html><html><head>
<script>var x = "<script id=\"state\">";</script>
<!-- <script id="state">{"n": 0}</script> -->
<script type="Application/LD+JSON"> {"@type": "A", "t": "a<b & \"c\""} </script>
<script id=other data-id="state">[]</script>
<script type='application/ld+json'>{"@type": "B"}</script></head>
<body><div id="state">{"n": 9}</div><script id="state" type="application/json">{"n": 1}</script><script id="empty"></script><script id="code">let a</script>`
	for _, test := range []struct{ page, selects, want, reason string }{
		{` {"a": 1}` + "\n", "", `{"a": 1}`, ""},
		{`[1]`, "json", `[1]`, ""},
		{page, "json", "", "not JSON"},
		{page, "script#state", `{"n": 1}`, ""},
		{page, "script#other", `[]`, ""},
		{page, "script#none", "", "no script#none"},
		{page, "script#empty", "", "no script#empty"},
		{page, "script#code", "", "not JSON"},
		{page, "json-ld", `[ {"@type": "A", "t": "a<b & \"c\""} ,{"@type": "B"}]`, ""},
		{`<script type="application/ld+json">{}</script>`, "json-ld", `{}`, ""},
		{`<p>`, "json-ld", "", "no json-ld"},
		{"[" + strings.Repeat(" ", maxPreface) + "]", "json", "", "longer than"},
		{`<script id="state">{"n": 1}`, "script#state", `{"n": 1}`, ""},
	} {
		got, reason := (&Preface{Select: test.selects}).find([]byte(test.page))
		if string(got) != test.want || (reason == "") != (test.reason == "") || !strings.Contains(reason, test.reason) {
			t.Errorf("%s of %.40s: %q, %q; want %q, %q", test.selects, test.page, got, reason, test.want, test.reason)
		}
	}
}

func TestPrefaceComesOnceAConnection(t *testing.T) {
	pages, streams := 0, 0
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Key") != "" || r.Header.Get("Cookie") != "" {
			t.Errorf("another host got %v", r.Header)
		}
		fmt.Fprint(w, `{"from": "another host"}`)
	}))
	defer other.Close()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Key") != "k" {
			t.Errorf("%s without the header of the stream", r.URL.Path)
		}
		if strings.HasPrefix(r.Header.Get("Accept"), "text/html") {
			pages++
			if r.Method != "GET" || r.Header.Get("Last-Event-ID") != "" {
				t.Errorf("the page was asked for by %s %v", r.Method, r.Header)
			}
			fmt.Fprintf(w, `<script id="state">{"page": %d}</script>`, pages)
			return
		}
		streams++
		if streams > 1 && r.Header.Get("Last-Event-ID") != fmt.Sprint(2*(streams-1)) {
			t.Errorf("resumed from %q", r.Header.Get("Last-Event-ID"))
		}
		if streams == 4 {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		eventStream(w, fmt.Sprintf("id: %d\nevent: kept\ndata: {}\n\nid: %d\nevent: kept\ndata: {}\n\nevent: other\ndata: {}\n\n", 2*streams-1, 2*streams))
	}))
	defer s.Close()
	target := &SSE{
		Request: Request{URL: s.URL + "/feed", Method: "POST", Body: "b", Header: map[string]string{"X-Key": "k"}, Cookies: map[string]string{"c": "1"}},
		Options: SSEOptions{Preface: &Preface{Select: "script#state"}},
	}
	got, account, err := hold(t, &Stream{Target: target, Identities: anonymous(t, s), Types: []string{"kept"}}, 0)
	var lines []string
	for _, ev := range got {
		lines = append(lines, fmt.Sprintf("%s %s %s %s", ev.Type, ev.ID, ev.Cursor, ev.Data))
	}
	want := []string{
		`preface   {"page": 1}`, `kept 1 1 {}`, `kept 2 2 {}`,
		`preface  2 {"page": 2}`, `kept 3 3 {}`, `kept 4 4 {}`,
		`preface  4 {"page": 3}`, `kept 5 5 {}`, `kept 6 6 {}`,
	}
	if err != nil || !slices.Equal(lines, want) {
		t.Errorf("%v\n%s\nwant\n%s", err, strings.Join(lines, "\n"), strings.Join(want, "\n"))
	}
	if account.Events != 9 || account.FirstID != "1" {
		t.Errorf("the account is %+v", account)
	}

	target.Options.Preface = &Preface{URL: other.URL}
	streams = 0
	got, _, err = hold(t, &Stream{Target: target, Identities: anonymous(t, s)}, 1)
	if err != nil || len(got) != 1 || string(got[0].Data) != `{"from": "another host"}` {
		t.Errorf("%q, %v", data(got), err)
	}
}

func TestAMissingPrefaceIsAWrongAnswer(t *testing.T) {
	for _, status := range []int{200, 403} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/feed" {
				t.Error("the feed was opened without its preface")
			}
			w.WriteHeader(status)
			fmt.Fprint(w, "<form>Please log in</form>")
		}))
		target := &SSE{Request: Request{URL: s.URL + "/feed"}, Options: SSEOptions{
			Preface: &Preface{URL: s.URL + "/page?token=s3cret", Select: "script#state"},
			Answers: map[int]Verdict{status: {Remedy: Fail}},
		}}
		_, _, err := hold(t, &Stream{Target: target, Identities: anonymous(t, s)}, 0)
		if e, ok := errors.AsType[*HTTPError](err); !ok || e.Status != status || !strings.Contains(string(e.Body), "log in") || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%d: error is %v", status, err)
		}
		s.Close()
	}
}

// TestPrefacesDoNotTouchTheSeam has a replaying site whose events have no
// other proof than their numbers.
func TestPrefacesDoNotTouchTheSeam(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &site{every: time.Second, start: time.Now(), replay: true}
		s.script = func(n int, _ Cursor) step { return step{events: 10} }
		target := TargetFunc(func(ctx context.Context, sess *Session, from Cursor) (Connection, error) {
			c, err := s.Open(ctx, sess, from)
			return &prefaced{Connection: c}, err
		})
		got, account, err := hold(t, &Stream{Target: target, Limits: quickly()}, 44)
		if err != nil || len(account.Gaps) != 0 || account.Coverage != 1 || account.Events != 44 {
			t.Errorf("%v, %d events, gaps %+v", err, account.Events, account.Gaps)
		}
		if p := got[11]; p.Type != PrefaceType || p.Cursor != "10" {
			t.Errorf("event 12 is %+v", p)
		}
	})
}

// prefaced is a connection with a preface before its events.
type prefaced struct {
	Connection
	told bool
}

func (p *prefaced) Next(ev *Event) error {
	if !p.told {
		p.told = true
		*ev = Event{Type: PrefaceType, Data: []byte("{}"), Time: time.Now(), Cursor: "99", Aside: true}
		return nil
	}
	return p.Connection.Next(ev)
}
