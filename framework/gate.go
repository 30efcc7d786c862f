package framework

import (
	"container/list"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// gate counts what may be open at once, and queues those who wait, in order.
// Its zero value lets everybody through.
type gate struct {
	what string // what is capped, for errors

	mu    sync.Mutex
	limit int // 0 for none
	used  int
	held  map[string]int // of which by whom
	queue list.List      // of *gateTicket
}

type gateTicket struct {
	who   string
	ready chan struct{} // closed when the place is the waiter's
}

// gateWait is the longest wait for a place.
const gateWait = 30 * time.Second

// LimitError says that a cap of our own on open streams left no place.
type LimitError struct {
	// What is capped, such as "host example.com:443".
	What string
	// Limit is the cap.
	Limit int
	// Holders are who held the places: stream names, in order.
	Holders []string
	// Waited is how long the wait was.
	Waited time.Duration
}

func (e *LimitError) Error() string {
	const shown = 8
	text := strings.Join(e.Holders[:min(shown, len(e.Holders))], ", ")
	if more := len(e.Holders) - shown; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return fmt.Sprintf("%s: no place among %d open streams after %v; held by %s: raise the limit if the site allows it, or hold fewer streams",
		e.What, e.Limit, e.Waited.Round(time.Millisecond), text)
}

// enter takes a place for who, waiting for one if wait is set. The error is
// ctx's or a *LimitError. leave gives the place to the next in the queue and
// may be called more than once.
func (g *gate) enter(ctx context.Context, who string, wait bool) (leave func(), err error) {
	g.mu.Lock()
	if g.limit <= 0 {
		g.mu.Unlock()
		return func() {}, nil
	}
	began := time.Now()
	if g.used < g.limit && g.queue.Len() == 0 {
		g.take(who)
		g.mu.Unlock()
		return g.leaver(who), nil
	}
	if !wait {
		defer g.mu.Unlock()
		return nil, g.full(began)
	}
	t := &gateTicket{who, make(chan struct{})}
	place := g.queue.PushBack(t)
	g.mu.Unlock()

	timeout := time.NewTimer(gateWait)
	defer timeout.Stop()
	select {
	case <-t.ready:
		return g.leaver(who), nil
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-timeout.C:
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-t.ready: // it came at the last moment
		if err == nil {
			return g.leaver(who), nil
		}
		g.put(who)
		return nil, err
	default:
	}
	g.queue.Remove(place)
	if err == nil {
		err = g.full(began)
	}
	return nil, err
}

func (g *gate) take(who string) {
	if g.held == nil {
		g.held = map[string]int{}
	}
	g.used++
	g.held[who]++
}

// put frees a place and hands it on.
func (g *gate) put(who string) {
	g.used--
	if g.held[who]--; g.held[who] == 0 {
		delete(g.held, who)
	}
	g.admit()
}

// admit lets those in for whom there is a place.
func (g *gate) admit() {
	for (g.limit <= 0 || g.used < g.limit) && g.queue.Len() > 0 {
		t := g.queue.Remove(g.queue.Front()).(*gateTicket)
		g.take(t.who)
		close(t.ready)
	}
}

// change sets another limit. Who is in stays; who came in while there was none
// is not counted.
func (g *gate) change(limit int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.limit = limit
	g.admit()
}

func (g *gate) leaver(who string) func() {
	return sync.OnceFunc(func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.put(who)
	})
}

func (g *gate) full(began time.Time) error {
	e := &LimitError{What: g.what, Limit: g.limit, Waited: time.Since(began)}
	for who := range g.held {
		e.Holders = append(e.Holders, who)
	}
	slices.Sort(e.Holders)
	return e
}
