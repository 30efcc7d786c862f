//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/holdline/scrape/framework"
)

// The main job with the stream read inside the browser: through exits with
// passwords, a token that dies, a silence, a rotation, and then the browser
// itself is killed; the table holds exactly what the market told.
func TestPricesInsideTheBrowser(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.write("prices.yaml", strings.Replace(prices, "    types: [price_update]", "    types: [price_update]\n    transport: browser", 1), nil)
	p.env = append(p.env, "PRICES_PASSWORD=correct-horse", "PROXY_PASSWORD=isp-pass")
	r := p.start("run", "prices.yaml", "--summary", "out.json", "--progress", "plain", "--log-level", "debug")
	rows := func() int { return len(p.rows("data/prices.db", "prices")) }
	for _, sign := range []string{"cause=expired", "cause=silence", "msg=rotated"} {
		r.until(sign, func() bool { return strings.Contains(r.stderr.String(), sign) })
	}
	had := rows()
	r.until("events after all of it", func() bool { return rows() > had+20 })
	// Every identity so far went on in the page of its login.
	saysNot(t, r.stderr.String(), "a place in the browser")
	for _, process := range p.left() {
		number, command, _ := strings.Cut(strings.TrimPrefix(process, "process "), ": ")
		if pid, err := strconv.Atoi(number); err == nil && strings.Contains(command, "chromium") {
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	r.until("the loss of the browser", func() bool { return strings.Contains(r.stderr.String(), "the browser ended by itself") })
	had = rows()
	r.until("events after it", func() bool { return rows() > had+20 })
	r.interrupt()
	r.wait(0)
	_, s := p.summary("out.json")
	if s.Coverage != 1 || len(s.Gaps) != 0 || s.FirstID != "1" || s.DeadLetters != 0 || s.Rotations < 1 || s.Logins < 2 {
		t.Errorf("the account is %+v", s)
	}
	if n := p.wantTruth("data", "prices"); uint64(n) != s.Events {
		t.Errorf("%d rows of %d events", n, s.Events)
	}
	p.wantNothingLeft()
}

// The EventSource of a page goes on where it was when the cursor has a place in
// the query. Without one every break is a gap, and the account says so.
func TestEventSourcesOfAPage(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/":
			fmt.Fprint(w, "<!doctype html>")
			return
		case r.Header.Get("Sec-Fetch-Mode") != "cors" || r.Header.Get("Last-Event-ID") != "":
			w.WriteHeader(http.StatusForbidden)
			return
		}
		moment := int(asked.Add(1)) * 7
		w.Header().Set("Content-Type", "text/event-stream")
		n, err := strconv.Atoi(r.URL.Query().Get("after"))
		if err != nil && strings.Contains(r.URL.RawQuery, "blind") {
			n = moment // what was is gone
		}
		for i := n + 1; i <= n+5; i++ {
			fmt.Fprintf(w, "id: %d\nevent: tick\ndata: %d\n\n", i, i)
		}
	}))
	defer site.Close()
	p := newPlace(t)
	for name, resume := range map[string]string{"resumed": "resume: {as: query, name: after}", "blind": ""} {
		p.write(name+".yaml", `
streams:
  - name: ticks
    url: {{.URL}}/feed?{{.Name}}
    transport: browser
    via: eventsource
    types: [tick]
    reconnect: {min: 20ms}
    {{.Resume}}
limits: {connects_per_second: 100}
sinks: [{sqlite: {table: t}}]
`, map[string]any{"URL": site.URL, "Resume": resume, "Name": name})
	}
	r := p.start("run", "resumed.yaml", "blind.yaml", "--summary", "out.json", "--progress", "none")
	rows := func(name string) []stored { return p.rows("data/"+name+".db", "t") }
	r.until("several connections of both", func() bool { return len(rows("resumed")) >= 15 && len(rows("blind")) >= 10 })
	r.interrupt()
	r.wait(0)
	for i, row := range rows("resumed") {
		if row.id != strconv.Itoa(i+1) {
			t.Fatalf("row %d has the id %s", i+1, row.id)
		}
	}
	var s framework.Stats
	text, err := os.ReadFile(p.path("out.json"))
	if err == nil {
		err = json.Unmarshal(text, &s)
	}
	if err != nil || len(s.Streams) != 2 {
		t.Fatal(err, s)
	}
	for _, st := range s.Streams {
		if blind := st.Name == "blind/ticks"; blind != (len(st.Gaps) > 0) {
			t.Errorf("%s: gaps %+v", st.Name, st.Gaps)
		}
	}
	p.wantNothingLeft()
}
