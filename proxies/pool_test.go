package proxies

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestLeaseEndsBeforeItsExit(t *testing.T) {
	for _, c := range []struct{ life, least, most time.Duration }{
		{time.Minute, 4500 * time.Millisecond, 7500 * time.Millisecond},
		{time.Hour, 22500 * time.Millisecond, 37500 * time.Millisecond},
	} {
		synctest.Test(t, func(t *testing.T) {
			exits := nExits(1)
			exits[0].Lifetime = c.life
			p, _ := wired(t, Config{Exits: exits}, works)
			l := lease(t, p, Request{})
			if m := c.life - time.Until(l.Expires()); m < c.least || m > c.most {
				t.Errorf("margin %v of %v", m, c.life)
			}
			if l.Expires().Equal(lease(t, p, Request{}).Expires()) {
				t.Error("no jitter")
			}
			time.Sleep(time.Until(l.Expires()))
			if err := dialOnce(l); err != nil {
				t.Errorf("in the margin: %v", err)
			}
			time.Sleep(c.life)
			if err := dialOnce(l); !errors.Is(err, ErrLeaseEnded) {
				t.Errorf("after the end: %v", err)
			}
		})
	}
	if l := lease(t, newPool(t, Config{Exits: nExits(1)}), Request{}); !l.Expires().IsZero() {
		t.Error("it expires without a lifetime")
	}
}

// TestManyAtOnce leases, dials, reports and releases from many goroutines through exits that do everything at random.
func TestManyAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answers := []string{established, established, established, established, "", "HTTP/1.1 502 Bad\r\n\r\n", "HTTP/1.1 429 Full\r\nRetry-After: 1\r\n\r\n", "HTTP/1.1 403 No\r\n\r\n", "HTTP/1.1 407 No\r\n\r\n"}
		const exits, limit = 8, 3
		p, w := wired(t, Config{Exits: nExits(exits), MaxConnsPerExit: limit, WaitTimeout: 5 * time.Second, MaxQuarantine: time.Minute}, func(string) string {
			return answers[rand.IntN(len(answers))]
		})
		w.delay.Store(int64(100 * time.Millisecond))
		var dialled atomic.Int64
		var wg sync.WaitGroup
		for i := range 60 {
			wg.Go(func() {
				for range 60 {
					time.Sleep(rand.N(time.Second))
					l, err := p.Lease(t.Context(), Request{Key: fmt.Sprint(i % 20), Target: fmt.Sprint(rand.IntN(3))})
					if err != nil {
						continue
					}
					ctx, cancel := context.WithTimeout(t.Context(), rand.N(10*time.Second))
					if c, err := l.DialContext(ctx, "tcp", "target.example:443"); err == nil {
						dialled.Add(1)
						time.Sleep(rand.N(time.Second))
						c.Close()
					}
					cancel()
					p.Stats()
					l.Release(Outcome(rand.IntN(int(TargetRefused) + 1)))
				}
			})
		}
		wg.Wait()
		synctest.Wait()
		if dialled.Load() == 0 || w.most.Load() > exits*limit {
			t.Errorf("%d dials went through, %d connections at once", dialled.Load(), w.most.Load())
		}
		for i, s := range p.Stats() {
			if e := p.exits[i]; s.Conns != 0 || s.Leases != 0 || s.Waiting != 0 || len(e.slots.held)+len(e.slots.lines)+e.slots.turns.Len() != 0 || e.probe != nil || e.account.trying || e.slots.timer != nil {
				t.Errorf("left over: %+v", s)
			}
		}
	})
}
