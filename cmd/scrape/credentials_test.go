//go:build unix

package main

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
)

// talkative is a target that uses every kind of secret, behind a proxy. Its
// site repeats in its errors whatever it is sent.
const talkative = `
name: talkative
streams:
  - name: feed
    url: {{.Site}}/feed
    query: {key: "${env:QUERY}"}
    headers: {X-Stream: "${env:STREAM}"}
    reconnect: {min: 50ms, max: 200ms}
auth:
  attempts_per_hour: 1000
  stack:
    - headers: {X-Api-Key: "${env:APIKEY}"}
    - cookies: {fixed: "${env:COOKIE}"}
    - cookie_file: {path: cookies.txt}
    - oauth2:
        grant: refresh_token
        token_url: {{.Site}}/token
        client_id: scrape
        client_secret: ${env:CLIENT}
        refresh_token: ${env:REFRESH}
        params: {audience: "${env:AUDIENCE}"}
    - login:
        url: {{.Site}}/login
        as: json
        fields: {user: "${env:USERNAME}", password: "${env:PASSWORD}"}
        totp: {code: "otpauth://totp/site?period=1&secret=${env:TOTP}"}
        headers: {X-Session: "${json:session}"}
proxies:
  exits:
    - http://${env:PROXYUSER}:${env:PROXYPASS}@{{.Exit}}
limits: {connects_per_second: 100, burst: 10}
sinks:
  - sqlite: {}
`

func TestSecretsReachNothing(t *testing.T) {
	t.Parallel()
	secrets := map[string]string{}
	for _, name := range []string{"QUERY", "STREAM", "APIKEY", "COOKIE", "CLIENT", "REFRESH", "AUDIENCE", "USERNAME", "PASSWORD", "PROXYUSER", "PROXYPASS"} {
		secrets[name] = "s3cret-" + strings.ToLower(name) + "-0123456789"
	}
	secrets["TOTP"] = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"
	// What the site gives is as secret as what it is given.
	for _, name := range []string{"access", "refreshed", "session", "set-cookie", "filed"} {
		secrets[name] = "s3cret-given-" + name + "-0123456789"
	}
	var tokens, logins, feeds atomic.Int64
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		repeat := func(status int) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(status)
			fmt.Fprintf(w, `{"error": %q, "message": %q}`, "no", fmt.Sprint(string(body), r.URL, r.Header))
		}
		switch r.URL.Path {
		case "/token":
			if tokens.Add(1) == 2 {
				repeat(http.StatusServiceUnavailable)
				return
			}
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(w, `{"access_token": %q, "refresh_token": %q, "token_type": "bearer"}`, secrets["access"], secrets["refreshed"])
		case "/login":
			if logins.Add(1) == 1 {
				repeat(http.StatusInternalServerError)
				return
			}
			http.SetCookie(w, &http.Cookie{Name: "sid", Value: secrets["set-cookie"], Path: "/", MaxAge: 3600})
			fmt.Fprintf(w, `{"session": %q}`, secrets["session"])
		case "/feed":
			n := feeds.Add(1)
			for _, want := range []string{secrets["APIKEY"], secrets["COOKIE"], secrets["access"], secrets["session"], secrets["set-cookie"], secrets["filed"], secrets["STREAM"]} {
				if !strings.Contains(fmt.Sprint(r.Header), want) {
					t.Errorf("request %d lacks %s: %v", n, want, r.Header)
				}
			}
			switch n {
			case 1:
				repeat(http.StatusUnauthorized)
			case 2:
				repeat(http.StatusInternalServerError)
			case 3:
				http.Redirect(w, r, "/feed?again="+url.QueryEscape(secrets["access"]), http.StatusFound)
			default:
				w.Header().Set("Content-Type", "text/event-stream")
				fmt.Fprint(w, "id: 1\ndata: one\n\nid: 2\ndata: two\n\n")
			}
		}
	}))
	defer site.Close()
	proxy := newConnectProxy(secrets["PROXYUSER"], secrets["PROXYPASS"], io.Discard)
	defer proxy.Close()

	p := newPlace(t)
	p.write("talkative.yaml", talkative, map[string]any{"Site": site.URL, "Exit": strings.TrimPrefix(proxy.URL, "http://")})
	host := strings.TrimPrefix(strings.Split(site.URL, ":")[1], "//")
	if err := os.WriteFile(p.path("cookies.txt"), []byte(host+"\tFALSE\t/\tFALSE\t0\tfiled\t"+secrets["filed"]+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, value := range secrets {
		p.env = append(p.env, name+"="+value)
	}
	run := p.start("run", "talkative.yaml", "--max-events", "1", "--log-level", "debug", "--progress", "plain", "--summary", "summary.json")
	run.wait(0)
	sessions := p.start("sessions")
	sessions.wait(0)
	says(t, sessions.stdout.String(), "talkative+4", "a refresh token", "talkative+5", "cookies sid")
	hand := p.start("login", "talkative.yaml")
	hand.wait(0)
	if logins.Load() < 3 || tokens.Load() < 3 || feeds.Load() < 4 {
		t.Fatalf("too little happened: %d logins, %d tokens, %d feeds", logins.Load(), tokens.Load(), feeds.Load())
	}

	places := map[string]string{}
	for name, r := range map[string]*process{"run": run, "sessions": sessions, "login": hand} {
		places["stdout of "+name], places["stderr of "+name] = r.stdout.String(), r.stderr.String()
	}
	err := filepath.WalkDir(p.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Base(path) == "cookies.txt" {
			return err
		}
		text, err := os.ReadFile(path)
		places[path] = path + "\n" + string(text)
		return err
	})
	if err != nil || len(places) < 12 {
		t.Fatalf("%d places, %v", len(places), err)
	}
	for where, text := range places {
		for name, secret := range secrets {
			for _, form := range []string{secret, url.QueryEscape(secret), base64.StdEncoding.EncodeToString([]byte(secret))} {
				if i := bytes.Index([]byte(text), []byte(form)); i >= 0 {
					t.Errorf("%s holds %s: …%.200q", where, name, text[max(0, i-80):])
				}
			}
		}
	}
}
