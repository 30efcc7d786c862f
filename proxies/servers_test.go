package proxies

import (
	"bufio"
	"cmp"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// nobody is an address on loopback where nobody listens. One that was free a moment ago may be another program's by now.
const nobody = "127.0.0.1:1"

// server is a listener on loopback whose connections are handled one goroutine each and all gone when the test ends.
type server struct {
	addr     string
	accepted atomic.Int64
}

func serve(t testing.TB, config *tls.Config, handle func(c net.Conn)) *server {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{addr: ln.Addr().String()}
	var wg sync.WaitGroup
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			s.accepted.Add(1)
			if config != nil {
				c = tls.Server(c, config)
			}
			mu.Lock()
			open[c] = true
			mu.Unlock()
			wg.Go(func() {
				handle(c)
				c.Close()
				mu.Lock()
				delete(open, c)
				mu.Unlock()
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		mu.Lock()
		for c := range open {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return s
}

// echo is a destination that speaks second.
func echo(t testing.TB) *server {
	return serve(t, nil, func(c net.Conn) { io.Copy(c, c) })
}

// join copies both ways until one side ends.
func join(a net.Conn, fromA io.Reader, b net.Conn) {
	var wg sync.WaitGroup
	wg.Go(func() { io.Copy(b, fromA); b.Close(); a.Close() })
	wg.Go(func() { io.Copy(a, b); b.Close(); a.Close() })
	wg.Wait()
}

// proxyServer is a real proxy for CONNECT or SOCKS5.
type proxyServer struct {
	*server
	user, password string
	refuse         func(target string) string // CONNECT: the whole answer, empty to let it through
	status         int                        // CONNECT: of a wrong password, default 407
	reply          byte                       // SOCKS5: the reply of a refusal, 0 to let it through
	seen           sync.Map                   // targets as they were asked for
	heard          func(http.Header)          // CONNECT: is given the headers
}

func connectProxy(t testing.TB, p *proxyServer, config *tls.Config) *proxyServer {
	t.Helper()
	want := "Basic " + base64.StdEncoding.EncodeToString([]byte(p.user+":"+p.password))
	p.server = serve(t, config, func(c net.Conn) {
		br := bufio.NewReader(c)
		req, err := http.ReadRequest(br)
		if err != nil || req.Method != http.MethodConnect {
			return
		}
		p.seen.Store(req.Host, true)
		if p.heard != nil {
			p.heard(req.Header)
		}
		if p.user != "" && req.Header.Get("Proxy-Authorization") != want {
			status := cmp.Or(p.status, 407)
			// As unfriendly as can be: it quotes what it was given.
			got, _ := base64.StdEncoding.DecodeString(strings.TrimPrefix(req.Header.Get("Proxy-Authorization"), "Basic "))
			body := "no such user: " + string(got)
			fmt.Fprintf(c, "HTTP/1.1 %d Denied %s\r\nX-Error-Description: bad %s\r\nContent-Length: %d\r\n\r\n%s", status, url.QueryEscape(string(got)), url.PathEscape(string(got)), len(body), body)
			return
		}
		if p.refuse != nil {
			if answer := p.refuse(req.Host); answer != "" {
				io.WriteString(c, answer)
				return
			}
		}
		up, err := net.Dial("tcp", req.Host)
		if err != nil {
			io.WriteString(c, "HTTP/1.1 502 Bad Gateway\r\n\r\n"+err.Error())
			return
		}
		io.WriteString(c, "HTTP/1.1 200 Connection established\r\n\r\n")
		join(c, br, up)
	})
	return p
}

func socksProxy(t testing.TB, p *proxyServer) *proxyServer {
	t.Helper()
	p.server = serve(t, nil, func(c net.Conn) {
		// read gives n bytes, and field a string with its length before it; both give nothing once the client has gone.
		read := func(n int) []byte {
			b := make([]byte, n)
			if _, err := io.ReadFull(c, b); err != nil {
				return make([]byte, n)
			}
			return b
		}
		field := func() string { return string(read(int(read(1)[0]))) }
		if read(1)[0] != 5 {
			return
		}
		method := byte(0)
		if methods := field(); p.user != "" {
			if method = 2; !strings.Contains(methods, "\x02") {
				method = 0xff
			}
		}
		c.Write([]byte{5, method})
		switch method {
		case 0xff:
			return
		case 2:
			read(1)
			if user, password := field(), field(); user != p.user || password != p.password {
				c.Write([]byte{1, 1})
				return
			}
			c.Write([]byte{1, 0})
		}
		host := ""
		switch read(4)[3] {
		case 1:
			host = net.IP(read(4)).String()
		case 3:
			host = field()
		default:
			return
		}
		port := read(2)
		addr := net.JoinHostPort(host, fmt.Sprint(int(port[0])<<8|int(port[1])))
		p.seen.Store(addr, true)
		if p.reply != 0 {
			c.Write([]byte{5, p.reply, 0, 1, 0, 0, 0, 0, 0, 0})
			return
		}
		up, err := net.Dial("tcp", addr)
		if err != nil {
			c.Write([]byte{5, 5, 0, 1, 0, 0, 0, 0, 0, 0})
			return
		}
		c.Write([]byte{5, 0, 0, 1, 127, 0, 0, 1, 0, 0})
		join(c, c, up)
	})
	return p
}

// at is the exit of a proxy on loopback.
func at(scheme string, s *server, user, password string) Exit {
	u := &url.URL{Scheme: scheme, Host: s.addr}
	if user != "" || password != "" {
		u.User = url.UserPassword(user, password)
	}
	return Exit{URL: u}
}

func newPool(t testing.TB, c Config) *Pool {
	t.Helper()
	p, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func lease(t testing.TB, p *Pool, r Request) *Lease {
	t.Helper()
	l, err := p.Lease(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return l
}
