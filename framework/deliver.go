package framework

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sethvargo/go-retry"
)

// SinkConfig is a sink and what it is to get.
type SinkConfig struct {
	// ID is the sink's stable id, "target/name".
	ID string
	// New returns a sink for one partition.
	New func() (Sink, error)
	// Wants tells whether the sink gets the events of a stream.
	Wants func(stream string) bool
	// BatchRecords and BatchEvery end a batch, whichever comes first; 0 means
	// 1,000 records and 200 ms.
	BatchRecords int
	BatchEvery   time.Duration
	// Adopt: see SinkInfo.
	Adopt bool
}

// DeadLetter is an event that could not be decoded or delivered.
type DeadLetter struct {
	Key    Key
	Stream string
	Sink   string
	Event  StoredEvent
	Reason string
}

// deliverer brings one partition of the journal to one sink.
type deliverer struct {
	SinkConfig
	journal   Journal
	partition int
	sink      Sink
	decoders  map[string]Decoder
	streams   map[string]*streamStats
	dead      func(DeadLetter) error
	log       *slog.Logger

	drain chan struct{} // closed when everything committed is all there will be

	batch   Batch
	size    int               // bytes of the batch's payloads
	counts  map[string]uint64 // records of the batch, by stream
	pending time.Time         // when the oldest record of the batch came
	// buried are the dead letters since the last commit: a batch that is read
	// again buries none twice.
	buried map[Key]struct{}

	mu      sync.Mutex
	stats   SinkStats
	at      Position
	made    map[string]*atomic.Uint64 // records made, by stream
	written map[string]*atomic.Uint64 // records committed, by stream
}

const (
	defaultBatchRecords = 1000
	defaultBatchEvery   = 200 * time.Millisecond
	// moveEvery is how often the position is moved when no record comes.
	moveEvery = 5 * time.Second
	// maxBatchBytes ends a batch of large records early.
	maxBatchBytes = 8 << 20
)

// run delivers until everything is delivered after drain was closed, ctx ends,
// or the destination and the journal turn out not to belong together.
func (d *deliverer) run(ctx context.Context) error {
	backoff := d.newBackoff()
	for {
		delivered, err := d.attempt(ctx)
		switch {
		case err == nil:
			d.set("level", nil)
			return nil
		case ctx.Err() != nil:
			return nil
		}
		var p *PositionError
		if errors.As(err, &p) {
			if p.Foreign() || !d.plausible(p.Have) {
				d.set("failed", err)
				return err
			}
			d.log.Warn("the sink's position is not the one expected: going on from the sink's", "sink", d.ID, "error", err)
		}
		if delivered {
			backoff = d.newBackoff()
		}
		wait, _ := backoff.Next()
		d.set("waiting", err)
		d.mu.Lock()
		d.stats.Retries++
		d.mu.Unlock()
		d.log.Warn("sink does not answer as it should", "sink", d.ID, "wait", wait.Round(time.Millisecond).String(), "error", err)
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil
		}
	}
}

func (d *deliverer) newBackoff() retry.Backoff {
	return retry.WithCappedDuration(30*time.Second, retry.WithJitterPercent(25, retry.NewExponential(500*time.Millisecond)))
}

// open opens the sink and checks that its position is one of this journal's.
func (d *deliverer) open(ctx context.Context) (Position, error) {
	if d.sink == nil {
		s, err := d.New()
		if err != nil {
			return Position{}, err
		}
		d.sink = s
	}
	pos, err := d.sink.Open(ctx, SinkInfo{ID: d.ID, Journal: d.journal.ID(), Partition: d.partition, Adopt: d.Adopt})
	if err != nil {
		return pos, err
	}
	if !d.plausible(pos) {
		first, last := d.journal.Bounds(d.partition)
		return pos, &PositionError{
			Sink: d.ID, Want: Position{Journal: d.journal.ID(), Partition: d.partition, Seq: last}, Have: pos,
			Reason: fmt.Sprintf("the destination's position is outside of the journal, which holds chunks %d to %d: the journal or the destination was replaced by another copy; bring them together again, or start with --adopt %s to go on with what the journal holds", first, last, d.ID),
		}
	}
	return pos, nil
}

// plausible tells whether a destination can hold the position.
func (d *deliverer) plausible(p Position) bool {
	first, last := d.journal.Bounds(d.partition)
	return p.Journal == d.journal.ID() && p.Seq <= last && (p.Seq == 0 || p.Seq+1 >= first)
}

// attempt opens the sink and delivers until something fails. It tells whether
// a batch was committed.
func (d *deliverer) attempt(ctx context.Context) (delivered bool, err error) {
	pos, err := d.open(ctx)
	if err != nil {
		return false, err
	}
	defer d.sink.Close()
	d.journal.Release(d.ID, pos)
	d.next(pos)
	for name, n := range d.counts { // of a batch that was never committed
		d.counter(d.made, name).Add(-n)
	}
	d.counts = map[string]uint64{}
	d.position(pos)
	d.set("delivering", nil)

	ctx, cancel := context.WithCancel(ctx)
	chunks := make(chan *Chunk)
	failed := make(chan error, 1)
	var reader sync.WaitGroup
	reader.Go(func() {
		for c, err := range d.journal.Read(ctx, pos, d.Wants) {
			if err != nil {
				failed <- err
				return
			}
			select {
			case chunks <- c:
			case <-ctx.Done():
				return
			}
		}
	})
	defer reader.Wait()
	defer cancel()

	timer := time.NewTimer(d.wait())
	defer timer.Stop()
	drain := d.drain
	draining := false
	for {
		if draining && d.level() {
			err := d.flush(ctx)
			return delivered, err
		}
		select {
		case c := <-chunks:
			n, err := d.take(ctx, c)
			delivered = delivered || n > 0
			if err != nil {
				return delivered, err
			}
			timer.Reset(d.wait())
		case <-timer.C:
			if d.batch.From != d.batch.To && d.wait() == 0 {
				if err := d.flush(ctx); err != nil {
					return delivered, err
				}
				delivered = true
			}
			timer.Reset(d.wait())
		case err := <-failed:
			return delivered, fmt.Errorf("read the journal: %w", err)
		case <-drain:
			draining, drain = true, nil
		case <-ctx.Done():
			return delivered, context.Cause(ctx)
		}
	}
}

// wait is how long the batch may still be gathered.
func (d *deliverer) wait() time.Duration {
	switch {
	case len(d.batch.Records) > 0:
		return max(0, d.BatchEvery-time.Since(d.pending))
	case d.batch.From != d.batch.To:
		return max(0, moveEvery-time.Since(d.pending))
	}
	return moveEvery
}

// next begins a batch after the position, and lets go of what the records of
// the one before point to.
func (d *deliverer) next(after Position) {
	clear(d.batch.Records)
	d.batch = Batch{From: after, To: after, Records: d.batch.Records[:0]}
	d.size = 0
}

// level tells whether everything committed is in the batch or beyond.
func (d *deliverer) level() bool {
	_, last := d.journal.Bounds(d.partition)
	return d.batch.To.Seq >= last
}

// take puts the events of a chunk into the batch, and flushes it as often as
// it fills. It returns how many batches were committed.
func (d *deliverer) take(ctx context.Context, c *Chunk) (batches int, err error) {
	if len(d.batch.Records) == 0 && d.batch.From == d.batch.To {
		d.pending = time.Now()
	}
	if c.Err != nil {
		d.log.Error("a part of the journal cannot be read: its events do not reach the sink", "sink", d.ID, "chunk", c.Seq, "error", c.Err)
	}
	sparse := d.sparse(c)
	for i := range c.Events {
		ev := &c.Events[i]
		name := c.Streams[ev.Stream]
		at := Position{Journal: c.Journal, Partition: c.Partition, Seq: c.Seq, Event: i + 1}
		if !d.batch.To.Before(at) || !d.Wants(name) {
			continue
		}
		if len(d.batch.Records) == 0 {
			d.pending = time.Now()
		}
		if sparse {
			ev = &StoredEvent{ID: strings.Clone(ev.ID), Type: strings.Clone(ev.Type), Cursor: Cursor(strings.Clone(string(ev.Cursor))), Time: ev.Time, Data: bytes.Clone(ev.Data)}
		}
		if err := d.decode(name, ev, at); err != nil {
			return batches, err
		}
		d.batch.To = at
		if len(d.batch.Records) >= d.BatchRecords || d.size >= maxBatchBytes {
			if err := d.flush(ctx); err != nil {
				return batches, err
			}
			batches++
		}
	}
	if end := (Position{Journal: d.batch.To.Journal, Partition: d.partition, Seq: c.Seq, Event: c.Count}); d.batch.To.Before(end) {
		d.batch.To = end
	}
	return batches, nil
}

// sparse tells whether the sink wants less than half of what is in the chunk.
// Records of such a chunk are copied: each would hold all of it in memory, and
// a batch has records of many chunks.
func (d *deliverer) sparse(c *Chunk) bool {
	all, wanted := 0, 0
	for i := range c.Events {
		n := len(c.Events[i].Data)
		if all += n; d.Wants(c.Streams[c.Events[i].Stream]) {
			wanted += n
		}
	}
	return wanted < all/2
}

// decode appends the event's records to the batch, or makes it a dead letter.
func (d *deliverer) decode(name string, ev *StoredEvent, at Position) error {
	before := len(d.batch.Records)
	emit := func(rec Record) {
		rec.Key = Key{Position: at, Record: len(d.batch.Records) - before + 1}
		rec.Stream, rec.ID, rec.Cursor, rec.Filled = name, ev.ID, ev.Cursor, ev.Filled
		if rec.Type == "" {
			rec.Type = ev.Type
		}
		if rec.Time.IsZero() {
			rec.Time = ev.Time
		}
		d.batch.Records = append(d.batch.Records, rec)
	}
	var err error
	if dec := d.decoders[name]; dec == nil {
		emit(Record{Data: ev.Data})
	} else if err = dec.Decode(name, ev.event(), emit); err != nil {
		d.batch.Records = d.batch.Records[:before]
		return d.bury(name, ev, Key{Position: at}, err)
	}
	for i := range d.batch.Records[before:] {
		d.size += len(d.batch.Records[before+i].Data)
	}
	made := uint64(len(d.batch.Records) - before)
	d.counts[name] += made
	d.counter(d.made, name).Add(made)
	return nil
}

// bury makes an event a dead letter.
func (d *deliverer) bury(name string, ev *StoredEvent, key Key, reason error) error {
	if _, ok := d.buried[key]; ok {
		return nil
	}
	if d.dead != nil {
		if err := d.dead(DeadLetter{Key: key, Stream: name, Sink: d.ID, Event: *ev, Reason: reason.Error()}); err != nil {
			return fmt.Errorf("keep a dead letter: %w", err)
		}
	}
	if d.buried == nil {
		d.buried = map[Key]struct{}{}
	}
	d.buried[key] = struct{}{}
	if s := d.streams[name]; s != nil {
		s.dead.Add(1)
	}
	d.mu.Lock()
	d.stats.DeadLetters++
	first := d.stats.DeadLetters == 1
	d.mu.Unlock()
	if first {
		d.log.Warn("an event has become a dead letter", "sink", d.ID, "stream", name, "key", key.String(), "reason", reason)
	}
	return nil
}

// flush writes the batch.
func (d *deliverer) flush(ctx context.Context) error {
	if d.batch.From == d.batch.To {
		return nil
	}
	for {
		err := d.sink.Write(ctx, &d.batch)
		var bad *RecordError
		if errors.As(err, &bad) && d.drop(bad) {
			continue
		}
		if err != nil {
			return err
		}
		break
	}
	for name, n := range d.counts {
		d.counter(d.written, name).Add(n)
	}
	clear(d.counts)
	d.mu.Lock()
	d.stats.Records += uint64(len(d.batch.Records))
	d.stats.Batches++
	d.mu.Unlock()
	clear(d.buried)
	d.position(d.batch.To)
	d.journal.Release(d.ID, d.batch.To)
	d.next(d.batch.To)
	return nil
}

// drop takes the record that the sink refuses for good out of the batch.
func (d *deliverer) drop(bad *RecordError) bool {
	for i := range d.batch.Records {
		if rec := &d.batch.Records[i]; rec.Key == bad.Key {
			ev := StoredEvent{ID: rec.ID, Type: rec.Type, Cursor: rec.Cursor, Time: rec.Time, Data: rec.Data, Filled: rec.Filled}
			if err := d.bury(rec.Stream, &ev, rec.Key, bad.Err); err != nil {
				d.log.Error("a dead letter could not be kept", "sink", d.ID, "error", err)
				return false
			}
			d.counts[rec.Stream]--
			d.batch.Records = slices.Delete(d.batch.Records, i, i+1)
			return true
		}
	}
	return false
}

func (d *deliverer) counter(m map[string]*atomic.Uint64, name string) *atomic.Uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := m[name]
	if n == nil {
		n = new(atomic.Uint64)
		m[name] = n
	}
	return n
}

func (d *deliverer) set(state string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stats.State = state
	if err != nil {
		d.stats.Error = err.Error()
	}
}

func (d *deliverer) position(p Position) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.at = p
}

func (d *deliverer) snapshot() SinkStats {
	_, last := d.journal.Bounds(d.partition)
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.stats
	s.Position = d.at.String()
	s.Behind = last - min(d.at.Seq, last)
	return s
}
