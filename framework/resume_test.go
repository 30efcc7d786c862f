package framework

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestCursors has a site that replays from a cursor in its own manner and ends
// every answer after two events.
func TestCursors(t *testing.T) {
	wikimedia := func(n int) string { return fmt.Sprintf(`[{"topic":"a","offset":%d},{"topic":"b","offset":-1}]`, n) }
	for name, test := range map[string]struct {
		resume ResumeBy
		wire   Wire
		event  func(n int) string
		cursor func(r *http.Request) string
		last   func(cursor string) int // the event that the cursor stands for
	}{
		"id in the header": {
			event:  func(n int) string { return fmt.Sprintf("id: %d\ndata: %d\n\n", n, n) },
			cursor: func(r *http.Request) string { return r.Header.Get("Last-Event-ID") },
			last:   cursorNumber,
		},
		"JSON array as id": {
			event:  func(n int) string { return fmt.Sprintf("id: %s\ndata: %d\n\n", wikimedia(n), n) },
			cursor: func(r *http.Request) string { return r.Header.Get("Last-Event-ID") },
			last: func(c string) int {
				n := cursorNumber(strings.TrimPrefix(strings.SplitN(c, "},", 2)[0], `[{"topic":"a","offset":`))
				if c != wikimedia(n) {
					t.Errorf("the cursor came back as %s", c)
				}
				return n
			},
		},
		"id in the query": {
			resume: ResumeBy{As: "query", Name: "since"},
			event:  func(n int) string { return fmt.Sprintf("id: %d\ndata: %d\n\n", n, n) },
			cursor: func(r *http.Request) string { return r.URL.Query().Get("since") },
			last:   cursorNumber,
		},
		"number in the data, by pointer": {
			resume: ResumeBy{From: "json:/sequence_number", As: "query", Name: "starting_after"},
			// An event without the field leaves the cursor as it was.
			event: func(n int) string {
				return fmt.Sprintf("data: {\"sequence_number\": %d}\n\ndata: {\"of\": %d}\n\n", n, n)
			},
			cursor: func(r *http.Request) string { return r.URL.Query().Get("starting_after") },
			last:   cursorNumber,
		},
		"string in the data, by path, in a header": {
			resume: ResumeBy{From: "json:meta.0.at", Name: "X-After"},
			wire:   WireNDJSON,
			event:  func(n int) string { return fmt.Sprintf("{\"meta\": [{\"at\": \"n-%d\"}]}\n", n) },
			cursor: func(r *http.Request) string { return r.Header.Get("X-After") },
			last:   func(c string) int { return cursorNumber(strings.TrimPrefix(c, "n-")) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			var cursors []string
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				c := test.cursor(r)
				cursors = append(cursors, c)
				if r.URL.Query().Get("x") != "a b" {
					t.Errorf("the query was lost: %s", r.URL.RawQuery)
				}
				from := 5
				if c != "" {
					from = test.last(c)
				}
				if from >= 11 {
					w.WriteHeader(http.StatusNoContent)
					return
				}
				eventStream(w, test.event(from+1)+test.event(from+2))
			}))
			defer s.Close()
			got, account, err := hold(t, &Stream{
				Target:     &SSE{Request: Request{URL: s.URL + "?x=a+b"}, Options: SSEOptions{Wire: test.wire, Resume: test.resume}},
				Identities: anonymous(t, s),
			}, 0)
			if err != nil || len(cursors) != 4 || cursors[0] != "" {
				t.Fatalf("%q, %v, resumed from %q", data(got), err, cursors)
			}
			seen := map[int]bool{}
			for _, ev := range got {
				seen[test.last(string(ev.Cursor))] = true
			}
			if len(seen) != 6 || !seen[6] || !seen[11] || account.DuplicatesDropped != 0 {
				t.Errorf("cursors are %v of %q", seen, data(got))
			}
		})
	}
}

func cursorNumber(s string) int { n, _ := strconv.Atoi(s); return n }

func TestASiteThatCannotResumeIsNotAskedTo(t *testing.T) {
	n := 0
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if id := r.Header.Get("Last-Event-ID"); id != "" {
			t.Errorf("asked for %q", id)
		}
		n++
		eventStream(w, fmt.Sprintf("id: %d\ndata: %d\n\n", n, n))
		if n == 3 {
			fmt.Fprint(w, "data: [DONE]\n\n")
		}
	}))
	defer s.Close()
	got, _, err := hold(t, &Stream{
		From:       "12",
		Target:     &SSE{Request: Request{URL: s.URL}, Options: SSEOptions{Done: "[DONE]", Resume: ResumeBy{From: "none"}}},
		Identities: anonymous(t, s),
	}, 0)
	if err != nil || !slices.Equal(data(got), []string{"1", "2", "3"}) {
		t.Fatalf("%q, %v", data(got), err)
	}
	for _, ev := range got {
		if ev.Cursor != "" || len(ev.ID) == 0 {
			t.Errorf("event %s has the cursor %q and the id %q", ev.Data, ev.Cursor, ev.ID)
		}
	}
}

// The standard lets an id hold what no header can: the stream goes on all the
// same, and says that events may be missing.
func TestACursorThatNoHeaderHolds(t *testing.T) {
	for name, resume := range map[string]ResumeBy{
		"header": {}, "data in a header": {From: "json:at"}, "query": {As: "query", Name: "after"},
	} {
		t.Run(name, func(t *testing.T) {
			var asked []string
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				asked = append(asked, r.Header.Get("Last-Event-ID")+r.URL.Query().Get("after"))
				id := []string{"a", "b\x01", "c", "d"}[len(asked)-1]
				at, err := json.Marshal(id)
				if err != nil {
					t.Error(err)
				}
				eventStream(w, fmt.Sprintf("id: %s\ndata: {\"at\": %s}\n\n", id, at))
				if len(asked) == 4 {
					fmt.Fprint(w, "data: [DONE]\n\n")
				}
			}))
			defer s.Close()
			m := &memoryLog{}
			stream := &Stream{
				Name: "t/s", Target: &SSE{Request: Request{URL: s.URL}, Options: SSEOptions{Done: "[DONE]", Resume: resume}},
				Identities: anonymous(t, s), Limits: quickly(), MinWait: time.Millisecond,
			}
			account := holdUntil(t, stream, m, func(*Event) bool { return false })
			want, odd := []string{"", "a", "", "c"}, uint64(1)
			if resume.As == "query" {
				want[2], odd = "b\x01", 0
			}
			if !slices.Equal(asked, want) || account.Events != 4 || account.OdditiesByKind["cursor that cannot be sent"] != odd {
				t.Errorf("resumed from %q, %d events, oddities %v", asked, account.Events, account.OdditiesByKind)
			}
			wantGaps(t, m.ledger(), "possible eof", "possible eof", "possible eof")
		})
	}
}

func TestACursorFromTheDataIsTheID(t *testing.T) {
	// Replays of what was seen are told apart by it.
	n := 0
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n++
		eventStream(w, "data: {\"n\":1}\n\ndata: {\"n\":2}\n\n")
		if n == 2 {
			fmt.Fprint(w, "data: {\"n\":3}\n\nid: own\ndata: {\"n\":4}\n\ndata: [DONE]\n\n")
		}
	}))
	defer s.Close()
	got, account, err := hold(t, &Stream{
		Target:     &SSE{Request: Request{URL: s.URL}, Options: SSEOptions{Done: "[DONE]", Resume: ResumeBy{From: "json:n"}}},
		Identities: anonymous(t, s),
	}, 0)
	var ids []string
	for _, ev := range got {
		ids = append(ids, string(ev.ID))
	}
	if err != nil || !slices.Equal(ids, []string{"1", "2", "3", "own"}) || account.DuplicatesDropped != 2 {
		t.Errorf("ids %q, %d duplicates, %v", ids, account.DuplicatesDropped, err)
	}
	if got[3].Cursor != "4" {
		t.Errorf("the last cursor is %q", got[3].Cursor)
	}
}

func TestFind(t *testing.T) {
	const doc = ` {"a": {"b/c": [1, {"~": "x\u0041"}]}, "n": 12345678901234567890.50, "o": {"k" : [1, 2]}, "z": null, "t": true, "e": "", "": 5, "s": {"": "deep"}}`
	for _, test := range []struct {
		from, want string // want is empty for nothing
	}{
		{"json:/n", "12345678901234567890.50"},
		{"json:n", "12345678901234567890.50"},
		{"json:/a/b~1c/1/~0", "xA"},
		{"json:a.b/c.0", "1"},
		{"json:/o", `{"k":[1,2]}`},
		{"json:o.k", "[1,2]"},
		{"json:t", "true"},
		{"json:/", "5"},
		{"json:/s/", "deep"},
		{"json:z", ""}, {"json:e", ""}, {"json:q", ""}, {"json:a.q.r", ""}, {"json:n.x", ""}, {"json:o.k.2", ""}, {"json:o.k.-1", ""}, {"json:o.k.x", ""}, {"json:t.u", ""},
	} {
		r, err := ResumeBy{From: test.from}.parse()
		if err != nil {
			t.Errorf("%s: %v", test.from, err)
			continue
		}
		got, ok := find([]byte(doc), r.path)
		if string(got) != test.want || ok != (test.want != "") {
			t.Errorf("%s is %q, %v; want %q", test.from, got, ok, test.want)
		}
	}
	for _, broken := range []string{"", " ", "{", `{"n":`, "n", `{"n": 1} {"n": 2}`, "[", `"`} {
		if got, ok := find([]byte(broken), []string{"n"}); ok {
			t.Errorf("found %q in %q", got, broken)
		}
	}
}

func TestResumeByIsChecked(t *testing.T) {
	for r, want := range map[ResumeBy]string{
		{}:                                       "",
		{From: "id", As: "header"}:               "",
		{From: "json:/", As: "query", Name: "n"}: "",
		{From: "sequence"}:                       "from the data",
		{From: "json:"}:                          "empty",
		{From: "json:a..b"}:                      "empty part",
		{As: "query"}:                            "name of the parameter",
		{As: "body"}:                             "not as",
	} {
		err := r.Check()
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", r, err, want)
		}
	}
}

// FuzzFind compares with what encoding/json makes of the document.
func FuzzFind(f *testing.F) {
	f.Add([]byte(`{"a": {"b": [1, "x"]}}`), "json:/a/b/1")
	f.Add([]byte(`[null, {"": 1e5}]`), "json:1.x")
	for _, doc := range []string{`{"a":"\ud800\u0041"}`, "{\"a\":\"\xff\"}", `{"\u0061":"x\/\b"}`, `{"a":1,"a":2}`, `{"a":[ ],"a":{ }}`, "{\"\xff\":1}"} {
		f.Add([]byte(doc), "json:a")
		f.Add([]byte(doc), "json:\uFFFD")
	}
	f.Fuzz(func(t *testing.T, doc []byte, from string) {
		r, err := ResumeBy{From: from}.parse()
		if err != nil || r.path == nil {
			return
		}
		v, ok := find(doc, r.path)
		if want, there := findSlowly(doc, r.path); ok != there || string(v) != string(want) {
			t.Errorf("%q, %v; want %q, %v", v, ok, want, there)
		}
	})
}

// findSlowly is find by encoding/json alone.
func findSlowly(data []byte, path []string) ([]byte, bool) {
	value := json.RawMessage(data)
	for _, part := range path {
		value = bytes.TrimLeft(value, " \t\r\n")
		if len(value) == 0 {
			return nil, false
		}
		if value[0] == '[' {
			var list []json.RawMessage
			i, err := strconv.Atoi(part)
			if err != nil || i < 0 || json.Unmarshal(value, &list) != nil || i >= len(list) {
				return nil, false
			}
			value = list[i]
			continue
		}
		var fields map[string]json.RawMessage
		if json.Unmarshal(value, &fields) != nil {
			return nil, false
		}
		value = fields[part]
	}
	var text string
	switch {
	case len(value) == 0 || string(value) == "null":
		return nil, false
	case value[0] != '"':
		var b bytes.Buffer
		if json.Compact(&b, value) != nil {
			return nil, false
		}
		return b.Bytes(), true
	case json.Unmarshal(value, &text) != nil || text == "":
		return nil, false
	}
	return []byte(text), true
}
