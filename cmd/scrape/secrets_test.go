//go:build unix

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdline/scrape/framework"
	"github.com/holdline/scrape/internal/demo"
	"github.com/holdline/scrape/internal/journal"
)

// relay hands connections on to addr and keeps everything that is said.
func relay(t *testing.T, addr string, said *output) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var busy sync.WaitGroup
	over := make(chan struct{})
	t.Cleanup(func() { close(over); ln.Close(); busy.Wait() })
	hand := func(to, from net.Conn) {
		defer to.Close()
		io.Copy(to, io.TeeReader(from, said))
	}
	busy.Go(func() {
		for {
			client, err := ln.Accept()
			if err != nil {
				return
			}
			site, err := net.Dial("tcp", addr)
			if err != nil {
				client.Close()
				continue
			}
			busy.Go(func() { hand(site, client) })
			busy.Go(func() { hand(client, site) })
			go func() { <-over; client.Close(); site.Close() }()
		}
	})
	return ln.Addr().String()
}

// The secrets that are only known from what was said.
var spoken = []*regexp.Regexp{
	regexp.MustCompile(`(?i)Set-Cookie: [^=]+=([^;\r\n]{8,})`),
	regexp.MustCompile(`(?i)\r\nCookie: .*?clearance=([^;\r\n]{8,})`),
	regexp.MustCompile(`"access_token":"([^"]+)"`),
	regexp.MustCompile(`(?i)Authorization: Bearer (\S+)`),
	regexp.MustCompile(`(?i)Proxy-Authorization: Basic (\S+)`),
	regexp.MustCompile(`name="csrf" value="([^"]+)"`),
}

const (
	siteUser, sitePassword   = "trader-7f3a-ann", "site-9c1x-horse"
	proxyUser, proxyPassword = "isp-4471-user", "isp-b20e-word"
	gateUser, gatePassword   = "gw-8812-user", "gw-d5c6-word"
	wrongSite, wrongProxy    = "wrong-51aa-site", "wrong-77bc-proxy"
)

// guarded is a target of the exchange whose secrets come from the environment.
const guarded = `
name: {{.Name}}
streams:
  - name: market
    url: http://127.0.0.1:{{.Port}}/api/v1/market/stream
    types: [price_update]
    stale_after: 20s
    query: {key: "${env:SITE_PASSWORD}"}
auth:
  browser:
    steps:
      - open: http://127.0.0.1:{{.Port}}/login?key={{.OpenKey}}
      - fill: "#username"
        value: ${env:SITE_USER}
      - fill: "#password"
        value: ${env:{{.Password}}}
      - click: button[type=submit]
      - wait: {{.Wait}}
        timeout: 5s
        fail_on: .error
    headers:
      Authorization: Bearer ${storage:access_token}
  attempts_per_hour: 3600
proxies:
  exits:
{{range .Exits}}    - "{{.}}"
{{end}}
sinks:
  - sqlite: {table: prices}
`

// No secret reaches an output, a log at its most talkative, the summary, the
// journal, the database, what a failed login leaves behind or what a worker
// tells of its exits.
func TestSecretsStaySecret(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.exchange(func(o *demo.Options) {
		o.TokenLife = 24 * time.Second // half of it is enough for a login, also on a busy machine
		o.User, o.Password = siteUser, sitePassword
		o.ProxyUser, o.ProxyPassword = proxyUser, proxyPassword
		o.GatewayUser, o.GatewayPassword = gateUser, gatePassword
	})
	p.env = append(p.env,
		"SITE_USER="+siteUser, "SITE_PASSWORD="+sitePassword, "WRONG_SITE="+wrongSite,
		"PROXY_USER="+proxyUser, "PROXY_PASSWORD="+proxyPassword, "WRONG_PROXY="+wrongProxy,
		"GATE_USER="+gateUser, "GATE_PASSWORD="+gatePassword)
	said := &output{}
	through := relay(t, fmt.Sprintf("127.0.0.11:%d", p.Port+1), said)
	other := relay(t, fmt.Sprintf("127.0.0.12:%d", p.Port+1), said)
	gate := relay(t, fmt.Sprintf("127.0.0.1:%d", p.Port+3), said)
	socks := relay(t, fmt.Sprintf("127.0.0.15:%d", p.Port+2), said)
	const right = "${env:PROXY_USER}:${env:PROXY_PASSWORD}@"
	good := map[string]any{
		"Name": "good", "Password": "SITE_PASSWORD", "Wait": "{storage: access_token}", "OpenKey": "open-3e19-key",
		"Exits": []string{"http://" + right + through, "socks5://" + right + socks, "http://${env:GATE_USER}-session-s3ss10n-lifetime-10:${env:GATE_PASSWORD}@" + gate},
	}
	with := func(name string, changes map[string]any) map[string]any {
		m := maps.Clone(good)
		m["Name"] = name
		maps.Copy(m, changes)
		return m
	}
	files := map[string]map[string]any{
		"good":  good,
		"never": with("never", map[string]any{"Wait": "{cookie: never}"}),
		"wrong": with("wrong", map[string]any{"Password": "WRONG_SITE"}),
		"proxy": with("proxy", map[string]any{"Exits": []string{"http://${env:PROXY_USER}:${env:WRONG_PROXY}@" + other}}),
	}
	args := []string{"run"}
	for name, values := range files {
		p.write(name+".yaml", guarded, values)
		args = append(args, name+".yaml")
	}
	args = append(args, "--progress", "plain", "--log-level", "debug", "--summary", "out.json")

	var written bytes.Buffer // where nothing may be found
	run := func(until func(log string) bool, more ...string) {
		r := p.start(slices.Concat(args, more)...)
		r.until("all that shall be seen", func() bool { return until(r.stderr.String()) })
		list := p.start("proxies", "list")
		list.wait(0)
		says(t, list.stdout.String(), "target/good", "ACCOUNT")
		fmt.Fprintf(&written, "%s\n%s\n", list.stdout, list.stderr)
		r.interrupt()
		r.wait(0)
		fmt.Fprintf(&written, "%s\n%s\n", r.stdout, r.stderr)
		summary, err := os.ReadFile(p.path("out.json"))
		if err != nil {
			t.Fatal(err)
		}
		written.Write(summary)
	}
	has := func(log string, all ...string) bool {
		return !slices.ContainsFunc(all, func(s string) bool { return !strings.Contains(log, s) })
	}
	run(func(log string) bool {
		return has(log, `"credential renewed before its end"`, "/artifacts/never/", "/artifacts/wrong/", "proxy refuses the account", `"state":"live"`)
	}, "--log-format", "json")
	run(func(log string) bool { return has(log, `msg="logged in"`, "/artifacts/never/") })
	if n := len(p.rows("data/good.db", "prices")); n == 0 {
		t.Fatal("the good target brought nothing")
	}
	artifacts := 0
	err := filepath.WalkDir(p.path("data"), func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if strings.Contains(path, "/artifacts/") {
			artifacts++
		}
		fmt.Fprintf(&written, "%s\n%s\n", path, b)
		return err
	})
	if err != nil || artifacts < 4 {
		t.Fatalf("%d artifacts, %v", artifacts, err)
	}
	journaled := readJournal(t, p.path("data/journal"), "good/market")
	says(t, journaled, "BTC-USD", "\nnote ") // else nothing was read
	written.WriteString(journaled)

	secrets := map[string]string{
		siteUser: "the site's user", sitePassword: "the site's password", wrongSite: "the wrong password",
		proxyUser: "the proxy's user", proxyPassword: "the proxy's password", wrongProxy: "the proxy's wrong password",
		gateUser: "the gateway's user", gatePassword: "the gateway's password", "s3ss10n": "the gateway's session", "open-3e19-key": "the query of the page opened",
	}
	talk := said.String()
	for _, re := range spoken {
		found := re.FindAllStringSubmatch(talk, -1)
		if len(found) == 0 {
			t.Errorf("nobody said %v: nothing was proven about it", re)
		}
		for _, m := range found {
			secrets[m[1]] = "what was said as " + re.String()
			if token := strings.Split(m[1], "."); len(token) == 3 && len(token[2]) > 16 {
				secrets[token[2]] = "the signature of a token"
			}
		}
	}
	text := written.String()
	for secret, what := range secrets {
		if i := strings.Index(text, secret); i >= 0 {
			t.Errorf("%s is in %q", what, text[max(0, i-200):min(len(text), i+len(secret)+50)])
		}
	}
}

// readJournal returns everything that a stream's journal holds as text.
func readJournal(t *testing.T, dir, stream string) string {
	t.Helper()
	j, err := journal.Open(t.Context(), journal.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	var b strings.Builder
	log, err := j.Stream(t.Context(), stream)
	if err != nil {
		t.Fatal(err)
	}
	at, err := log.Resume(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(&b, "cursor %s\n", at.Cursor)
	for _, n := range at.Notes {
		fmt.Fprintf(&b, "note %s\n", n.Body)
	}
	partition := j.Partition(stream)
	_, last := j.Bounds(partition)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for c, err := range j.Read(ctx, framework.Position{Journal: j.ID(), Partition: partition}, func(string) bool { return true }) {
		if err != nil || c.Err != nil {
			t.Fatal(err, c)
		}
		fmt.Fprintf(&b, "%v\n", c.Streams)
		for _, ev := range c.Events {
			fmt.Fprintf(&b, "%s %s %s %s\n", ev.ID, ev.Type, ev.Cursor, ev.Data)
		}
		if c.Seq >= last {
			break
		}
	}
	return b.String()
}
