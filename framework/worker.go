package framework

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Config is what a [Worker] runs. Journal and Streams are required.
type Config struct {
	Journal Journal
	Streams []*Stream
	Sinks   []SinkConfig
	// DeadLetters keeps events that could not be decoded or delivered; it
	// returns when that is durable. The same letter may come again. It is
	// called concurrently. Nil only counts them.
	DeadLetters func([]DeadLetter) error
	// WhenFull is what happens when a sink makes the journal keep MaxBytes in a
	// partition; empty means [FullBlock]. Without MaxBytes that is three
	// quarters of the space that the journal and what is free on its disk take
	// together. Only a Journal that is a [Measurer] can tell.
	WhenFull FullPolicy
	MaxBytes int64
	// MaxEvents ends the run after so many events; 0 means no such end.
	MaxEvents uint64
	// DrainTimeout bounds the delivery of what is in the journal after the
	// streams have ended; 0 means 30 s. What it leaves is delivered by the
	// next run.
	DrainTimeout time.Duration
	Log          *slog.Logger
}

// Worker holds streams and delivers what they bring.
type Worker struct {
	config     Config
	share      *allowance
	deliverers []*deliverer // not changed once prepared

	updating sync.Mutex    // one Update at a time
	idle     chan struct{} // closed when no stream is held any more

	mu      sync.Mutex // guards what follows, once prepared
	runners []*runner  // of the streams that are held, and of those that were
	alive   int        // how many of them run
	begin   func(*runner)
	brakes  map[string]*brake // by stream; replaced, never changed

	// Guarded by updating, once prepared.
	recipe  recipe
	columns [][]Column // of the deliverers

	began    time.Time
	ended    atomic.Int64 // nanoseconds after began
	drain    chan struct{}
	drained  sync.Once
	prepared chan struct{} // closed when runners and deliverers may be looked at
}

// NewWorker checks the configuration. It starts nothing.
func NewWorker(c Config) (*Worker, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.DrainTimeout <= 0 {
		c.DrainTimeout = 30 * time.Second
	}
	if err := checkStreams(c.Streams); err != nil {
		return nil, err
	}
	ids := map[string]bool{}
	for i := range c.Sinks {
		s := &c.Sinks[i]
		if ids[s.ID] {
			return nil, fmt.Errorf("two sinks have the id %q", s.ID)
		}
		ids[s.ID] = true
		s.defaults()
	}
	return &Worker{config: c, began: time.Now(), brakes: map[string]*brake{}, drain: make(chan struct{}), prepared: make(chan struct{}), idle: make(chan struct{})}, nil
}

func checkStreams(streams []*Stream) error {
	names := map[string]bool{}
	for _, s := range streams {
		if s.Name == "" || s.Target == nil {
			return fmt.Errorf("stream %q needs a name and a target", s.Name)
		}
		if names[s.Name] {
			return fmt.Errorf("two streams are named %q", s.Name)
		}
		names[s.Name] = true
	}
	if len(streams) == 0 {
		return errors.New("there is no stream to hold")
	}
	return nil
}

// left notes that one stream less is held.
func (w *Worker) left() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.alive--; w.alive == 0 {
		close(w.idle)
	}
}

// StreamError says which streams had to be given up.
type StreamError struct{ Errs []error }

func (e *StreamError) Error() string {
	lines := make([]string, len(e.Errs))
	for i, err := range e.Errs {
		lines[i] = err.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap returns why, one error a stream.
func (e *StreamError) Unwrap() []error { return e.Errs }

// Drain asks Run to stop reading, to deliver what it has and to return. It may
// be called from any goroutine, also more than once.
func (w *Worker) Drain() { w.drained.Do(func() { close(w.drain) }) }

// Run holds the streams until all have ended, Drain is called or ctx ends. With
// ctx it stops at once: what is in the journal is delivered by the next run. It
// may be called once. The error is a *PositionError when a destination does
// not belong to the journal (nothing is read then), a *StreamError when
// streams had to be given up, or the journal's.
func (w *Worker) Run(ctx context.Context) error {
	defer func() { w.ended.Store(int64(time.Since(w.began))) }()
	if err := w.prepare(ctx); err != nil {
		return err
	}
	close(w.prepared)

	sinkCtx, stopSinks := context.WithCancel(ctx)
	defer stopSinks()
	var sinks sync.WaitGroup
	sinkErrs := make([]error, len(w.deliverers))
	noMore := make(chan struct{})
	for i, d := range w.deliverers {
		d.drain = noMore
		sinks.Go(func() { sinkErrs[i] = d.run(sinkCtx) })
	}

	var watch sync.WaitGroup
	if m, ok := w.config.Journal.(Measurer); ok {
		h := &holds{
			journal: w.config.Journal, measure: m, policy: cmp.Or(w.config.WhenFull, FullBlock), most: w.config.MaxBytes,
			deliverers: w.deliverers, log: w.config.Log,
			brakes: func() map[string]*brake { w.mu.Lock(); defer w.mu.Unlock(); return w.brakes },
		}
		watch.Go(func() { h.run(sinkCtx) })
	}

	readCtx, stopReading := context.WithCancel(ctx)
	defer stopReading()
	go func() {
		select {
		case <-w.drain:
			stopReading()
		case <-readCtx.Done():
		}
	}()
	w.mu.Lock()
	w.begin = func(r *runner) {
		ctx, stop := context.WithCancel(readCtx)
		r.stop = stop
		w.alive++
		go func() {
			defer stop()
			err := r.run(ctx)
			var journal *journalError
			if errors.As(err, &journal) {
				stopReading() // nothing can be promised any more
			}
			r.err = err
			close(r.done)
			w.left()
		}()
	}
	for _, r := range w.runners {
		w.begin(r)
	}
	w.mu.Unlock()
	<-w.idle
	stopReading()
	w.closeIdentities()

	err := w.config.Journal.Sync(ctx)
	close(noMore)
	deadline := time.AfterFunc(w.config.DrainTimeout, func() {
		w.config.Log.Warn("the sinks did not take everything in time: the rest is in the journal and follows with the next run")
		stopSinks()
	})
	sinks.Wait()
	deadline.Stop()
	stopSinks()
	watch.Wait()
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("journal: %w", err)
	}
	if err := errors.Join(sinkErrs...); err != nil {
		return err
	}
	var failed []error
	for _, r := range w.runners { // nobody changes them any more
		if r.err != nil {
			failed = append(failed, r.err)
		}
	}
	if len(failed) > 0 {
		return &StreamError{failed}
	}
	return nil
}

// prepare takes up the streams and meets every destination once, before the
// first event is read.
func (w *Worker) prepare(ctx context.Context) error {
	if w.config.MaxEvents > 0 {
		w.share = &allowance{left: w.config.MaxEvents, over: w.Drain}
	}
	partitions := map[int]bool{}
	for _, s := range w.config.Streams {
		partitions[w.config.Journal.Partition(s.Name)] = true
	}
	// Until a sink has said where it is, it holds everything, also while those
	// before it are slow to answer.
	for _, c := range w.config.Sinks {
		for p := range partitions {
			w.config.Journal.Release(c.ID, Position{Journal: w.config.Journal.ID(), Partition: p})
		}
	}
	w.recipe = newRecipe()
	for _, s := range w.config.Streams {
		r, err := w.take(ctx, s)
		if err != nil {
			return err
		}
		w.recipe.add(s)
		w.recipe.stats[s.Name] = &r.stats
		w.brakes[s.Name] = r.brake
		w.runners = append(w.runners, r)
	}
	judged := slices.ContainsFunc(w.config.Sinks, func(c SinkConfig) bool { return c.Refused })
	for _, c := range w.config.Sinks {
		layout, err := w.recipe.layout(&c)
		if err != nil {
			return err
		}
		for p := range partitions {
			d := &deliverer{
				SinkConfig: c, journal: w.config.Journal, partition: p,
				dead: w.config.DeadLetters, judged: judged, log: w.config.Log,
			}
			d.turn(&delivery{w.recipe, layout})
			if _, last := w.config.Journal.Bounds(p); c.Latest {
				d.begin = last
			}
			d.stats.ID, d.stats.State = c.ID, "opening"
			d.loses = w.config.WhenFull == FullDrop
			if !c.Refused {
				d.lost = func(gone *DamageError) { w.lost(ctx, d, gone) }
			}
			d.floor, _ = w.config.Journal.Bounds(p)
			pos, err := d.open(ctx)
			var impossible *PositionError
			switch {
			case errors.As(err, &impossible):
				return err
			case err != nil && ctx.Err() != nil:
				return nil
			case err != nil:
				w.config.Log.Warn("sink does not answer yet: its events wait in the journal", "sink", c.ID, "error", err)
			default:
				w.config.Journal.Release(c.ID, pos)
				d.move(pos)
			}
			if d.sink != nil {
				if err := d.sink.Close(); err != nil {
					w.config.Log.Warn("sink does not close", "sink", c.ID, "error", err)
				}
			}
			w.deliverers, w.columns = append(w.deliverers, d), append(w.columns, layout.columns)
		}
	}
	return nil
}

// lost writes into the ledgers of its streams what has not reached a sink.
func (w *Worker) lost(ctx context.Context, d *deliverer, gone *DamageError) {
	note := newNote(NoteLost, Lost{At: time.Now(), Sink: d.ID, FromChunk: gone.From, ToChunk: gone.To, Why: gone.Err.Error()})
	w.mu.Lock()
	runners := slices.Clone(w.runners)
	w.mu.Unlock()
	for _, r := range runners {
		if d.Wants(r.Name) && d.partition == w.config.Journal.Partition(r.Name) {
			if err := r.log.Note(ctx, note); err != nil {
				w.config.Log.Warn("the ledger could not be written", "stream", r.Name, "error", err)
			}
		}
	}
}

// take takes up a stream that is about to be held.
func (w *Worker) take(ctx context.Context, s *Stream) (*runner, error) {
	log, err := w.config.Journal.Stream(ctx, s.Name)
	if err != nil {
		return nil, err
	}
	braked := &brakedLog{StreamLog: log}
	r, err := newRunner(ctx, s, braked)
	if err != nil {
		return nil, err
	}
	r.brake, r.share, r.done = &braked.brake, w.share, make(chan struct{})
	return r, nil
}

// allowance is how many events the streams of a worker may still take. A nil
// one has no end.
type allowance struct {
	over func() // called when the last event has been appended

	mu   sync.Mutex
	left uint64 // to be taken
	open uint64 // taken and not appended yet
}

// take takes one event; false when there is none left.
func (a *allowance) take() bool {
	if a == nil {
		return true
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.left == 0 {
		return false
	}
	a.left--
	a.open++
	return true
}

// done tells that an event taken has been appended, and whether it was the
// last one of all.
func (a *allowance) done() bool {
	if a == nil {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.open--; a.left > 0 || a.open > 0 {
		return false
	}
	a.over()
	return true
}

func (w *Worker) closeIdentities() {
	for _, r := range w.runners {
		r.now().Identities.Close()
	}
}

// Stats returns the account so far. It may be called at any time from any
// goroutine.
func (w *Worker) Stats() Stats {
	now := time.Now()
	out := Stats{Streams: []StreamStats{}, Sinks: []SinkStats{}, Elapsed: now.Sub(w.began).Seconds()}
	if ended := w.ended.Load(); ended != 0 {
		out.Elapsed = time.Duration(ended).Seconds()
	}
	select {
	case <-w.prepared:
	default:
		return out
	}
	w.mu.Lock()
	runners := slices.Clone(w.runners)
	w.mu.Unlock()
	for _, r := range runners {
		s := r.stats.snapshot(now)
		s.Logins = r.now().Identities.Logins()
		if why := r.brake.why(); why != "" {
			s.State, s.Detail = "blocked", why
		}
		first := true
		for _, d := range w.deliverers {
			if d.Refused || !d.Wants(r.Name) || d.partition != w.config.Journal.Partition(r.Name) {
				continue
			}
			made, written := d.account(r.Name)
			s.Records = max(s.Records, made)
			if first {
				s.Delivered = written
			}
			s.Delivered, first = min(s.Delivered, written), false
		}
		out.Streams = append(out.Streams, s)
	}
	for _, d := range w.deliverers {
		// What is refused has no sink of the user's: it shows when it fails.
		if s := d.snapshot(); !d.Refused || s.Error != "" {
			out.Sinks = append(out.Sinks, s)
		}
	}
	return out
}
