package framework

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// FullPolicy says what happens when the journal is full because sinks have not
// read what it holds.
type FullPolicy string

const (
	// FullBlock stops reading the streams whose sinks are that far behind, as
	// long as they are. The other streams go on, into a quarter more; then the
	// sinks are detached all the same: they never stop anyone else's streams.
	FullBlock FullPolicy = "block"
	// FullDetach detaches the sink that is furthest behind.
	FullDetach FullPolicy = "detach_sink"
	// FullDrop drops the oldest chunks. They are a known loss of each sink that
	// has not read them, which then goes on with what is left.
	FullDrop FullPolicy = "drop_oldest"
)

// Measurer is a [Journal] that knows what it takes: what Config.MaxBytes and a
// sink's MaxLag need. Its methods may be called concurrently.
type Measurer interface {
	// Behind returns how many bytes the partition holds after the chunk, nearly.
	Behind(partition int, seq uint64) (bytes int64)
	// Waiting returns when the first chunk after that one was committed; zero
	// when there is none, or when it cannot be read. It reads the disk.
	Waiting(ctx context.Context, partition int, seq uint64) (time.Time, error)
	// Reach returns the chunk after which the partition holds so many bytes,
	// nearly.
	Reach(partition int, bytes int64) (seq uint64)
	// Space returns what the journal takes on its disk and what is free there;
	// free is negative when it is not known.
	Space() (used, free int64)
}

const (
	holdEvery = 100 * time.Millisecond
	lagEvery  = time.Second
	// lagGrace is how long a sink beyond its MaxLag may go without coming
	// closer: one that catches up is left alone.
	lagGrace = time.Minute
)

// holds watches how much of the journal the sinks hold, and does what their
// limits and the policy say.
type holds struct {
	journal    Journal
	measure    Measurer
	policy     FullPolicy
	most       int64 // 0: of the disk
	deliverers []*deliverer
	brakes     func() map[string]*brake // by stream
	log        *slog.Logger

	lagged time.Time // when MaxLag was looked at
	// stopped is how much each sink held when its streams were stopped.
	stopped map[*deliverer]int64
}

// run watches until ctx ends.
func (h *holds) run(ctx context.Context) {
	h.stopped = map[*deliverer]int64{}
	t := time.NewTicker(holdEvery)
	defer t.Stop()
	for {
		h.check(ctx, time.Now())
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

// limit returns how many bytes a sink may hold before the policy sets in.
func (h *holds) limit() (full int64) {
	if h.most > 0 {
		return h.most
	}
	used, free := h.measure.Space()
	if free < 0 {
		return 0 // not known: what is written fails in time
	}
	return (used + free) / 4 * 3
}

// backlog is what a sink has to read.
type backlog struct {
	d     *deliverer
	bytes int64
}

func (h *holds) check(ctx context.Context, now time.Time) {
	full := h.limit()
	var behind []backlog
	for _, d := range h.deliverers {
		if d.gone() {
			continue
		}
		bytes := h.measure.Behind(d.partition, d.position().Seq)
		if d.MaxLagBytes > 0 && bytes > d.MaxLagBytes {
			h.detach(d, fmt.Sprintf("it is %d MB behind, and max_lag is %d MB", bytes>>20, d.MaxLagBytes>>20))
			continue
		}
		behind = append(behind, backlog{d, bytes})
	}
	if now.Sub(h.lagged) >= lagEvery {
		h.lagged = now
		h.checkLag(ctx, now)
	}
	slices.SortStableFunc(behind, func(a, b backlog) int { return cmp.Compare(b.bytes, a.bytes) })
	blocked := map[string]string{}
	for i, b := range behind {
		if full <= 0 || b.bytes < full/10*9 {
			delete(h.stopped, b.d)
			continue
		}
		over := b.bytes >= full
		switch {
		case over && h.policy == FullDetach && i == 0, h.policy == FullBlock && h.filled(b, full):
			h.detach(b.d, fmt.Sprintf("it holds %d MB of the journal, which is full at %d MB", b.bytes>>20, full>>20))
		case over && h.policy == FullDrop:
			h.drop(b, full)
		case h.policy == FullBlock:
			if over && h.stopped[b.d] == 0 {
				h.stopped[b.d] = b.bytes
			}
			for name, g := range h.brakes() {
				// Once blocked, a stream waits until there is some room again.
				if (over || g.why() != "") && b.d.Wants(name) && b.d.partition == h.journal.Partition(name) {
					blocked[name] = b.d.ID
				}
			}
		}
	}
	for name, g := range h.brakes() {
		sink := blocked[name]
		switch was := g.why(); {
		case was == "" && sink != "":
			g.apply("the journal is full: it waits for the sink " + sink)
			h.log.Error("the journal is full: reading pauses until the sink has caught up; mend the sink, or remove it, or raise max_bytes", "stream", name, "sink", sink)
		case was != "" && sink == "":
			g.release()
			h.log.Info("the journal has room again: reading goes on", "stream", name)
		}
	}
}

// checkLag detaches the sinks that have been behind for too long.
func (h *holds) checkLag(ctx context.Context, now time.Time) {
	for _, d := range h.deliverers {
		if d.MaxLag <= 0 || d.gone() {
			continue
		}
		since, err := h.measure.Waiting(ctx, d.partition, d.position().Seq)
		if err != nil {
			h.log.Debug("how long a sink has been behind is not known", "sink", d.ID, "error", err)
			continue
		}
		if why := d.lags(since, now); why != "" {
			h.detach(d, why)
		}
	}
}

// filled tells whether others have filled a quarter more since the streams of
// the sink were stopped. What those brought themselves before they were does
// not count: they may be fast, and this program may have stood still meanwhile.
// Where the disk is the limit there is no room but the quarter.
func (h *holds) filled(b backlog, full int64) bool {
	from, ok := h.stopped[b.d]
	if h.most <= 0 {
		from = full
	}
	return ok && b.bytes >= from+full/4
}

// detach gives the sink up in all partitions.
func (h *holds) detach(d *deliverer, why string) {
	h.journal.Forget(d.ID)
	for _, other := range h.deliverers {
		if other.ID == d.ID {
			other.detach(why)
		}
	}
	h.log.Error("a sink is detached: the journal keeps nothing for it any more", "sink", d.ID, "why", why,
		"remedy", "mend it and start again; if the journal has dropped what it needs by then, with --restart-sink "+d.ID)
}

// drop lets the journal drop what the sink holds beyond nine tenths of full.
func (h *holds) drop(b backlog, full int64) {
	to := Position{Journal: h.journal.ID(), Partition: b.d.partition, Seq: h.measure.Reach(b.d.partition, full/10*9)}
	if !b.d.position().Before(to) || !b.d.skip(to) {
		return
	}
	h.journal.Release(b.d.ID, to)
	h.log.Error("the journal is full: its oldest chunks are dropped before the sink has read them", "sink", b.d.ID, "up_to", to.Seq)
}

// lags tells why the sink, for which a chunk waits since then, is beyond its
// MaxLag; empty when it is not.
func (d *deliverer) lags(since, now time.Time) string {
	if since.IsZero() {
		d.leastLag = 0
		return ""
	}
	lag := now.Sub(since)
	if lag <= d.MaxLag || d.leastLag == 0 || lag < d.leastLag {
		d.leastLag, d.leastAt = lag, now
		if lag <= d.MaxLag {
			d.leastLag = 0
		}
		return ""
	}
	if now.Sub(d.leastAt) < lagGrace {
		return ""
	}
	return fmt.Sprintf("it is %v behind, and max_lag is %v", lag.Round(time.Second), d.MaxLag)
}

// errDetached ends the delivery to a sink that is given up.
var errDetached = errors.New("detached")

// detach ends the delivery.
func (d *deliverer) detach(why string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.detached {
		return
	}
	d.detached = true
	d.stats.State, d.stats.Error = "detached", why
	if d.stop != nil {
		d.stop(errDetached)
	}
}

// gone tells whether the sink has been given up.
func (d *deliverer) gone() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.detached
}

// skip notes that the journal may drop what is before the position; false when
// it may already.
func (d *deliverer) skip(to Position) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if to.Seq <= d.skipped {
		return false
	}
	d.skipped = to.Seq
	return true
}

// brake holds back what a stream appends.
type brake struct {
	mu     sync.Mutex
	shut   chan struct{} // nil while it is off
	reason string
}

func (b *brake) apply(why string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.shut, b.reason = make(chan struct{}), why
}

func (b *brake) release() {
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.shut)
	b.shut, b.reason = nil, ""
}

// why returns why it is on; empty when it is off.
func (b *brake) why() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.reason
}

// pass waits until it is off.
func (b *brake) pass(ctx context.Context) error {
	b.mu.Lock()
	shut := b.shut
	b.mu.Unlock()
	if shut == nil {
		return nil
	}
	select {
	case <-shut:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// brakedLog is a stream's log with a brake.
type brakedLog struct {
	StreamLog
	brake brake
}

// Append implements StreamLog. It blocks also while the stream's sinks hold
// too much of the journal.
func (l *brakedLog) Append(ctx context.Context, ev *Event) error {
	if err := l.brake.pass(ctx); err != nil {
		return err
	}
	return l.StreamLog.Append(ctx, ev)
}
