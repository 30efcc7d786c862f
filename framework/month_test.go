package framework

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdline/scrape/auth"
)

// counted is a StreamLog that counts on: of the events it keeps only the last.
type counted struct {
	feed
	mu      sync.Mutex
	last    int
	wrong   []string // what did not come in its turn
	gaps    map[GapState]int
	entries int
}

func (c *counted) Append(_ context.Context, ev *Event) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	n, err := strconv.Atoi(string(ev.Data))
	if (err != nil || n != c.last+1) && len(c.wrong) < 10 {
		c.wrong = append(c.wrong, fmt.Sprintf("%s after %d", ev.Data, c.last))
	}
	c.last = n
	return nil
}

func (c *counted) Note(_ context.Context, n Note) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.entries++
	if n.Kind != NoteGap {
		return nil
	}
	var g Gap
	err := json.Unmarshal(n.Body, &g)
	c.gaps[g.State]++
	return err
}

// TestAMonthOfFaults holds a stream for thirty days of virtual time, whose
// connections live a quarter of an hour and whose credentials less than one:
// nothing is lost or doubled, and what the stream takes does not grow.
func TestAMonthOfFaults(t *testing.T) {
	for name, c := range map[string]struct {
		days, lines int
		id          func(int) string
	}{
		"one line, numbers":   {30, 1, strconv.Itoa},
		"two lines, opaque":   {30, 2, func(n int) string { return fmt.Sprintf("x%x", n*7919) }},
		"two lines, no ids":   {3, 2, func(int) string { return "" }}, // what aligns sequences takes its time
		"three lines, stamps": {3, 3, func(n int) string { return strconv.Itoa(1e9 + n/3) }},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rng := rand.New(rand.NewPCG(1, 2))
				site := &feedSite{every: 40 * time.Second, start: time.Now(), last: 1 << 40, id: c.id, data: strconv.Itoa, first: replays["before"]}
				site.fate = func(k int) fate {
					return fate{after: time.Duration(rng.Int64N(int64(30 * time.Minute))), mute: k%2 == 0, lag: time.Duration(rng.Int64N(int64(2 * time.Second)))}
				}
				logins := &countingSource{life: 50 * time.Minute}
				ids := NewIdentities(IdentityConfig{Keeper: auth.NewKeeper(auth.Config{Source: logins, RenewBefore: 5 * time.Minute, AttemptsPerHour: -1})})
				log := &counted{gaps: map[GapState]int{}}
				ctx, cancel := context.WithCancel(t.Context())
				r, err := newRunner(ctx, &Stream{Name: "t/s", Target: site, Identities: ids, Limits: quickly(), Lines: c.lines}, log)
				if err != nil {
					t.Fatal(err)
				}
				over := make(chan error, 1)
				go func() { over <- r.run(ctx) }()
				var heap []uint64
				var goroutines []int
				for range 10 {
					time.Sleep(time.Duration(c.days)*144*time.Minute + 2*time.Second)
					synctest.Wait()
					var m runtime.MemStats
					runtime.GC()
					runtime.ReadMemStats(&m)
					heap, goroutines = append(heap, m.HeapAlloc), append(goroutines, runtime.NumGoroutine())
				}
				cancel()
				if err := <-over; err != nil {
					t.Error(err)
				}
				ids.Close()
				log.mu.Lock()
				defer log.mu.Unlock()
				t.Logf("%d events, %d connections, %d logins, gaps %v; heap %v, goroutines %v", log.last, site.conns, logins.count(), log.gaps, heap, goroutines)
				if want := c.days*24*3600/40 - 10; log.last < want || len(log.wrong) > 0 {
					t.Errorf("%d events, want at least %d; out of turn: %v", log.last, want, log.wrong)
				}
				if site.conns < c.days*24*2 || logins.count() < c.days*24 {
					t.Errorf("%d connections and %d logins: the test tests little", site.conns, logins.count())
				}
				if log.gaps[GapKnown]+log.gaps[GapPossible] > 0 {
					t.Errorf("gaps %v", log.gaps)
				}
				// Some days fill the window of the splice.
				if first, last := heap[4], heap[len(heap)-1]; c.days > 10 && last > first+first/4+1<<20 {
					t.Errorf("the heap has grown from %d to %d bytes", first, last)
				}
				if first, last := goroutines[1], goroutines[len(goroutines)-1]; last > first+8 {
					t.Errorf("%d goroutines have become %d", first, last)
				}
			})
		})
	}
}
