package proxies

import (
	"net"
	"syscall"
	"testing"
	"time"
)

func TestSocketsNoticeADeadLine(t *testing.T) {
	target := echo(t)
	for name, c := range map[string]struct {
		config                     Config
		timeout, idle, probe, many int
	}{
		"default": {Config{}, 30_000, 15, 5, 3},
		"own":     {Config{UserTimeout: 3 * time.Second, KeepAlive: net.KeepAliveConfig{Enable: true, Idle: 2 * time.Second, Interval: time.Second, Count: 4}}, 3000, 2, 1, 4},
	} {
		c.config.Exits = []Exit{{}}
		l := lease(t, newPool(t, c.config), Request{})
		cn, err := l.DialContext(t.Context(), "tcp", target.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer cn.Close()
		checkOptions(t, name, cn.(*conn).Conn, map[int]int{tcpUserTimeout: c.timeout, syscall.TCP_KEEPIDLE: c.idle, syscall.TCP_KEEPINTVL: c.probe, syscall.TCP_KEEPCNT: c.many})
	}
}

func TestASocketWithoutAPoolNoticesADeadLine(t *testing.T) {
	cn, err := DialDirect(t.Context(), "tcp", echo(t).addr)
	if err != nil {
		t.Fatal(err)
	}
	defer cn.Close()
	checkOptions(t, "direct", cn, map[int]int{tcpUserTimeout: 30_000, syscall.TCP_KEEPIDLE: 15, syscall.TCP_KEEPINTVL: 5, syscall.TCP_KEEPCNT: 3})
}

func checkOptions(t *testing.T, name string, c net.Conn, options map[int]int) {
	t.Helper()
	rc, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for option, want := range options {
		got := 0
		if err := rc.Control(func(fd uintptr) { got, err = syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, option) }); err != nil || got != want {
			t.Errorf("%s: option %#x is %d, want %d: %v", name, option, got, want, err)
		}
	}
}
