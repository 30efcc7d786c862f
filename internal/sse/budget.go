package sse

import "sync/atomic"

// Budget is a number of bytes shared by many decoders: what their buffers hold
// for unfinished events beyond the 32 KiB that each may use for reading. Its
// methods may be called concurrently.
type Budget struct {
	limit int64
	used  atomic.Int64
}

// NewBudget makes a budget of limit bytes.
func NewBudget(limit int64) *Budget { return &Budget{limit: limit} }

// Used tells the bytes in use.
func (b *Budget) Used() int64 { return b.used.Load() }

// Acquire takes n bytes, or none and returns false if fewer are left. It never waits.
func (b *Budget) Acquire(n int64) bool {
	if b.used.Add(n) > b.limit {
		b.used.Add(-n)
		return false
	}
	return true
}

// Release gives n bytes back.
func (b *Budget) Release(n int64) { b.used.Add(-n) }

// tight reports that more than half is in use.
func (b *Budget) tight() bool { return b.used.Load() > b.limit/2 }
