package faults

import (
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"testing"
)

// forward is a CONNECT proxy that leaves from an address of its own.
type forward struct {
	addr   string
	mu     sync.Mutex
	status int // refuse with it
	open   []tunnel
}

// tunnel is what the proxy holds of one: its ends towards the client and the
// site.
type tunnel struct{ down, up net.Conn }

func newForward(t *testing.T, from string) *forward {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &forward{addr: l.Addr().String()}
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		status := f.status
		f.mu.Unlock()
		if status != 0 {
			w.WriteHeader(status)
			return
		}
		up, err := dialer.DialContext(r.Context(), "tcp", r.Host)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		down, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			up.Close()
			return
		}
		t := tunnel{down, up}
		f.mu.Lock()
		f.open = append(f.open, t)
		f.mu.Unlock()
		defer func() {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.open = slices.DeleteFunc(f.open, func(o tunnel) bool { return o == t })
		}()
		_, _ = io.WriteString(down, "HTTP/1.1 200 OK\r\n\r\n")
		go func() { _, _ = io.Copy(up, down); up.Close() }()
		_, _ = io.Copy(down, up)
		down.Close()
	})}
	go server.Serve(l)
	t.Cleanup(func() {
		server.Close()
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, c := range f.open {
			c.down.Close()
		}
	})
	return f
}

// carries is the proxy's end, towards the client, of the tunnel whose other end
// the site sees; nil when it is not one of this proxy's.
func (f *forward) carries(site net.Conn) net.Conn {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.open {
		if c.up.LocalAddr().String() == site.RemoteAddr().String() {
			return c.down
		}
	}
	return nil
}

func (f *forward) refuse(status int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.status = status
}
