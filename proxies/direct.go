package proxies

import (
	"context"
	"net"
	"sync"
)

// direct dials as a pool with nothing but defaults does.
var direct = sync.OnceValues(func() (*dialer, error) {
	c := Config{Exits: []Exit{{}}}
	if err := c.setDefaults(); err != nil {
		return nil, err
	}
	return newDialer(c), nil
})

// DialDirect connects without a proxy, for those who have no pool: as a pool
// of Exit{} would, so that the kernel breaks a dead connection also while
// bytes are unacknowledged. Its errors are *DialError, or the cause of ctx.
func DialDirect(ctx context.Context, network, addr string) (net.Conn, error) {
	d, err := direct()
	if err != nil {
		return nil, err
	}
	c, _, err := d.dial(ctx, Exit{}, network, addr, func(c net.Conn) net.Conn { return c })
	return c, err
}
