package proxies

import (
	"syscall"
	"time"
)

// tcpUserTimeout is TCP_USER_TIMEOUT of tcp(7), which package syscall lacks.
const tcpUserTimeout = 0x12

// setUserTimeout has the kernel break a connection whose sent bytes were not acknowledged for d. Keepalive does not notice
// that: it probes only an idle line.
func setUserTimeout(c syscall.RawConn, d time.Duration) error {
	var opErr error
	err := c.Control(func(fd uintptr) {
		opErr = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout, int(d.Milliseconds()))
	})
	if err != nil {
		return err
	}
	return opErr
}
