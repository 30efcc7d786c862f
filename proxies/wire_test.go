package proxies

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// wire plays proxies over net.Pipe, so that time can be virtual.
type wire struct {
	answer func(proxy string) string // the answer to CONNECT; empty closes the connection
	delay  atomic.Int64              // nanoseconds before it
	open   atomic.Int64              // connections open
	most   atomic.Int64              // the most that were open at once
	dials  atomic.Int64

	tunnels bool // any 200 is followed by an echo
}

const established = "HTTP/1.1 200 OK\r\n\r\n"

func (w *wire) dial(_ context.Context, _, addr string) (net.Conn, error) {
	w.dials.Add(1)
	if n := w.open.Add(1); n > w.most.Load() {
		w.most.Store(n)
	}
	client, server := net.Pipe()
	go func() {
		defer server.Close()
		br := bufio.NewReader(server)
		if _, err := http.ReadRequest(br); err != nil {
			return
		}
		time.Sleep(time.Duration(w.delay.Load()))
		answer := w.answer(addr)
		io.WriteString(server, answer)
		if answer == established || w.tunnels {
			io.Copy(server, br)
		}
	}()
	return &wireConn{Conn: client, close: sync.OnceValue(func() error { w.open.Add(-1); return client.Close() })}, nil
}

type wireConn struct {
	net.Conn
	close func() error
}

func (c *wireConn) Close() error { return c.close() }

// nExits is n exits named e00, e01, ...
func nExits(n int) []Exit {
	exits := make([]Exit, n)
	for i := range exits {
		exits[i] = Exit{Name: fmt.Sprintf("e%02d", i), URL: &url.URL{Scheme: "http", Host: fmt.Sprintf("10.0.0.%d:8080", i)}}
	}
	return exits
}

func wired(t testing.TB, c Config, answer func(proxy string) string) (*Pool, *wire) {
	w := &wire{answer: answer}
	p := newPool(t, c)
	p.dialer.tcp = w.dial
	return p, w
}

func works(string) string { return established }
func dead(string) string  { return "HTTP/1.1 502 Bad Gateway\r\n\r\n" }

func dialOnce(l *Lease) error {
	c, err := l.DialContext(context.Background(), "tcp", "target.example:443")
	if err == nil {
		c.Close()
	}
	return err
}
