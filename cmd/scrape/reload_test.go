//go:build unix

package main

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// clockSite has one feed, of which event n happens at n times 5 ms, and replays
// nothing.
type clockSite struct {
	*httptest.Server
	began time.Time

	mu    sync.Mutex
	conns []*clockConn
}

type clockConn struct {
	path, key string
	sent      int
	over      bool
	beside    bool // the one before it on the path was open still when this one had sent something
}

func newClockSite(t *testing.T) *clockSite {
	s := &clockSite{began: time.Now()}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

func (s *clockSite) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := &clockConn{path: r.URL.Path, key: r.Header.Get("X-Key")}
	s.mu.Lock()
	before := s.last(c.path)
	s.conns = append(s.conns, c)
	s.mu.Unlock()
	defer func() { s.mu.Lock(); c.over = true; s.mu.Unlock() }()
	w.Header().Set("Content-Type", "text/event-stream")
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for n := int(time.Since(s.began) / (5 * time.Millisecond)); ; {
		for ; n < int(time.Since(s.began)/(5*time.Millisecond)); n++ {
			fmt.Fprintf(w, "id: %d\ndata: %d\n\n", n, n)
			s.mu.Lock()
			c.sent++
			c.beside = c.beside || before != nil && !before.over
			s.mu.Unlock()
		}
		w.(http.Flusher).Flush()
		select {
		case <-tick.C:
		case <-r.Context().Done():
			return
		}
	}
}

// last is the last connection of a path; the mutex is held.
func (s *clockSite) last(path string) *clockConn {
	for _, c := range slices.Backward(s.conns) {
		if c.path == path {
			return c
		}
	}
	return nil
}

// of are the connections of a path so far.
func (s *clockSite) of(path string) (all []clockConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.conns {
		if c.path == path {
			all = append(all, *c)
		}
	}
	return all
}

func wantOnce(t *testing.T, rows []stored, least int) {
	t.Helper()
	if len(rows) < least {
		t.Fatalf("%d rows, want %d at least", len(rows), least)
	}
	first, _ := strconv.Atoi(rows[0].id)
	for i, row := range rows {
		if row.id != strconv.Itoa(first+i) {
			t.Fatalf("row %d has the id %s, want %d", i, row.id, first+i)
		}
	}
}

// clockFile names the silence that is none of the feed: with one that is learnt
// a site that is not given the processor is left for another connection.
const clockFile = `
name: live
streams:
  - name: ticks
    url: {{.URL}}/ticks
    headers: {X-Key: "${file:key}"}
    stale_after: 2m
  - name: still
    url: {{.URL}}/still
    stale_after: 2m
{{.More}}
limits: {connects_per_second: {{.Pace}}}
sinks:
  - sqlite: {table: {{.Table}}}
    where: record.stream == "live/ticks"
  - sqlite: {table: still, file: still.db}
    name: still
    where: record.stream == "live/still"
  - sqlite: {table: more, file: more.db}
    name: more
    where: record.stream == "live/more"
`

// A worker takes up what has become of its files, by reload and by SIGHUP: what
// has changed is handed over, what has not is left alone, and what is wrong
// changes nothing.
func TestReload(t *testing.T) {
	t.Parallel()
	site := newClockSite(t)
	p := newPlace(t)
	values := map[string]any{"URL": site.URL, "More": "", "Table": "ticks", "Pace": 100}
	write := func(name string, value any) {
		values[name] = value
		p.write("live.yaml", clockFile, values)
	}
	key := func(text string) { p.write("key", text, nil) }
	key("first-key")
	write("More", "")
	ticks := func() int { return len(p.rows("data/live.db", "ticks")) }

	none := p.start("reload")
	none.wait(1)
	says(t, none.stderr.String(), "no worker runs with the data directory")

	r := p.start("run", "live.yaml", "--progress", "none", "--summary", "out.json")
	r.until("rows", func() bool { return ticks() > 20 })
	reload := func(code int) string {
		c := p.start("reload")
		c.wait(code)
		return c.stdout.String() + c.stderr.String()
	}
	if got := reload(0); got != "nothing has changed\n" {
		t.Errorf("a reload of the same says %q", got)
	}
	key("second-key")
	write("More", "    cokies: {}")
	says(t, reload(2), `live.yaml:11:5: unknown key "cokies"`)
	write("More", "")
	write("Table", "other")
	says(t, reload(2), "sinks of live changed: restart to apply")
	write("Table", "ticks")
	had := ticks()
	r.until("more rows", func() bool { return ticks() > had+20 })
	if n := len(site.of("/ticks")); n != 1 {
		t.Errorf("%d connections before anything was changed", n)
	}

	write("More", `  - {name: more, url: "`+site.URL+`/more", stale_after: 2m}`)
	got := reload(0)
	says(t, got, "live/more: added\n", "live/ticks: changed")
	saysNot(t, got, "still")
	r.until("the second connection", func() bool {
		conns := site.of("/ticks")
		return len(conns) == 2 && conns[0].over && len(p.rows("more.db", "more")) > 5
	})
	key("third-key")
	write("Pace", 90)
	write("More", "")
	if err := r.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	r.until("the third connection", func() bool {
		conns, more := site.of("/ticks"), site.of("/more")
		return len(conns) == 3 && conns[1].over && len(more) == 1 && more[0].over
	})
	had = ticks()
	r.until("rows after all", func() bool { return ticks() > had+20 })
	var keys []string
	for i, c := range site.of("/ticks") {
		keys = append(keys, c.key)
		if i > 0 && !c.beside {
			t.Errorf("connection %d did not deliver beside the one before it", i+1)
		}
	}
	if got := strings.Join(keys, " "); got != "first-key second-key third-key" {
		t.Errorf("the keys were %s", got)
	}
	if n := len(site.of("/still")); n != 1 {
		t.Errorf("the stream that did not change has had %d connections", n)
	}
	r.interrupt()
	r.wait(0)
	wantOnce(t, p.rows("data/live.db", "ticks"), 80)
	wantOnce(t, p.rows("still.db", "still"), 80)
	wantOnce(t, p.rows("more.db", "more"), 5)
	text, err := os.ReadFile(p.path("out.json"))
	if err != nil {
		t.Fatal(err)
	}
	says(t, string(text), `"planned": 2`)
	says(t, r.stderr.String(), "the files were not taken up", "live/more", "other limits from now on")
	saysNot(t, r.stderr.String()+got, "first-key", "second-key", "third-key")
}

// A rotation moves to the other proxy, while the old connection delivers.
func TestRotate(t *testing.T) {
	t.Parallel()
	site := newClockSite(t)
	p := newPlace(t)
	one, two := newConnectProxy("u", "p", io.Discard), newConnectProxy("u", "p", io.Discard)
	t.Cleanup(one.Close)
	t.Cleanup(two.Close)
	p.write("live.yaml", `
streams:
  - {name: ticks, url: "{{.URL}}/ticks", stale_after: 2m}
proxies: {exits: [{name: one, url: "http://u:p@{{.One}}"}, {name: two, url: "http://u:p@{{.Two}}"}]}
limits: {connects_per_second: 100}
sinks: [{sqlite: {table: ticks}}]
`, map[string]any{"URL": site.URL, "One": one.Listener.Addr(), "Two": two.Listener.Addr()})
	r := p.start("run", "live.yaml", "--progress", "none", "--summary", "out.json")
	rows := func() []stored { return p.rows("data/live.db", "ticks") }
	r.until("rows", func() bool { return len(rows()) > 20 })
	c := p.start("rotate", "other")
	c.wait(2)
	says(t, c.stderr.String(), "the worker has no stream or target other: its streams are live/ticks")
	for i, args := range [][]string{{"live"}, {"live/ticks"}, {}} {
		c := p.start(append([]string{"rotate"}, args...)...)
		c.wait(0)
		says(t, c.stdout.String(), "1 stream changes its connections\n")
		r.until("the next connection", func() bool {
			conns := site.of("/ticks")
			return len(conns) == i+2 && conns[i].over
		})
	}
	had := len(rows())
	r.until("rows after all", func() bool { return len(rows()) > had+20 })
	r.interrupt()
	r.wait(0)
	wantOnce(t, rows(), 60)
	_, s := p.summary("out.json")
	if s.Rotations != 3 || s.Reconnects["planned"] != 3 || len(s.Exits) != 2 {
		t.Errorf("the account is %+v", s)
	}
	for i, c := range site.of("/ticks") {
		if i > 0 && !c.beside {
			t.Errorf("connection %d did not deliver beside the one before it", i+1)
		}
	}
}

// A pool that no target has any more asks for nothing: its cap of a proxy that
// another pool has, too, ends with the reload.
func TestReloadLeavesAPool(t *testing.T) {
	t.Parallel()
	site := newClockSite(t)
	p := newPlace(t)
	proxy := newConnectProxy("u", "p", io.Discard)
	t.Cleanup(proxy.Close)
	p.write("scrape.yaml", `
pools:
  strict: {exits: [{name: one, url: "http://u:p@{{.Proxy}}"}], max_conns: 2}
  mild: {exits: [{name: one, url: "http://u:p@{{.Proxy}}"}], max_conns: 5}
`, map[string]any{"Proxy": proxy.Listener.Addr()})
	write := func(pool string) {
		p.write("live.yaml", `
streams:
  - {name: ticks, url: "{{.URL}}/ticks", stale_after: 2m}
proxies: {pool: {{.Pool}}}
limits: {connects_per_second: 100}
sinks: [{sqlite: {table: ticks}}]
`, map[string]any{"URL": site.URL, "Pool": pool})
	}
	list := func() string {
		c := p.start("proxies", "list")
		c.wait(0)
		return strings.Join(strings.Fields(c.stdout.String()), " ")
	}
	write("strict")
	r := p.start("run", "live.yaml", "--progress", "none")
	rows := func() []stored { return p.rows("data/live.db", "ticks") }
	for i, change := range []struct{ from, to, cap string }{{"strict", "mild", "/5"}, {"mild", "strict", "/2"}} {
		had := len(rows())
		r.until("rows", func() bool { return len(rows()) > had+20 })
		says(t, list(), "pool/"+change.from+" one")
		write(change.to)
		c := p.start("reload")
		c.wait(0)
		says(t, c.stdout.String(), "live/ticks: changed")
		r.until("the next connection", func() bool {
			conns := site.of("/ticks")
			return len(conns) == i+2 && conns[i].over
		})
		// The site sees the end of a connection before the pool does.
		r.until("the other pool alone", func() bool {
			got := list()
			return strings.Contains(got, "pool/"+change.to+" one") && strings.Contains(got, " 1"+change.cap+" ") && !strings.Contains(got, "pool/"+change.from)
		})
	}
	r.interrupt()
	r.wait(0)
	wantOnce(t, rows(), 40)
}
