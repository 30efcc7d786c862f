package proxies

import (
	"context"
	"errors"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestSlotsAreServedInTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		exits := nExits(1)
		exits[0].MaxConns = 1
		p, _ := wired(t, Config{Exits: exits}, works)
		first, err := lease(t, p, Request{Key: "first"}).DialContext(t.Context(), "tcp", "target.example:443")
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan string, 10)
		for _, key := range []string{"a", "a", "a", "b", "c"} {
			l := lease(t, p, Request{Key: key})
			go func() {
				c, err := l.DialContext(t.Context(), "tcp", "target.example:443")
				if err != nil {
					t.Error(err)
					return
				}
				served <- key
				time.Sleep(time.Second)
				c.Close()
			}()
			synctest.Wait() // so that they queue in this order
		}
		if s := p.Stats()[0]; s.Waiting != 5 || s.Conns != 1 {
			t.Fatalf("%+v", s)
		}
		first.Close()
		synctest.Wait()
		// Somebody who comes now does not get the slot that comes free next.
		go func() {
			if dialOnce(lease(t, p, Request{Key: "late"})) == nil {
				served <- "late"
			}
		}()
		time.Sleep(10 * time.Second)
		synctest.Wait()
		close(served)
		var order []string
		for key := range served {
			order = append(order, key)
		}
		if want := []string{"a", "b", "c", "a", "late", "a"}; !slices.Equal(order, want) {
			t.Errorf("served %v, want %v", order, want)
		}
		if s := p.Stats()[0]; s.Waiting != 0 || s.Conns != 0 {
			t.Errorf("left over: %+v", s)
		}
	})
}

func TestWaitErrorNamesTheHolders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		exits := nExits(1)
		exits[0].MaxConns = 3
		p, _ := wired(t, Config{Exits: exits}, works)
		for _, key := range []string{"prices", "trades", "prices"} {
			c, err := lease(t, p, Request{Key: key}).DialContext(t.Context(), "tcp", "target.example:443")
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
		}
		l := lease(t, p, Request{Key: "late"})
		start := time.Now()
		err := dialOnce(l)
		var werr *WaitError
		if !errors.As(err, &werr) || time.Since(start) != 30*time.Second || !werr.Timeout() {
			t.Fatalf("after %v: %v", time.Since(start), err)
		}
		if want := `e00 (http://10.0.0.0:8080): no free slot of 3 after 30s; held by "prices" (2), "trades" (1)`; !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %s", err, want)
		}
		// The caller's own deadline, and cancelling.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err = l.DialContext(ctx, "tcp", "target.example:443"); !errors.As(err, &werr) || !errors.Is(err, context.DeadlineExceeded) || len(werr.Holders) != 2 || !werr.Timeout() {
			t.Errorf("%v", err)
		}
		ctx, stop := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, stop)
		if _, err = l.DialContext(ctx, "tcp", "target.example:443"); !errors.Is(err, context.Canceled) || !errors.As(err, &werr) || werr.Timeout() {
			t.Errorf("%v", err)
		}
		// The end of the lease.
		time.AfterFunc(time.Second, func() { l.Release(Unused) })
		if err := dialOnce(l); !errors.Is(err, ErrLeaseEnded) {
			t.Errorf("%v", err)
		}
		if s := p.Stats()[0]; s.Waiting != 0 || s.Conns != 3 {
			t.Errorf("left over: %+v", s)
		}
	})
}

// TestSlotGivenToOneWhoLeftIsHandedOn serves a waiter after it was cancelled and before it could leave the line.
func TestSlotGivenToOneWhoLeftIsHandedOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		exits := nExits(1)
		exits[0].MaxConns = 1
		p, _ := wired(t, Config{Exits: exits}, works)
		holder := lease(t, p, Request{Key: "holder"})
		if err := holder.wait(t.Context(), holder.exit.slots, ""); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		left, stays := make(chan error, 1), make(chan error, 1)
		go func() { left <- lease(t, p, Request{Key: "leaves"}).wait(ctx, holder.exit.slots, "") }()
		synctest.Wait()
		go func() { stays <- lease(t, p, Request{Key: "stays"}).wait(t.Context(), holder.exit.slots, "") }()
		synctest.Wait()

		p.mu.Lock()
		cancel() // wakes the waiter, which now wants the mutex
		holder.exit.slots.put("holder")
		holder.exit.slots.run(time.Now())
		if n := holder.exit.slots.held["leaves"]; n != 1 {
			t.Errorf("the waiter was not served: %v", holder.exit.slots.held)
		}
		p.unlock()

		if err := <-left; !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
		start := time.Now()
		if err := <-stays; err != nil || time.Since(start) != 0 {
			t.Errorf("the slot was lost: %v after %v", err, time.Since(start))
		}
		if s := p.Stats()[0]; s.Waiting != 0 || s.Conns != 1 {
			t.Errorf("left over: %+v", s)
		}
	})
}

// TestCancelledRequestsStayWithinTheCap has an http.Client that gives up while the proxy is still answering: the transport
// finishes those dials behind its back.
func TestCancelledRequestsStayWithinTheCap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		exits := nExits(1)
		exits[0].MaxConns = 3
		p, w := wired(t, Config{Exits: exits}, works)
		w.delay.Store(int64(300 * time.Millisecond))
		l := lease(t, p, Request{Key: "k"})
		transport := &http.Transport{DialContext: l.DialContext}
		for range 20 {
			go func() {
				ctx, cancel := context.WithTimeout(t.Context(), 60*time.Millisecond)
				defer cancel()
				req, _ := http.NewRequestWithContext(ctx, "GET", "http://target.example/", nil)
				if resp, err := transport.RoundTrip(req); err == nil {
					resp.Body.Close()
					t.Error("the request was answered")
				}
			}()
		}
		time.Sleep(100 * time.Millisecond)
		if s := p.Stats()[0]; s.Conns != int(w.open.Load()) {
			t.Errorf("%d slots for %d connections", s.Conns, w.open.Load())
		}
		time.Sleep(time.Minute)
		if w.dials.Load() == 0 || w.most.Load() > 3 {
			t.Errorf("%d dials, %d at once", w.dials.Load(), w.most.Load())
		}
		if s := p.Stats()[0]; s.Conns != int(w.open.Load()) {
			t.Errorf("%d slots for %d connections", s.Conns, w.open.Load())
		}
		transport.CloseIdleConnections()
		synctest.Wait()
		if s := p.Stats()[0]; s.Conns != 0 || w.open.Load() != 0 {
			t.Errorf("left over: %+v, %d open", s, w.open.Load())
		}
	})
}

func TestFullProxyLowersTheCapAndItGrowsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var full atomic.Bool
		p, w := wired(t, Config{Exits: nExits(1)}, func(string) string {
			if full.Load() {
				return "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 20\r\n\r\n"
			}
			return established
		})
		l := lease(t, p, Request{Key: "k"})
		var open []net.Conn
		for range 5 {
			c, err := l.DialContext(t.Context(), "tcp", "target.example:443")
			if err != nil {
				t.Fatal(err)
			}
			open = append(open, c)
		}
		full.Store(true)
		time.Sleep(time.Second)
		w.delay.Store(int64(time.Second)) // so that two dials are under way together
		for range 2 {
			go dialOnce(l)
		}
		time.Sleep(2 * time.Second)
		if s := p.Stats()[0]; s.Cap != 3 || s.State != StateOK {
			t.Errorf("7 at once were too many, twice: %+v", s)
		}
		full.Store(false)
		w.delay.Store(0)
		for _, c := range open {
			c.Close()
		}
		// Retry-After counts for everyone, and waiters are woken by the clock.
		start := time.Now()
		if err := dialOnce(l); err != nil || time.Since(start) != 19*time.Second {
			t.Errorf("dialled after %v: %v", time.Since(start), err)
		}
		for _, want := range []int{4, 5, 6, 7, 8, 8} {
			time.Sleep(time.Minute)
			if s := p.Stats()[0]; s.Cap != want {
				t.Errorf("cap %d, want %d", s.Cap, want)
			}
		}
	})
}
