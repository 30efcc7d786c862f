//go:build unix

package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// prices is targets/prices.yaml on ports of its own and with lifetimes so
// short that half a minute shows everything.
const prices = `
name: prices
demo:
  kind: exchange
  listen: 127.0.0.1:{{.Port}}
  seed: 7
  token_life: 12s
  first_revoke: 3s
  first_silence: 12s
  mute: 12s
streams:
  - name: market
    url: http://127.0.0.1:{{.Port}}/api/v1/market/stream
    types: [price_update]
    stale_after: 2s
    reconnect: {min: 300ms, max: 2s, healthy_after: 5s}
auth:
  bound_to: exit
  browser:
    steps:
      - open: http://127.0.0.1:{{.Port}}/login
      - fill: "#username"
        value: trader
      - fill: "#password"
        value: ${env:PRICES_PASSWORD}
      - click: button[type=submit]
      - wait: {storage: access_token}
        timeout: 15s
        fail_on: .error
    headers:
      Authorization: Bearer ${storage:access_token}
  attempts_per_hour: 3600
proxies:
  kind: isp
  exits:
    - http://isp-user:${env:PROXY_PASSWORD}@127.0.0.11:{{.Proxy}}
    - http://isp-user:${env:PROXY_PASSWORD}@127.0.0.12:{{.Proxy}}
    - url: socks5://isp-user:${env:PROXY_PASSWORD}@127.0.0.15:{{.Socks}}
      name: socks
sinks:
  - sqlite: {table: prices}
    name: db
`

// newPrices is a place with the target file and its secrets.
func newPrices(t *testing.T) *place {
	p := newPlace(t)
	p.write("prices.yaml", prices, nil)
	p.env = append(p.env, "PRICES_PASSWORD=correct-horse", "PROXY_PASSWORD=isp-pass")
	return p
}

// wantTruth compares what a sink holds with what the market told: from the
// first event to the last stored, without hole or double, in order.
func (p *place) wantTruth(data, table string) int {
	p.t.Helper()
	feed := p.truth(data)
	rows := p.rows(data+"/prices.db", table)
	for i, r := range rows {
		want := feed.Event(int64(i + 1))
		if r.id != strconv.Itoa(i+1) {
			p.t.Fatalf("row %d has the id %s", i+1, r.id)
		}
		if r.data != want.Data() || r.kind != "price_update" {
			p.t.Fatalf("row %d is a %s with %s, want %s", i+1, r.kind, r.data, want.Data())
		}
	}
	return len(rows)
}

// left lists the browser's processes and private directories that are still
// there.
func (p *place) left() (all []string) {
	p.t.Helper()
	rooms, err := filepath.Glob(filepath.Join(p.tmp, "*holdline-browser-*"))
	if err != nil {
		p.t.Fatal(err)
	}
	all = append(all, rooms...)
	entries, err := os.ReadDir("/proc")
	if err != nil {
		p.t.Fatal(err)
	}
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		environment, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "environ"))
		arguments, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if bytes.Contains(environment, []byte("HOLDLINE_BROWSER_ROOM="+p.tmp)) || bytes.Contains(arguments, []byte(p.tmp+"/")) {
			all = append(all, fmt.Sprintf("process %s: %.200s", e.Name(), bytes.ReplaceAll(arguments, []byte{0}, []byte{' '})))
		}
	}
	return all
}

func (p *place) wantNothingLeft() {
	p.t.Helper()
	if left := p.left(); len(left) > 0 {
		p.t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
	}
}

// The main job: one run lives through a login, a token that dies, a silence
// and a rotation, and the table holds exactly what the market told. The second
// run goes on where the first one stopped.
func TestPrices(t *testing.T) {
	t.Parallel()
	p := newPrices(t)
	first := p.start("run", "prices.yaml", "--summary", "one.json", "--progress", "plain")
	for _, sign := range []string{"cause=expired", "cause=silence", "msg=rotated"} {
		first.until(sign, func() bool { return strings.Contains(first.stderr.String(), sign) })
	}
	had := len(p.rows("data/prices.db", "prices"))
	first.until("events after all of it", func() bool { return len(p.rows("data/prices.db", "prices")) > had+20 })
	first.interrupt()
	first.wait(0)
	s, one := p.summary("one.json")
	if one.Logins < 2 || one.Expiries < 1 || one.Silences < 1 || one.Rotations < 1 || one.Reconnects["expired"] < 1 || one.Reconnects["silence"] < 1 {
		t.Errorf("the account does not tell what happened: %+v", one)
	}
	if one.Coverage != 1 || len(one.Gaps) != 0 || one.FirstID != "1" || one.DeadLetters != 0 {
		t.Errorf("the account tells of a loss: %+v", one)
	}
	if one.SilenceDetect.P50 < 2000 || one.Resume.Max < one.Resume.P50 || one.Resume.P50 <= 0 || s.Elapsed < 3 {
		t.Errorf("the account's times cannot be: %+v", one)
	}
	n := p.wantTruth("data", "prices")
	if n < 100 || uint64(n) != one.Events || one.Delivered != one.Events || one.LastID != strconv.Itoa(n) {
		t.Errorf("%d rows; the account says %+v", n, one)
	}
	p.wantNothingLeft()

	again := p.start("run", "prices.yaml", "--summary", "two.json", "--progress", "none", "--max-events", "100")
	again.wait(0)
	_, two := p.summary("two.json")
	if two.Events != 100 || two.FirstID != strconv.Itoa(n+1) || two.Coverage != 1 || len(two.Gaps) != 0 {
		t.Errorf("after %d rows the second run's account is %+v", n, two)
	}
	if more := p.wantTruth("data", "prices"); uint64(more) != one.Events+two.Events {
		t.Errorf("%d rows of %d and %d events", more, one.Events, two.Events)
	}
	if out := again.stdout.String(); !strings.HasPrefix(out, "\nAfter ") {
		t.Errorf("standard output holds more than the account: %q", out)
	}
	says(t, again.stdout.String(), "prices/market: ", "coverage 100.000 %, gaps: 0", "scrape query data/prices.db")
	p.wantNothingLeft()
}

// An interrupt in the middle of a login ends it, and the browser with it.
func TestInterruptedLogin(t *testing.T) {
	t.Parallel()
	p := newPrices(t)
	r := p.start("run", "prices.yaml", "--progress", "none")
	r.until("a browser", func() bool { return len(p.left()) > 0 })
	time.Sleep(rand.N(time.Second)) // any moment of it
	r.interrupt()
	r.wait(0)
	p.wantNothingLeft()
	p.wantTruth("data", "prices")
}

// The demo exchange by itself is what target files start.
func TestDemoAlone(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	listen := "127.0.0.1:" + strconv.Itoa(p.Port)
	r := p.start("demo", "--listen", listen)
	r.until("all of its doors", func() bool { return strings.Count(r.stdout.String(), "\n") == 8 })
	resp, err := http.Get("http://" + listen)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden {
		t.Errorf("the door is open: %s", resp.Status)
	}
	says(t, r.stdout.String(), "exchange  http://"+listen, "password correct-horse", "socks5://127.0.0.15:", "gateway")
	second := p.start("demo", "--listen", listen)
	second.wait(3)
	says(t, second.stderr.String(), listen+" is taken")
	r.interrupt()
	r.wait(0)
}

// The target files that come with the program are in order.
func TestTargetFiles(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("../../targets/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("no target files", err)
	}
	for i, f := range files {
		if files[i], err = filepath.Abs(f); err != nil {
			t.Fatal(err)
		}
	}
	newPlace(t).start(append([]string{"check"}, files...)...).wait(0)
}

// kill -9 at any moment, in the middle of a login too, loses nothing and leaves
// nothing that the next start does not sweep.
func TestKilledAgainAndAgain(t *testing.T) {
	t.Parallel()
	p := newPrices(t)
	swept := false
	for n := range 6 {
		r := p.start("run", "prices.yaml", "--progress", "none")
		if n%2 == 0 {
			r.until("a login", func() bool { return len(p.left()) > 0 })
		} else {
			had := len(p.rows("data/prices.db", "prices"))
			r.until("new rows", func() bool { return len(p.rows("data/prices.db", "prices")) > had })
		}
		time.Sleep(rand.N(1500 * time.Millisecond)) // any moment, not one we chose
		r.kill()
		swept = swept || len(p.left()) > 0
		p.wantTruth("data", "prices")
	}
	if !swept {
		t.Error("no kill met a browser: nothing was proven about sweeping")
	}
	before := len(p.rows("data/prices.db", "prices"))
	r := p.start("run", "prices.yaml", "--summary", "out.json", "--progress", "none")
	r.until("the rest", func() bool { return len(p.rows("data/prices.db", "prices")) > before+100 })
	r.interrupt()
	r.wait(0)
	_, s := p.summary("out.json")
	if s.Coverage != 1 || len(s.Gaps) != 0 {
		t.Errorf("the account of the last run tells of a loss: %+v", s)
	}
	p.wantTruth("data", "prices")
	p.wantNothingLeft()
}

// An echo of the interrupt that comes when all is done does not change the exit
// code.
func TestInterruptAfterTheEnd(t *testing.T) {
	t.Parallel()
	feed := ticks(t, "== answer 200 text/event-stream\n== again\n== count 1000000 1ms\n")
	p := newPlace(t)
	p.write("ticks.yaml", ticksFile, map[string]any{"URL": feed.URL})
	r := p.start("run", "ticks.yaml", "--progress", "none")
	r.until("events", func() bool { return len(p.rows("data/ticks.db", "t")) > 0 })
	r.interrupt()
	r.until("the end of its work", func() bool {
		_, err := os.Stat(p.path("data/control.sock"))
		return err != nil
	})
	r.until("the end", func() bool { return r.cmd.Process.Signal(syscall.SIGTERM) != nil })
	r.wait(0)
}

// The first interrupt drains and ends with 0, also where it comes twice at once,
// as timeout, supervisors and terminals send it to a process and its group. A
// second one ends at once with 130, and what was stopped at once is not lost.
func TestInterrupts(t *testing.T) {
	t.Parallel()
	feed := ticks(t, "== answer 200 text/event-stream\n== again\n== count 1000000 1ms\n")
	p := newPlace(t)
	p.write("ticks.yaml", ticksFile, map[string]any{"URL": feed.URL})
	rows := func() int { return len(p.rows("data/ticks.db", "t")) }
	// They are of two kinds here because the system may make one of two of a kind.
	for _, signals := range [][]os.Signal{{os.Interrupt, syscall.SIGTERM}, {syscall.SIGTERM, os.Interrupt}} {
		had := rows()
		r := p.start("run", "ticks.yaml", "--progress", "none", "--summary", "out.json")
		r.until("events", func() bool { return rows() > had })
		r.stop()
		for _, signal := range append(signals, syscall.SIGCONT) {
			if err := r.cmd.Process.Signal(signal); err != nil {
				t.Fatal(err)
			}
		}
		r.wait(0)
		if _, s := p.summary("out.json"); s.Delivered != s.Events || uint64(rows()-had) != s.Events || len(s.Gaps) != 0 {
			t.Errorf("after draining %d rows are new, and the account is %+v", rows()-had, s)
		}
	}
	had := rows()
	// A sink that waits keeps the drain from ending: the database is locked.
	lock, err := p.lock("data/ticks.db")
	if err != nil {
		t.Fatal(err)
	}
	r := p.start("run", "ticks.yaml", "--progress", "none")
	r.until("the locked sink", func() bool { return strings.Contains(r.stderr.String(), "locked") })
	stored := regexp.MustCompile(`(?m)^ticks/feed +0 +(\d+) `)
	r.until("events in the journal that no sink has", func() bool {
		c := p.start("journal", "stats")
		c.wait(0)
		n := stored.FindStringSubmatch(c.stdout.String())
		return n != nil && n[1] != strconv.Itoa(had)
	})
	r.interrupt()
	r.until("the first interrupt", func() bool { return strings.Contains(r.stderr.String(), "interrupted: reading ends") })
	r.until("the end", func() bool {
		// Soon after the first one it is the same: a person goes on.
		return r.cmd.Process.Signal(os.Interrupt) != nil
	})
	r.wait(130)
	says(t, r.stderr.String(), "second interrupt")
	lock()
	p.start("run", "ticks.yaml", "--progress", "none", "--max-events", "50").wait(0)
	for i, row := range p.rows("data/ticks.db", "t") {
		if row.id != strconv.Itoa(i+1) {
			t.Fatalf("row %d has the id %s", i+1, row.id)
		}
	}
	if rows() <= had+50 {
		t.Errorf("%d rows, then %d: what was read before the abort was not delivered", had, rows())
	}
}
