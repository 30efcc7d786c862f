package faults

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// deafen makes the process's own end of a loopback connection drop every
// segment it is sent, so that peer falls silent for it: neither end is told.
// peer is the other end of the connection. It is false if there is none any more.
func deafen(t *testing.T, peer net.Conn) bool {
	t.Helper()
	program, err := bpf.Assemble([]bpf.Instruction{bpf.RetConstant{Val: 0}})
	if err != nil {
		t.Fatal(err)
	}
	filter := make([]unix.SockFilter, len(program))
	for i, p := range program {
		filter[i] = unix.SockFilter{Code: p.Op, Jt: p.Jt, Jf: p.Jf, K: p.K}
	}
	fd := ownEnd(t, peer)
	if fd < 0 {
		return false
	}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}); err != nil {
		t.Fatal("SO_ATTACH_FILTER:", err)
	}
	return true
}

// ownEnd finds the descriptor in this process whose local address is peer's
// remote one; -1 without one.
func ownEnd(t *testing.T, peer net.Conn) int {
	t.Helper()
	want, local := peer.RemoteAddr().String(), peer.LocalAddr().String()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		mine, err := unix.Getsockname(fd)
		if err != nil || address(mine) != want {
			continue
		}
		if theirs, err := unix.Getpeername(fd); err == nil && address(theirs) == local {
			return fd
		}
	}
	return -1
}

func address(a unix.Sockaddr) string {
	switch a := a.(type) {
	case *unix.SockaddrInet4:
		return net.JoinHostPort(net.IP(a.Addr[:]).String(), fmt.Sprint(a.Port))
	case *unix.SockaddrInet6:
		return net.JoinHostPort(net.IP(a.Addr[:]).String(), fmt.Sprint(a.Port))
	}
	return ""
}

// vanish closes a socket without a word to its peer: neither FIN nor RST, as
// a host does that loses power.
func vanish(t *testing.T, c net.Conn) {
	t.Helper()
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var failed error
	if err := raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_REPAIR, 1)
	}); err != nil {
		t.Fatal(err)
	}
	if failed != nil {
		t.Fatal("TCP_REPAIR:", failed)
	}
	c.Close()
}
