//go:build linux

package browser

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync/atomic"
	"testing"
	"time"
)

// newForwarder counts what is dialled.
func newForwarder(t *testing.T, dialErr *atomic.Pointer[error]) (*forwarder, *atomic.Int64) {
	t.Helper()
	var dials atomic.Int64
	f, err := startForwarder(func(ctx context.Context, network, addr string) (net.Conn, error) {
		dials.Add(1)
		if dialErr != nil && dialErr.Load() != nil {
			return nil, *dialErr.Load()
		}
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.close)
	return f, &dials
}

// clientOf goes through f as user.
func clientOf(t *testing.T, f *forwarder, user *url.Userinfo) *http.Client {
	t.Helper()
	transport := &http.Transport{
		Proxy:           http.ProxyURL(&url.URL{Scheme: "http", Host: f.listener.Addr().String(), User: user}),
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func TestForwarderServesNobodyWithoutItsPassword(t *testing.T) {
	site := httptest.NewServer(http.NotFoundHandler())
	defer site.Close()
	secure := httptest.NewTLSServer(http.NotFoundHandler())
	defer secure.Close()
	f, dials := newForwarder(t, nil)
	for name, user := range map[string]*url.Userinfo{
		"none": nil, "wrong": url.UserPassword(f.user, "wrong"), "empty": url.UserPassword("", ""), "other user": url.UserPassword("x", f.password),
	} {
		client := clientOf(t, f, user)
		response, err := client.Get(site.URL)
		if err != nil || response.StatusCode != http.StatusProxyAuthRequired {
			t.Errorf("%s: %v, %v", name, response, err)
		}
		if response, err := client.Get(secure.URL); err == nil {
			t.Errorf("%s, TLS: %v", name, response.Status)
		}
	}
	if dials.Load() != 0 {
		t.Error("it dialled for a stranger")
	}
}

func TestForwarderForwards(t *testing.T) {
	site := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, name := range []string{"Proxy-Authorization", "X-Forwarded-For", "Via"} {
			if r.Header.Get(name) != "" {
				t.Errorf("the site sees %s", name)
			}
		}
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %s", r.Method, r.URL, body)
	})
	plain, secure := httptest.NewServer(site), httptest.NewTLSServer(site)
	defer plain.Close()
	defer secure.Close()
	f, _ := newForwarder(t, nil)
	client := clientOf(t, f, url.UserPassword(f.user, f.password))
	for _, server := range []*httptest.Server{plain, secure} {
		response, err := client.Post(server.URL+"/a?b=c", "text/plain", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(response.Body)
		response.Body.Close()
		if string(body) != "POST /a?b=c " {
			t.Errorf("%q", body)
		}
	}
	// What is no request to a proxy is refused, also with the password.
	request, err := http.NewRequest(http.MethodGet, f.url()+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.SetBasicAuth(f.user, f.password)
	request.Header.Set("Proxy-Authorization", request.Header.Get("Authorization"))
	response, err := http.DefaultClient.Do(request)
	if err != nil || response.StatusCode != http.StatusBadRequest {
		t.Errorf("%v, %v", response, err)
	}
}

func TestForwarderRemembersWhyItCouldNotDial(t *testing.T) {
	site := httptest.NewServer(http.NotFoundHandler())
	defer site.Close()
	var failing atomic.Pointer[error]
	refused := errors.New("refused")
	failing.Store(&refused)
	f, _ := newForwarder(t, &failing)
	client := clientOf(t, f, url.UserPassword(f.user, f.password))
	if response, err := client.Get(site.URL); err == nil {
		t.Errorf("an answer of the forwarder's own: %s", response.Status)
	}
	if response, err := client.Get("https://other.test/"); err == nil {
		t.Errorf("%s", response.Status)
	}
	for _, host := range []string{"127.0.0.1", "other.test"} {
		if err := f.dialError([]string{host}); !errors.Is(err, refused) {
			t.Errorf("%s: %v", host, err)
		}
	}
	if err := f.dialError([]string{"third.test"}); err != nil {
		t.Errorf("a host never asked for: %v", err)
	}
	failing.Store(nil)
	if _, err := client.Get(site.URL); err != nil {
		t.Error(err)
	}
	if err := f.dialError([]string{"127.0.0.1"}); err != nil {
		t.Errorf("reached since: %v", err)
	}
}

func TestForwarderTunnelEndsWithIt(t *testing.T) {
	// A site that speaks first, and then waits.
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	ended := make(chan error, 1)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			ended <- err
			return
		}
		defer conn.Close()
		io.WriteString(conn, "hello\n")
		_, err = io.Copy(io.Discard, conn)
		ended <- err
	}()
	f, _ := newForwarder(t, nil)
	conn, err := net.Dial("tcp", f.listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	request := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: listener.Addr().String()}, Host: listener.Addr().String(), Header: http.Header{}}
	request.SetBasicAuth(f.user, f.password)
	request.Header.Set("Proxy-Authorization", request.Header.Get("Authorization"))
	if err := request.Write(conn); err != nil {
		t.Fatal(err)
	}
	reader := bufio.NewReader(conn)
	response, err := http.ReadResponse(reader, request)
	if err != nil || response.StatusCode != 200 {
		t.Fatalf("%v, %v", response, err)
	}
	if line, err := reader.ReadString('\n'); line != "hello\n" {
		t.Fatalf("%q, %v", line, err)
	}
	closed := make(chan struct{})
	go func() { f.close(); close(closed) }()
	select {
	case <-closed:
	case <-time.After(10 * time.Second):
		t.Fatal("close waits for an open tunnel")
	}
	if _, err := reader.ReadByte(); err == nil {
		t.Error("the browser's side is still open")
	}
	<-ended // so is the site's, else this hangs
	if _, err := net.Dial("tcp", f.listener.Addr().String()); err == nil {
		t.Error("it still listens")
	}
}
