// Package watch notices that an open line has silently died.
//
// A [Watch] keeps two clocks for one connection: one of bytes (is the line
// alive) and one of events (is the feed alive: heartbeats and comments move
// the first and not the second). Both count only the time spent waiting in a
// read, so that a reader held up elsewhere is never taken for a silent server.
// The limit of the first can be learnt from the stream itself, by a [Rhythm].
// The package does not know what is being read, nor what to do about silence.
package watch

import (
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// Kind says which clock ran out.
type Kind int

// The clocks.
const (
	Silence Kind = iota + 1 // no byte
	Quiet                   // bytes, but no event
)

// Config sets the clocks of a [Watch].
type Config struct {
	// Stale is the longest wait for a byte; zero or less waits for ever.
	Stale time.Duration
	// Rhythm learns from the connection's pauses and has the byte clock wait
	// for its limit where that is longer than Stale. Nil learns nothing.
	Rhythm *Rhythm
	// Quiet is the longest wait for an event; zero or less waits for ever.
	Quiet time.Duration
	// Fire is called at most once, from a goroutine of the timer's, with the
	// clock that ran out and what it showed. It must make the blocked read
	// return, usually by closing the connection.
	Fire func(k Kind, waited time.Duration)
	// Buffered, if it is set, is called at most once, by the reader, when the
	// pauses of the connection show that somebody on the way gathers what the
	// site sends; each pause took about as long as the last one, every.
	Buffered func(every time.Duration)
}

// Watch keeps the clocks of one connection. Reading and Read are called by
// the one reader; Events may be called by it or by whoever decodes; Stop by
// anyone.
type Watch struct {
	config Config
	epoch  time.Time

	// All are nanoseconds. since is when the read in progress began (counted
	// from epoch, never 0), or 0; spent is the time waited in finished reads
	// since the last event.
	since, spent atomic.Int64
	forgiven     atomic.Int64 // of the read in progress: the program stood still
	least        atomic.Int64 // Config.Stale, until Within changes it
	stale        atomic.Int64 // the limit in force
	quiet        atomic.Int64 // Config.Quiet, until Within changes it

	events atomic.Uint32 // since the last long pause
	bursts bursts        // the reader's own

	mu      sync.Mutex // guards what follows, never held while calling out
	timer   *time.Timer
	due     time.Duration // when the timer goes off, from epoch
	excused int64         // the read, by its beginning, in which the program stood still last
	until   time.Duration // the end of the grace after that, from epoch
	stopped bool
}

const (
	// late is how much later than asked for a timer may go off, grace how long
	// a read is then left to take what lies in the socket.
	late  = 250 * time.Millisecond
	grace = time.Second
)

// New returns a watch whose clocks stand still until the first read.
func New(c Config) *Watch {
	w := &Watch{config: c, epoch: time.Now().Add(-1)}
	w.least.Store(int64(c.Stale))
	w.stale.Store(int64(w.limit()))
	w.quiet.Store(int64(c.Quiet))
	if c.Rhythm != nil {
		w.bursts.usual = c.Rhythm.Usual()
	}
	if first := w.period(); first > 0 {
		// The lock keeps check from running before timer is set.
		w.mu.Lock()
		w.timer = time.AfterFunc(first, w.check)
		w.wake(first)
		w.mu.Unlock()
	}
	return w
}

// limit is what the byte clock should wait for.
func (w *Watch) limit() time.Duration {
	least := time.Duration(w.least.Load())
	if w.config.Rhythm == nil {
		return least
	}
	return max(least, w.config.Rhythm.Limit())
}

// period is the shortest time after which a clock can have run out.
func (w *Watch) period() time.Duration {
	switch s, q := max(time.Duration(w.stale.Load()), 0), max(time.Duration(w.quiet.Load()), 0); {
	case s == 0:
		return q
	case q == 0:
		return s
	default:
		return min(s, q)
	}
}

// Within changes Config.Stale and Config.Quiet, the latter only where both the
// old and the new one end the wait.
func (w *Watch) Within(stale, quiet time.Duration) {
	w.least.Store(int64(stale))
	w.adjust()
	if quiet > 0 && w.config.Quiet > 0 && time.Duration(w.quiet.Swap(int64(quiet))) > quiet {
		w.hurry()
	}
}

// adjust brings the limit up to date.
func (w *Watch) adjust() {
	limit := int64(w.limit())
	was := w.stale.Swap(limit)
	if was == limit || was > 0 && was < limit {
		return // where the timer goes off too early, it is set anew
	}
	w.hurry()
}

// hurry has the timer go off in time for a clock that has become shorter.
func (w *Watch) hurry() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if at := time.Since(w.epoch) + w.period(); w.timer != nil && !w.stopped && at < w.due {
		w.wake(w.period())
	}
}

// wake sets the timer for the end of a wait. It runs with w.mu held.
func (w *Watch) wake(wait time.Duration) {
	const last = 2 * late
	if wait > last {
		wait -= last
	}
	w.timer.Reset(wait)
	w.due = time.Since(w.epoch) + wait
}

// Reading is called before a read that may block.
func (w *Watch) Reading() { w.since.Store(int64(time.Since(w.epoch))) }

// Read is called after it, with what it brought.
func (w *Watch) Read(p []byte) {
	began := w.since.Swap(0)
	if began == 0 || w.config.Quiet <= 0 && w.config.Rhythm == nil && w.config.Buffered == nil {
		return
	}
	pause := max(time.Since(w.epoch)-time.Duration(began)-time.Duration(w.forgiven.Swap(0)), 0)
	if w.config.Quiet > 0 {
		w.spent.Add(int64(pause))
	}
	if len(p) == 0 {
		return
	}
	if w.config.Rhythm != nil {
		w.config.Rhythm.Add(pause)
		w.adjust()
	}
	if pause >= longPause && w.config.Buffered != nil && w.bursts.end(pause, int(w.events.Swap(0))) {
		w.config.Buffered(pause)
	}
	w.bursts.cut = p[len(p)-1] != '\n' && p[len(p)-1] != '\r'
}

// Events is called for events, so many: the feed is alive.
func (w *Watch) Events(n int) {
	if w.config.Quiet > 0 {
		w.spent.Store(0)
	}
	w.events.Add(uint32(n))
}

// Stop ends the watch. Fire is not called after it has returned, unless it
// was being called already.
func (w *Watch) Stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stopped = true
	if w.timer != nil {
		w.timer.Stop()
	}
}

func (w *Watch) check() {
	var waited time.Duration
	if began := w.since.Load(); began != 0 {
		waited = time.Since(w.epoch) - time.Duration(began)
	}
	quiet := time.Duration(w.spent.Load()) + waited

	w.mu.Lock()
	if w.stopped {
		w.mu.Unlock()
		return
	}
	// A timer that goes off late says that this program stood still, or its
	// machine: what has come meanwhile may lie in the socket. The same read is
	// excused once.
	at, read := time.Since(w.epoch), w.since.Load()
	if at-w.due > late && (read == 0 || w.excused != read) {
		w.excused, w.until = read, at+grace
		if w.spent.Store(0); read != 0 {
			w.forgiven.Store(int64(at) - read)
		}
	}
	if at < w.until {
		w.wake(min(late, w.until-at))
		w.mu.Unlock()
		return
	}
	next := w.period()
	kind := Kind(0)
	if s := time.Duration(w.stale.Load()); s > 0 {
		if waited >= s {
			kind = Silence
		}
		next = min(next, s-waited)
	}
	if q := time.Duration(w.quiet.Load()); q > 0 {
		if kind == 0 && quiet >= q {
			kind, waited = Quiet, quiet
		}
		next = min(next, q-quiet)
	}
	if kind != 0 {
		w.stopped = true
	} else {
		w.wake(next)
	}
	w.mu.Unlock()
	if kind == 0 {
		return
	}
	if kind == Silence && w.config.Rhythm != nil {
		w.config.Rhythm.Alarm(waited)
	}
	w.config.Fire(kind, waited)
}

// Reader returns r with its reads watched. Closing it closes r.
func (w *Watch) Reader(r io.ReadCloser) io.ReadCloser { return &reader{r, w} }

type reader struct {
	io.ReadCloser
	w *Watch
}

func (r *reader) Read(p []byte) (int, error) {
	r.w.Reading()
	n, err := r.ReadCloser.Read(p)
	r.w.Read(p[:n])
	return n, err
}
