package framework

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestAThousandStreamsComeBackWithoutAStampede has 1,000 streams lose their
// site at once, and the site refuse them for two minutes more.
func TestAThousandStreamsComeBackWithoutAStampede(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const streams, perSecond, burst = 1000, 20, 40
		limits := &Limits{ConnectsPerSecond: perSecond, Burst: burst}
		start := time.Now()
		down, up := start.Add(10*time.Minute), start.Add(12*time.Minute)
		var mu sync.Mutex
		var attempts []time.Duration
		open, most := 0, 0
		target := TargetFunc(func(ctx context.Context, s *Session, _ Cursor) (Connection, error) {
			now := time.Now()
			mu.Lock()
			defer mu.Unlock()
			attempts = append(attempts, now.Sub(start))
			if now.After(down) && now.Before(up) {
				return nil, errors.New("connection refused")
			}
			open++
			most = max(most, open)
			c := &lostConn{gone: make(chan struct{})}
			if now.Before(down) {
				time.AfterFunc(time.Until(down), func() { mu.Lock(); open--; mu.Unlock(); c.Close() })
			}
			return c, nil
		})
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for i := range streams {
			s := &Stream{Name: fmt.Sprint("t/", i), Target: target, Host: "site:443", Limits: limits, StaleAfter: -1}
			wg.Go(func() {
				for _, err := range s.Events(ctx) {
					t.Errorf("stream %d: %v", i, err)
				}
			})
		}
		time.Sleep(time.Until(up.Add(10 * time.Minute)))
		mu.Lock()
		if open != streams {
			t.Errorf("%d of %d streams are back after ten minutes", open, streams)
		}
		mu.Unlock()
		cancel()
		wg.Wait()

		slices.Sort(attempts)
		if !slices.ContainsFunc(attempts, func(at time.Duration) bool { return at > 10*time.Minute && at < 11*time.Minute }) {
			t.Error("nobody tried within the first minute")
		}
		// A token bucket: within any stretch of time the burst and what the
		// pace adds.
		for i, first := range attempts {
			for _, seconds := range []int{1, 10, 60} {
				window := time.Duration(seconds) * time.Second
				n := 0
				for _, at := range attempts[i:] {
					if at-first >= window {
						break
					}
					n++
				}
				if n > burst+seconds*perSecond+1 {
					t.Fatalf("%d attempts within %v of %v, allowed are %d a second", n, window, first, perSecond)
				}
			}
		}
	})
}

// lostConn brings nothing until it is lost.
type lostConn struct {
	gone chan struct{}
	once sync.Once
}

func (c *lostConn) Next(*Event) error { <-c.gone; return io.ErrUnexpectedEOF }
func (c *lostConn) Close() error      { c.once.Do(func() { close(c.gone) }); return nil }
