//go:build !linux

package proxies

import (
	"syscall"
	"time"
)

// setUserTimeout does nothing where there is no TCP_USER_TIMEOUT: keepalive alone notices a dead line there.
func setUserTimeout(syscall.RawConn, time.Duration) error { return nil }
