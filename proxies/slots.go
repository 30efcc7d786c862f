package proxies

import (
	"container/list"
	"sync"
	"time"
)

// quiet is how long a proxy that had no room must not say so again before one more connection is tried.
const quiet = time.Minute

// slots counts the connections of one exit or account, from before dialling to Close, and queues those who wait for one. Waiters of one
// key are served in order; keys take turns. All of it is guarded by the mutex of the pools that share it, which nobody holds while waiting.
type slots struct {
	mu     *sync.Mutex    // guards all of it
	limit  int            // the configured cap
	learnt int            // the cap at cutAt, when the proxy said that it is full; 0 = nothing learnt
	cutAt  time.Time      // when learnt was set
	paused time.Time      // no slot is given before: the proxy asked us to wait
	used   int            // slots held
	held   map[string]int // of which by key

	waiting int
	turns   list.List                // of *line: the keys with waiters, the next to be served first
	lines   map[string]*list.Element // key to its element of turns
	timer   *time.Timer              // wakes waiters when paused ends or the learnt cap grows
}

// line is the waiters of one key, in order.
type line struct {
	key     string
	waiters list.List // of *waiter
}

type waiter struct {
	key   string
	ready chan struct{} // closed when the slot is the waiter's
	place *list.Element // in its line; nil once served or gone
}

func newSlots(limit int) *slots {
	return &slots{limit: limit, held: map[string]int{}, lines: map[string]*list.Element{}}
}

// cap is how many slots there are now: the configured number, or what was learnt and has grown since.
func (s *slots) cap(now time.Time) int {
	if s.learnt == 0 {
		return s.limit
	}
	if c := s.learnt + int(now.Sub(s.cutAt)/quiet); c < s.limit {
		return c
	}
	s.learnt = 0
	return s.limit
}

func (s *slots) free(now time.Time) bool {
	return s.used < s.cap(now) && !now.Before(s.paused)
}

func (s *slots) take(key string) {
	s.used++
	s.held[key]++
}

func (s *slots) put(key string) {
	s.used--
	if s.held[key]--; s.held[key] == 0 {
		delete(s.held, key)
	}
}

// cut halves the cap after the proxy said that it has no room, and gives no slot for wait. A refusal of a dial begun before
// the last cut tells nothing new, so that a burst of refusals halves once.
func (s *slots) cut(begun, now time.Time, wait time.Duration) {
	if until := now.Add(wait); until.After(s.paused) {
		s.paused = until
	}
	if !s.cutAt.IsZero() && !begun.After(s.cutAt) {
		return
	}
	s.learnt = max(1, min(s.cap(now), s.used)/2)
	s.cutAt = now
}

// join puts a waiter at the end of its key's line.
func (s *slots) join(key string) *waiter {
	w := &waiter{key: key, ready: make(chan struct{})}
	turn, ok := s.lines[key]
	if !ok {
		turn = s.turns.PushBack(&line{key: key})
		s.lines[key] = turn
	}
	w.place = turn.Value.(*line).waiters.PushBack(w)
	s.waiting++
	return w
}

// leave takes a waiter out of its line. It reports false when the waiter was served meanwhile and holds a slot.
func (s *slots) leave(w *waiter) bool {
	if w.place == nil {
		return false
	}
	turn := s.lines[w.key]
	l := turn.Value.(*line)
	l.waiters.Remove(w.place)
	w.place = nil
	s.waiting--
	if l.waiters.Len() == 0 {
		s.turns.Remove(turn)
		delete(s.lines, w.key)
	}
	return true
}

// run hands out free slots, and has itself called again when waiting alone will free some.
func (s *slots) run(now time.Time) {
	again := s.serve(now)
	if s.timer != nil {
		s.timer.Stop()
		s.timer = nil
	}
	if again > 0 {
		s.timer = time.AfterFunc(again, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.run(time.Now())
		})
	}
}

// serve hands free slots to waiters. It returns after how long it has to be called again, 0 for not before something changes.
func (s *slots) serve(now time.Time) time.Duration {
	for s.waiting > 0 && s.free(now) {
		turn := s.turns.Front()
		l := turn.Value.(*line)
		w := l.waiters.Front().Value.(*waiter)
		s.turns.MoveToBack(turn)
		s.leave(w)
		s.take(w.key)
		close(w.ready)
	}
	switch {
	case s.waiting == 0:
		return 0
	case now.Before(s.paused):
		return s.paused.Sub(now)
	case s.learnt > 0:
		return quiet - now.Sub(s.cutAt)%quiet
	}
	return 0
}
