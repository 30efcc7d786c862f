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

// account is what one decoder holds of a budget. Only its decoder calls hold
// and tight.
type account struct {
	budget *Budget
	held   atomic.Int64
}

// hold makes n the bytes held, or changes nothing and returns false.
func (a *account) hold(n int64) bool {
	if more := n - a.held.Load(); more > 0 && !a.budget.Acquire(more) {
		return false
	} else if more < 0 {
		a.budget.Release(-more)
	}
	a.held.Store(n)
	return true
}

// drop gives everything back. It runs when the decoder is garbage.
func (a *account) drop() { a.budget.Release(a.held.Swap(0)) }

// tight reports that something is held while more than half of the budget is in use.
func (a *account) tight() bool {
	return a.held.Load() > 0 && a.budget.used.Load() > a.budget.limit/2
}
