package transport

import (
	"io"
	"sync/atomic"
	"time"
)

// epoch is what moments are counted from; a moment is never 0.
var epoch = time.Now().Add(-1)

func now() int64 { return int64(time.Since(epoch)) }

// since is when the read in progress began, 0 while there is none.
type since struct{ v atomic.Int64 }

func (s *since) begin()    { s.v.Store(now()) }
func (s *since) end()      { s.v.Store(0) }
func (s *since) at() int64 { return s.v.Load() }

// counter counts what is read.
type counter struct {
	io.ReadCloser
	n atomic.Int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.n.Add(int64(n))
	return n, err
}
