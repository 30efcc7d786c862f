//go:build unix

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/holdline/scrape/internal/demo"
)

// exchange serves a demo exchange in the test's own process, which can count
// what is done to it.
func (p *place) exchange(changes ...func(*demo.Options)) (site *demo.Exchange, log *output) {
	p.t.Helper()
	log = &output{}
	o := demo.Options{
		Listen: "127.0.0.1:" + strconv.Itoa(p.Port), FirstSilence: -1, Silence: -1, RevokeChance: -1,
		Log: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	for _, change := range changes {
		change(&o)
	}
	site, err := demo.New(o)
	if err == nil {
		err = site.Listen()
	}
	if err != nil {
		p.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	over := make(chan error, 1)
	go func() { over <- site.Run(ctx) }()
	p.t.Cleanup(func() {
		stop()
		if err := <-over; err != nil {
			p.t.Error(err)
		}
	})
	return site, log
}

// foreign is prices without `demo`: the exchange is somebody else's.
func foreign(t *testing.T) *place {
	p := newPlace(t)
	text := prices[:strings.Index(prices, "demo:\n")] + prices[strings.Index(prices, "streams:\n"):]
	p.write("prices.yaml", text, nil)
	p.env = append(p.env, "PRICES_PASSWORD=correct-horse", "PROXY_PASSWORD=isp-pass")
	return p
}

func TestPortTaken(t *testing.T) {
	t.Parallel()
	p := newPrices(t)
	taken := net.JoinHostPort("127.0.0.12", strconv.Itoa(p.Port+1))
	ln, err := net.Listen("tcp", taken)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	r := p.start("run", "prices.yaml")
	r.wait(3)
	says(t, r.stderr.String(), "prices.yaml: demo", taken+" is taken", "another port")
	if n := strings.Count(r.stderr.String(), "\n"); n != 1 {
		t.Errorf("one error has %d lines", n)
	}
}

func TestNoBrowser(t *testing.T) {
	t.Parallel()
	p := newPrices(t)
	p.env = append(p.env, "SCRAPE_CHROMIUM=/nowhere/chromium")
	r := p.start("run", "prices.yaml", "--progress", "none")
	r.wait(3)
	says(t, r.stderr.String(), "SCRAPE_CHROMIUM", "/nowhere/chromium")
	saysNot(t, r.stderr.String(), "goroutine")
	p.wantNothingLeft()
}

// A second run on the same data directory says so and leaves the first alone.
func TestSecondRunOnTheSameData(t *testing.T) {
	t.Parallel()
	feed := ticks(t, "== answer 200 text/event-stream\n== again\n== count 1000000 5ms\n")
	p := newPlace(t)
	p.write("ticks.yaml", ticksFile, map[string]any{"URL": feed.URL})
	first := p.start("run", "ticks.yaml", "--progress", "none", "--summary", "out.json")
	first.until("events", func() bool { return len(p.rows("data/ticks.db", "t")) > 0 })
	second := p.start("run", "ticks.yaml")
	second.wait(3)
	says(t, second.stderr.String(), filepath.Join("data", "journal"), "in use")
	had := len(p.rows("data/ticks.db", "t"))
	first.until("more events", func() bool { return len(p.rows("data/ticks.db", "t")) > had })
	first.interrupt()
	first.wait(0)
	if _, s := p.summary("out.json"); len(s.Gaps) != 0 || len(s.Reconnects) != 0 {
		t.Errorf("the first run was disturbed: %+v", s)
	}
}

const ticksFile = `
name: ticks
streams:
  - name: feed
    url: {{.URL}}
    stale_after: 2m # longer than the test's own feed can be kept from the processor
sinks:
  - sqlite: {table: t}
`

func ticks(t *testing.T, text string) *feedServer {
	t.Helper()
	answers, err := parseFeed(text)
	if err != nil {
		t.Fatal(err)
	}
	f := newFeedServer(answers, nil)
	t.Cleanup(f.Close)
	return f
}

// Whatever a site answers for ever, it is asked with growing patience, and
// the state can be seen.
func TestAnswersThatAreNoStream(t *testing.T) {
	t.Parallel()
	cases := []struct{ name, text, cause string }{
		{"page", "== answer 200 text/html\n== again\n<html>login</html>\n", "bad_answer"},
		{"broken", "== answer 500 text/html\n== again\n<html>sorry</html>\n", "server_error"},
		{"missing", "== answer 404 text/html\n== again\n<html>no</html>\n", "bad_answer"},
		{"forbidden", "== answer 403 text/html\n== again\n<html>no</html>\n", "forbidden"},
		{"unauthorized", "== answer 401 text/html\n== again\n<html>no</html>\n", "expired"},
		{"limited", "== answer 429 text/html\n== again\n== header Retry-After: 2\n", "rate_limited"},
		{"empty", "== answer 200 text/event-stream\n== again\n", "eof"},
		{"cut", "== answer 200 text/event-stream\n== again\ndata: unfinished\n== cut\n", "broken"},
	}
	p := newPlace(t)
	var file strings.Builder
	file.WriteString("name: bad\nstreams:\n")
	feeds := map[string]*feedServer{}
	for _, c := range cases {
		feeds[c.name] = ticks(t, c.text)
		fmt.Fprintf(&file, "  - {name: %s, url: %s}\n", c.name, feeds[c.name].URL)
	}
	file.WriteString("sinks:\n  - sqlite: {}\n")
	p.write("bad.yaml", file.String(), nil)
	r := p.start("run", "bad.yaml", "--progress", "plain")
	for _, c := range cases {
		state := "stream=bad/" + c.name + ` state="waiting (` + c.cause + ","
		r.until(state, func() bool {
			return strings.Contains(r.stderr.String(), state) && len(feeds[c.name].asked()) >= 3
		})
	}
	r.interrupt()
	r.wait(0)
	log := r.stderr.String()
	for _, c := range cases {
		says(t, log, "cause="+c.cause+" ")
		says(t, r.stdout.String(), "bad/"+c.name+": 0 events")
		// One try may be made at once, however late it comes; then it waits 1 s,
		// 2 s, 4 s, each with a quarter of jitter.
		asked := feeds[c.name].asked()[1:]
		least := 700 * time.Millisecond
		for i := 1; i < len(asked); i++ {
			if wait := asked[i].Sub(asked[i-1]); wait < least {
				t.Errorf("%s was asked again after %v, want at least %v", c.name, wait, least)
			}
			least = min(2*least, 40*time.Second)
		}
	}
	saysNot(t, log, "panic", "goroutine")
}

// An event of 100 MB is skipped with a warning; what follows arrives, and the
// memory stays bounded.
func TestEventOf100MB(t *testing.T) {
	t.Parallel()
	const text = "== answer 200 text/event-stream\nid: 1\ndata: before\n\n== big 100000000\nid: 2\ndata: after\n\n== hang\n"
	p := newPlace(t)
	p.write("ticks.yaml", ticksFile, map[string]any{"URL": ticks(t, text).URL})
	r := p.start("run", "ticks.yaml", "--max-events", "2", "--progress", "none", "--summary", "out.json")
	r.wait(0)
	if rows := p.rows("data/ticks.db", "t"); len(rows) != 2 || rows[0].data != "before" || rows[1].data != "after" {
		t.Errorf("stored %d rows: %.100v", len(rows), rows)
	}
	says(t, r.stderr.String(), "level=WARN", "event too large")
	if _, s := p.summary("out.json"); s.Oddities != 1 || s.Bytes < 100_000_000 {
		t.Errorf("the account says nothing of it: %+v", s)
	}
	r.wantMemory(400 << 20)

	tail := p.start("tail", ticks(t, text).URL, "--raw", "--max-events", "2")
	tail.wait(0)
	if got := tail.stdout.String(); got != "before\nafter\n" {
		t.Errorf("tail printed %.100q", got)
	}
	says(t, tail.stderr.String(), "level=WARN", "event too large")
	tail.wantMemory(300 << 20)
}

// wantMemory bounds what the process had in memory at most. The race detector
// takes a multiple of what the program does.
func (r *process) wantMemory(most int64) {
	r.t.Helper()
	if runtime.GOOS != "linux" {
		return // others count in other units
	}
	usage := r.cmd.ProcessState.SysUsage().(*syscall.Rusage)
	if got := usage.Maxrss << 10; got > most {
		r.t.Errorf("the process took %d MB, want at most %d", got>>20, most>>20)
	}
}

// deadProxies are proxies that hang up at once, and count how often they could.
func deadProxies(t *testing.T, n int) (addrs []string, count *atomic.Int64) {
	t.Helper()
	count = new(atomic.Int64)
	for range n {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ln.Close() })
		go func() {
			for {
				c, err := ln.Accept()
				if errors.Is(err, net.ErrClosed) {
					return
				}
				if err == nil {
					count.Add(1)
					c.Close()
				}
			}
		}()
		addrs = append(addrs, ln.Addr().String())
	}
	return addrs, count
}

// Proxies that cannot be reached rest, one after the other; nothing is tried in
// a loop, and every line says which.
func TestUnreachableProxies(t *testing.T) {
	t.Parallel()
	feed := ticks(t, "== answer 200 text/event-stream\n== again\n== count 100000 5ms\n")
	addrs, count := deadProxies(t, 2)
	p := newPlace(t)
	p.write("ticks.yaml", ticksFile+`
proxies:
  exits:
    - http://user:p4ssw0rd@{{index .Addrs 0}}
    - socks5://user:p4ssw0rd@{{index .Addrs 1}}
`, map[string]any{"URL": feed.URL, "Addrs": addrs})
	r := p.start("run", "ticks.yaml", "--progress", "plain")
	const state = `state="waiting (`
	r.until(state, func() bool { return strings.Contains(r.stderr.String(), state) })
	r.interrupt()
	r.wait(0)
	if n := count.Load(); n < 2 || n > 12 {
		t.Errorf("two dead proxies were tried %d times", n)
	}
	says(t, r.stderr.String(), addrs[0], addrs[1])
	saysNot(t, r.stderr.String()+r.stdout.String(), "p4ssw0rd", "user:")
	if n := len(feed.asked()); n != 0 {
		t.Errorf("the site was asked %d times", n)
	}
}

// A proxy that refuses our password is told with the setting, once: no other
// exit of the account is tried.
func TestWrongProxyPassword(t *testing.T) {
	t.Parallel()
	feed := ticks(t, "== answer 200 text/event-stream\n== again\n== count 100000 5ms\n")
	requests := &output{}
	var hosts []string
	for range 3 {
		s := newConnectProxy("alice", "right", requests)
		defer s.Close()
		hosts = append(hosts, strings.TrimPrefix(s.URL, "http://"))
	}
	p := newPlace(t)
	p.write("ticks.yaml", ticksFile+`
proxies:
  exits:
{{range .Hosts}}    - http://alice:wr0ng-word@{{.}}
{{end}}`, map[string]any{"URL": feed.URL, "Hosts": hosts})
	r := p.start("run", "ticks.yaml", "--progress", "plain")
	const state = `state="waiting (proxy_auth`
	r.until(state, func() bool { return strings.Contains(r.stderr.String(), state) })
	r.interrupt()
	r.wait(0)
	if got := requests.String(); strings.Count(got, "refused") != 1 {
		t.Errorf("the proxies were asked:\n%s", got)
	}
	says(t, r.stderr.String(), "level=ERROR", "proxy_auth", "password")
	saysNot(t, r.stderr.String()+r.stdout.String(), "wr0ng-word", "alice")
}

// The same in front of a login: the browser does not hammer the proxy either.
func TestWrongProxyPasswordAtTheLogin(t *testing.T) {
	t.Parallel()
	p := foreign(t)
	site, log := p.exchange()
	p.env = append(p.env, "PROXY_PASSWORD=wr0ng-word")
	r := p.start("run", "prices.yaml", "--progress", "plain")
	const state = `state="waiting (proxy_auth`
	r.until(state, func() bool { return strings.Contains(r.stderr.String(), state) })
	r.interrupt()
	r.wait(0)
	// Chromium may have several requests under way when the first is refused.
	if n := strings.Count(log.String(), "proxy refuses") + strings.Count(log.String(), "socks proxy refuses"); n < 1 || n > 4 {
		t.Errorf("the proxies refused %d times", n)
	}
	says(t, r.stderr.String(), "level=ERROR", "cause=proxy_auth", "password")
	saysNot(t, r.stderr.String(), "wr0ng-word", "isp-user")
	if s := site.Stats(); s.Challenges+s.Logins+s.LoginsRefused != 0 {
		t.Errorf("the site was reached: %+v", s)
	}
	p.wantNothingLeft()
}

// A site that refuses our password is asked once, and then left alone for a
// good while.
func TestWrongSitePassword(t *testing.T) {
	t.Parallel()
	p := foreign(t)
	site, _ := p.exchange()
	p.env = append(p.env, "PRICES_PASSWORD=wr0ng-word")
	r := p.start("run", "prices.yaml", "--progress", "plain", "--summary", "out.json")
	const state = `state="waiting (login_failed`
	r.until(state, func() bool { return strings.Contains(r.stderr.String(), state) })
	r.interrupt()
	r.wait(0)
	if s := site.Stats(); s.LoginsRefused != 1 || s.Logins != 0 {
		t.Errorf("the site saw %+v", s)
	}
	says(t, r.stderr.String(), "level=ERROR", "login_failed", "data/artifacts/prices/login-", ".error")
	saysNot(t, r.stderr.String(), "wr0ng-word")
	if _, s := p.summary("out.json"); s.Events != 0 || s.Coverage != 0 || s.Logins != 0 {
		t.Errorf("the account says %+v", s)
	}
	p.wantNothingLeft()
}

// A login that never sets what it is waited for names the step and leaves
// what the page looked like; the next tries take their time.
func TestLoginThatNeverSetsTheCookie(t *testing.T) {
	t.Parallel()
	p := foreign(t)
	site, _ := p.exchange()
	text, err := os.ReadFile(p.path("prices.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	text = bytes.Replace(text, []byte("- wait: {storage: access_token}\n        timeout: 15s"), []byte("- wait: {cookie: never}\n        timeout: 1s"), 1)
	if err := os.WriteFile(p.path("prices.yaml"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	r := p.start("run", "prices.yaml", "--progress", "plain", "--log-format", "json")
	tries := func() (all []time.Time) {
		for text := range strings.Lines(r.stderr.String()) {
			var line struct {
				Time time.Time
				Msg  string
			}
			if json.Unmarshal([]byte(text), &line) == nil && line.Msg == "login failed" {
				all = append(all, line.Time)
			}
		}
		return all
	}
	r.until("the third try", func() bool { return len(tries()) > 2 })
	r.interrupt()
	r.wait(0)
	// After the first try it waits half a second at least, after the others a
	// second, and each try waits a second for the cookie.
	least := 1500 * time.Millisecond
	for i, all := 1, tries(); i < len(all); i++ {
		if took := all[i].Sub(all[i-1]); took < least {
			t.Errorf("try %d failed %v after the one before it, want %v at least", i+1, took, least)
		}
		least = 2 * time.Second
	}
	if s := site.Stats(); s.Logins < 3 {
		t.Errorf("the site saw %+v", s)
	}
	says(t, r.stderr.String(), "step 5", "never", "the cookie was never set", "data/artifacts/prices/login-")
	found, err := filepath.Glob(p.path("data/artifacts/prices/login-*/page.*"))
	if err != nil || len(found) < 2 {
		t.Errorf("the artifacts are %v, %v", found, err)
	}
	p.wantNothingLeft()
}
