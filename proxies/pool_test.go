package proxies

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// wire plays proxies over net.Pipe, so that time can be virtual.
type wire struct {
	answer func(proxy string) string // the answer to CONNECT; empty closes the connection
	delay  atomic.Int64              // nanoseconds before it
	open   atomic.Int64              // connections open
	most   atomic.Int64              // the most that were open at once
	dials  atomic.Int64
}

const established = "HTTP/1.1 200 OK\r\n\r\n"

func (w *wire) dial(_ context.Context, _, addr string) (net.Conn, error) {
	w.dials.Add(1)
	if n := w.open.Add(1); n > w.most.Load() {
		w.most.Store(n)
	}
	client, server := net.Pipe()
	go func() {
		defer server.Close()
		br := bufio.NewReader(server)
		if _, err := http.ReadRequest(br); err != nil {
			return
		}
		time.Sleep(time.Duration(w.delay.Load()))
		answer := w.answer(addr)
		io.WriteString(server, answer)
		if answer == established {
			io.Copy(server, br)
		}
	}()
	return &wireConn{Conn: client, close: sync.OnceValue(func() error { w.open.Add(-1); return client.Close() })}, nil
}

type wireConn struct {
	net.Conn
	close func() error
}

func (c *wireConn) Close() error { return c.close() }

// nExits is n exits named e00, e01, ...
func nExits(n int) []Exit {
	exits := make([]Exit, n)
	for i := range exits {
		exits[i] = Exit{Name: fmt.Sprintf("e%02d", i), URL: &url.URL{Scheme: "http", Host: fmt.Sprintf("10.0.0.%d:8080", i)}}
	}
	return exits
}

func wired(t testing.TB, c Config, answer func(proxy string) string) (*Pool, *wire) {
	w := &wire{answer: answer}
	p := newPool(t, c)
	p.dialer.tcp = w.dial
	return p, w
}

func works(string) string { return established }
func dead(string) string  { return "HTTP/1.1 502 Bad Gateway\r\n\r\n" }

func dialOnce(l *Lease) error {
	c, err := l.DialContext(context.Background(), "tcp", "target.example:443")
	if err == nil {
		c.Close()
	}
	return err
}

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
		if err := holder.wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		left, stays := make(chan error, 1), make(chan error, 1)
		go func() { left <- lease(t, p, Request{Key: "leaves"}).wait(ctx) }()
		synctest.Wait()
		go func() { stays <- lease(t, p, Request{Key: "stays"}).wait(t.Context()) }()
		synctest.Wait()

		p.mu.Lock()
		cancel() // wakes the waiter, which now wants the mutex
		holder.exit.slots.put("holder")
		p.serve(holder.exit, time.Now())
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

func TestQuarantineGrowsAndOneProbeEndsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var sick atomic.Bool
		sick.Store(true)
		p, _ := wired(t, Config{Exits: nExits(4)}, func(proxy string) string {
			if sick.Load() && proxy == "10.0.0.0:8080" {
				return dead("")
			}
			return established
		})
		e00 := Request{Prefer: "e00"}
		state := func() ExitStats { return p.Stats()[0] }
		l := lease(t, p, e00)
		for i := range strikes {
			if s := state(); s.State != StateOK {
				t.Fatalf("out after %d failures", i)
			}
			if dialOnce(l) == nil {
				t.Fatal("the dial went through")
			}
		}
		base := 30 * time.Second
		for try := range 9 {
			s := state()
			if s.State != StateQuarantined || s.LastError == "" {
				t.Fatalf("try %d: %+v", try, s)
			}
			d := time.Until(s.Until)
			if d < base*3/4 || d > base*5/4 || d > 30*time.Minute {
				t.Errorf("try %d: out for %v, want about %v", try, d, base)
			}
			base = min(2*base, 30*time.Minute)
			// The old lease goes on failing, which is no news.
			dialOnce(l)
			l.Report(ExitFailed)
			if now := state(); !now.Until.Equal(s.Until) {
				t.Errorf("try %d: an old lease made it longer", try)
			}
			if name := lease(t, p, e00).Exit().Name; name == "e00" {
				t.Errorf("try %d: leased while out", try)
			}
			time.Sleep(d)
			if s := state(); s.State != StateProbing {
				t.Fatalf("try %d: %+v", try, s)
			}
			// A probe that sees nothing leaves its place to the next one.
			lease(t, p, e00).Release(Unused)
			l = lease(t, p, e00)
			if l.Exit().Name != "e00" {
				t.Fatalf("try %d: no probe", try)
			}
			if name := lease(t, p, e00).Exit().Name; name == "e00" {
				t.Errorf("try %d: two probes", try)
			}
			if try == 8 {
				sick.Store(false)
			}
			dialOnce(l)
		}
		if s := state(); s.State != StateOK {
			t.Errorf("the probe was good: %+v", s)
		}
		// One report is enough; growth starts anew only after a time of health.
		l.Release(ExitFailed)
		if d := time.Until(state().Until); d < 20*time.Minute {
			t.Errorf("it failed again at once and is out for %v only", d)
		}
		time.Sleep(31 * time.Minute)
		l = lease(t, p, e00)
		l.Report(Healthy)
		l.Release(ExitFailed)
		if d := time.Until(state().Until); d > 38*time.Second {
			t.Errorf("it was healthy between and is out for %v", d)
		}
	})
}

func TestSilenceNeedsThreeReports(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, _ := wired(t, Config{Exits: nExits(4)}, works)
		l := lease(t, p, Request{Prefer: "e00"})
		for i, o := range []Outcome{ExitSilent, ExitSilent, Healthy, ExitSilent, ExitSilent, ExitSilent} {
			if s := p.Stats()[0]; s.State != StateOK {
				t.Fatalf("out before report %d", i)
			}
			if err := dialOnce(l); err != nil { // that it can be dialled proves nothing
				t.Fatal(err)
			}
			l.Report(o)
		}
		if s := p.Stats()[0]; s.State != StateQuarantined {
			t.Errorf("%+v", s)
		}
	})
}

func TestNeverMoreThanHalfIsOut(t *testing.T) {
	for n := 1; n <= 7; n++ {
		synctest.Test(t, func(t *testing.T) {
			p, _ := wired(t, Config{Exits: nExits(n)}, dead)
			for i := range n {
				lease(t, p, Request{Prefer: fmt.Sprintf("e%02d", i)}).Release(ExitFailed)
				time.Sleep(time.Second)
			}
			// Where every exit fails, the half that failed first is used; each fails again and is the worst then.
			seen := map[string]bool{}
			for i := range 100 {
				seen[lease(t, p, Request{Key: fmt.Sprint(i)}).Exit().Name] = true
			}
			if len(seen) != n-n/2 {
				t.Errorf("%d of %d are used: %v", len(seen), n, seen)
			}
		})
	}
}

func TestRefusedAccountStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		exits := nExits(6)
		for i := range exits {
			exits[i].URL.User = url.UserPassword("u", "one")
			if i == 5 {
				exits[i].URL.User = url.UserPassword("u", "two")
			}
		}
		var good atomic.Bool
		p, w := wired(t, Config{Exits: exits[:5]}, func(string) string {
			if good.Load() {
				return established
			}
			return "HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"
		})
		l := lease(t, p, Request{Key: "k"})
		other := lease(t, p, Request{Key: "k", Avoid: []string{l.Exit().Name}})
		if other.exit == l.exit {
			t.Fatal("one exit only")
		}
		var derr *DialError
		refused := func(err error) {
			t.Helper()
			if !errors.As(err, &derr) || derr.Layer() != LayerAuth || derr.Exit.Name != l.Exit().Name {
				t.Errorf("%v", err)
			}
		}
		refused(dialOnce(l))
		for range 10 {
			refused(dialOnce(l))
			refused(dialOnce(other)) // with the error of the exit that was asked
			_, err := p.Lease(t.Context(), Request{Key: "x"})
			refused(err)
		}
		if n := w.dials.Load(); n != 1 {
			t.Errorf("the wrong password was sent %d times", n)
		}
		if s := p.Stats()[3]; s.State != StateRefused || derr.RetryAfter() != 30*time.Minute {
			t.Errorf("%+v, retry after %v", s, derr.RetryAfter())
		}
		// After half an hour one dial tries, also where many want to.
		time.Sleep(30 * time.Minute)
		w.delay.Store(int64(time.Second))
		for range 5 {
			go dialOnce(other)
			go dialOnce(l)
		}
		time.Sleep(2 * time.Second)
		if n := w.dials.Load(); n != 2 {
			t.Errorf("the wrong password was sent %d times", n)
		}
		good.Store(true)
		time.Sleep(30 * time.Minute)
		if err := dialOnce(other); err != nil {
			t.Error(err)
		}
		if s := p.Stats()[3]; s.State != StateOK {
			t.Errorf("%+v", s)
		}

		// Another account goes on.
		p, _ = wired(t, Config{Exits: exits}, func(string) string { return "HTTP/1.1 407 No\r\n\r\n" })
		dialOnce(lease(t, p, Request{Prefer: "e00"}))
		if name := lease(t, p, Request{Key: "k"}).Exit().Name; name != "e05" {
			t.Errorf("leased %s", name)
		}
	})
}

func TestWaitersDoNotSendARefusedPassword(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		exits := nExits(1)
		exits[0].MaxConns = 2
		p, w := wired(t, Config{Exits: exits}, func(string) string { return "HTTP/1.1 407 No\r\n\r\n" })
		w.delay.Store(int64(time.Second))
		l := lease(t, p, Request{Key: "k"})
		for range 20 {
			go dialOnce(l)
		}
		time.Sleep(time.Minute)
		if n := w.dials.Load(); n != 2 {
			t.Errorf("the wrong password was sent %d times, 2 were under way together", n)
		}
	})
}

func TestExitRestsForOneTarget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, _ := wired(t, Config{Exits: nExits(2)}, works)
		a := Request{Key: "k", Target: "A.example"}
		first := lease(t, p, a)
		name := first.Exit().Name
		first.Release(TargetRefused)
		second := lease(t, p, a)
		if second.Exit().Name == name {
			t.Error("the exit does not rest")
		}
		if got := lease(t, p, Request{Key: "k", Target: "b.example"}).Exit().Name; got != name {
			t.Error("it rests for another target too")
		}
		second.Release(TargetRefused)
		_, err := p.Lease(t.Context(), a)
		var xerr *ExhaustedError
		if !errors.Is(err, ErrExhausted) || !errors.As(err, &xerr) || xerr.Resting != 2 || xerr.RetryAfter() <= 0 {
			t.Fatalf("%v", err)
		}
		if s := p.Stats(); !slices.Equal(s[0].Resting, []string{"a.example"}) || s[0].State != StateOK {
			t.Errorf("%+v", s)
		}
		time.Sleep(xerr.RetryAfter())
		if _, err := p.Lease(t.Context(), a); err != nil {
			t.Errorf("after the time it gave: %v", err)
		}
	})
}

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
