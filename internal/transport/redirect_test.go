package transport

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"
)

func client(tr http.RoundTripper) *http.Client {
	return &http.Client{Transport: tr, CheckRedirect: CheckRedirect}
}

// secretRequest has a secret in everything that can hold one.
func secretRequest(t *testing.T, method, url, body string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url+"?key=s3cret", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"Authorization", "Cookie", "X-Api-Key", "Proxy-Authorization", "Www-Authenticate", "X-Amz-Security-Token"} {
		req.Header.Set(name, "s3cret")
	}
	req.Header.Set("Last-Event-ID", "41")
	req.Header.Set("Accept", "text/event-stream")
	return req
}

// echoSite answers with the request as it came, without its address.
func echoSite(t *testing.T) *httptest.Server {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s host=%s\n", r.Method, r.Host)
		r.Header.Write(w)
		io.Copy(w, r.Body)
	}))
	t.Cleanup(s.Close)
	return s
}

func TestRedirectsTakeNoSecretToAnotherHost(t *testing.T) {
	other := echoSite(t)
	for status, want := range map[int]struct {
		method string
		body   bool
	}{301: {"GET", false}, 302: {"GET", false}, 303: {"GET", false}, 307: {"POST", true}, 308: {"POST", true}} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			// The other host is another port, and by another name.
			for _, to := range []string{other.URL, strings.Replace(other.URL, "127.0.0.1", "localhost", 1)} {
				var home *httptest.Server
				home = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.URL.Path == "/" {
						http.Redirect(w, r, home.URL+"/again", status)
						return
					}
					if r.Header.Get("Authorization") != "s3cret" || r.Header.Get("X-Api-Key") != "s3cret" {
						t.Errorf("a redirect within the site lost the credential: %v", r.Header)
					}
					http.Redirect(w, r, to, status)
				}))
				defer home.Close()
				resp, err := client(newTransport(t, nil)).Do(secretRequest(t, "POST", home.URL+"/", "the body"))
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				b, err := io.ReadAll(resp.Body)
				got := string(b)
				if err != nil || strings.Contains(got, "s3cret") || strings.Contains(got, "Referer") {
					t.Errorf("the other host saw %s (%v)", got, err)
				}
				host, _ := url.Parse(to)
				if !strings.HasPrefix(got, want.method+" host="+host.Host) || strings.Contains(got, "the body") != want.body {
					t.Errorf("the other host saw %s", got)
				}
				if !strings.Contains(got, "Last-Event-Id: 41") || !strings.Contains(got, "Accept: text/event-stream") {
					t.Errorf("what is asked for was lost: %s", got)
				}
			}
		})
	}
}

func TestRedirectsBackHomeBringNoSecret(t *testing.T) {
	var home *httptest.Server
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, home.URL+"/trap", http.StatusFound)
	}))
	defer other.Close()
	home = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/trap" {
			r.Header.Write(w)
			return
		}
		http.Redirect(w, r, other.URL, http.StatusFound)
	}))
	defer home.Close()
	resp, err := client(newTransport(t, nil)).Do(secretRequest(t, "GET", home.URL, ""))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, _ := io.ReadAll(resp.Body); strings.Contains(string(b), "s3cret") {
		t.Errorf("another host led the secrets to an address of its choice: %s", b)
	}
}

func TestRedirectsAreBounded(t *testing.T) {
	for limit, want := range map[int]int{MaxRedirects: 200, MaxRedirects + 1: 302} {
		n := 0
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if n++; n <= limit {
				http.Redirect(w, r, fmt.Sprint("/", n), http.StatusFound)
			}
		}))
		resp, err := client(newTransport(t, s)).Get(s.URL)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%d redirects end with %d, want %d", limit, resp.StatusCode, want)
		}
		s.Close()
	}
}

// TestARedirectThatDoesNotEnd: the site sends its head, and no end.
func TestARedirectThatDoesNotEnd(t *testing.T) {
	moved := "HTTP/1.1 302 Found\r\nLocation: /next\r\nTransfer-Encoding: chunked\r\n\r\n"
	scripted(t, func(t *testing.T, s *script, tr *Transport) {
		began := time.Now()
		resp, err := client(tr).Get("http://site.test/")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if took := time.Since(began); resp.StatusCode != 200 || took != redirectTimeout {
			t.Errorf("%s after %v", resp.Status, took)
		}
	}, says(moved), says(ok))
}

func TestRedirectsNeverLeaveTLS(t *testing.T) {
	plain := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		t.Error("a redirect from https to http was followed")
	}))
	defer plain.Close()
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, plain.URL, http.StatusFound)
	}))
	defer s.Close()
	resp, err := client(newTransport(t, s)).Get(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusFound {
		t.Errorf("it ended with %d", resp.StatusCode)
	}
}

func TestUnreadableRedirectsAreNotQuoted(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", "http://[s3cret")
		w.WriteHeader(http.StatusFound)
	}))
	defer s.Close()
	resp, err := client(newTransport(t, s)).Get(s.URL)
	if err == nil {
		resp.Body.Close()
		t.Fatal("it was followed")
	}
	if strings.Contains(err.Error(), "s3cret") {
		t.Errorf("the error quotes it: %v", err)
	}
}

func TestSameSite(t *testing.T) {
	for _, test := range []struct {
		from, to string
		want     bool
	}{
		{"https://a.example/x", "https://A.example:443/y", true},
		{"http://a.example", "https://a.example", true},
		{"https://a.example", "http://a.example", false},
		{"https://a.example", "https://b.a.example", false},
		{"https://a.example", "https://a.example:8443", false},
		{"http://a.example:8080", "https://a.example", false},
		{"http://[::1]:80", "http://[::1]", true},
	} {
		from, _ := url.Parse(test.from)
		to, _ := url.Parse(test.to)
		if got := SameSite(from, to); got != test.want {
			t.Errorf("SameSite(%s, %s) is %v", test.from, test.to, got)
		}
	}
}
