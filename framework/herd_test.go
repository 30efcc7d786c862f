package framework

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdline/scrape/auth"
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

// TestManyStreamsMoveBeforeTheirCredentialEnds has 300 streams share a
// credential whose successor they can reach at five a second only.
func TestManyStreamsMoveBeforeTheirCredentialEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const streams, perSecond, life = 300, 5, 4 * time.Minute
		source := &countingSource{life: life}
		ids := NewIdentities(IdentityConfig{Keeper: auth.NewKeeper(auth.Config{Source: source, AttemptsPerHour: -1})})
		defer ids.Close()
		limits := &Limits{ConnectsPerSecond: perSecond, Burst: perSecond}
		var mu sync.Mutex
		late := 0
		target := TargetFunc(func(context.Context, *Session, Cursor) (Connection, error) {
			ids.mu.Lock()
			end := ids.current.credential.Expires
			ids.mu.Unlock()
			c := &lostConn{gone: make(chan struct{}), every: 5 * time.Second}
			cut := time.AfterFunc(time.Until(end), func() {
				mu.Lock()
				late++
				mu.Unlock()
				c.Close()
			})
			c.closed = func() { cut.Stop() }
			return c, nil
		})
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for i := range streams {
			s := &Stream{Name: fmt.Sprint("t/", i), Target: target, Host: "site:443", Identities: ids, Limits: limits, StaleAfter: -1}
			wg.Go(func() {
				for _, err := range s.Events(ctx) {
					if err != nil {
						t.Errorf("stream %d: %v", i, err)
					}
				}
			})
		}
		time.Sleep(20 * time.Minute)
		mu.Lock()
		if late > 0 {
			t.Errorf("%d connections were held until their credential ended", late)
		}
		mu.Unlock()
		if n := source.count(); n > 10 {
			t.Errorf("%d logins in 20 minutes with credentials of %v", n, life)
		}
		cancel()
		wg.Wait()
	})
}

// lostConn brings nothing until it is lost, or an event every so often.
type lostConn struct {
	gone   chan struct{}
	once   sync.Once
	every  time.Duration
	closed func() // may be nil
}

func (c *lostConn) Next(ev *Event) error {
	if c.every == 0 {
		<-c.gone
		return io.ErrUnexpectedEOF
	}
	// The same ones for all who listen.
	n := int64(time.Now().UnixNano())/int64(c.every) + 1
	select {
	case <-time.After(time.Until(time.Unix(0, n*int64(c.every)))):
	case <-c.gone:
		return io.ErrUnexpectedEOF
	}
	id := strconv.AppendInt(nil, n, 10)
	*ev = Event{ID: id, Type: "message", Data: id, Cursor: Cursor(id), Time: time.Now()}
	return nil
}
func (c *lostConn) Close() error {
	c.once.Do(func() {
		close(c.gone)
		if c.closed != nil {
			c.closed()
		}
	})
	return nil
}
