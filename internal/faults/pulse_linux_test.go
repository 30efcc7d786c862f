package faults

import (
	"sync"
	"testing"
	"time"
)

// pulse tells how long a machine that is busy with other things has held
// everything up: the feed as much as the program that reads it, which then may
// rightly take a line for dead that has nothing.
type pulse struct {
	mu   sync.Mutex
	most time.Duration
	end  chan struct{}
}

func newPulse(t *testing.T) *pulse {
	const every = 5 * time.Millisecond
	p := &pulse{end: make(chan struct{})}
	over := make(chan struct{})
	go func() {
		defer close(over)
		for last := time.Now(); ; {
			select {
			case <-time.After(every):
			case <-p.end:
				return
			}
			now := time.Now()
			p.mu.Lock()
			p.most = max(p.most, now.Sub(last)-every)
			p.mu.Unlock()
			last = now
		}
	}()
	t.Cleanup(func() { close(p.end); <-over })
	return p
}

// heldUp is the longest that everything stood still.
func (p *pulse) heldUp() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.most
}
