package framework

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
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
	// Where tells whether the sink gets a record; nil is all. It is called
	// with the decoder's Values, and its error makes the record's event a dead
	// letter of this sink.
	Where func(*Record) (bool, error)
	// Refused has the sink get, in place of the records, the events that the
	// decoder refuses, one record each with its Reason, and those that came
	// again after they had become dead letters.
	Refused bool
	// Latest has a sink that has no position yet begin with what comes from
	// now on, and not with the oldest event that the journal holds.
	Latest bool
	// BatchRecords and BatchEvery end a batch, whichever comes first; 0 means
	// 10,000 records and 200 ms.
	BatchRecords int
	BatchEvery   time.Duration
	// MaxLag and MaxLagBytes are how far the sink may fall behind before it is
	// detached: how long the oldest event may wait for it, and what the journal
	// keeps for it. 0 means no such limit. One that comes closer is left alone
	// whatever MaxLag says.
	MaxLag      time.Duration
	MaxLagBytes int64
	// Adopt and Restart: see SinkInfo.
	Adopt, Restart bool
}

// defaults gives what is not set its default.
func (c *SinkConfig) defaults() {
	if c.BatchRecords <= 0 {
		c.BatchRecords = defaultBatchRecords
	}
	if c.BatchEvery <= 0 {
		c.BatchEvery = defaultBatchEvery
	}
	if c.Wants == nil {
		c.Wants = func(string) bool { return true }
	}
}

// DeadLetter is an event that could not be decoded or delivered.
type DeadLetter struct {
	// Key is that of the record which the sink refused; Record is 0 where the
	// event made none.
	Key    Key
	Stream string
	Sink   string
	Event  StoredEvent
	Reason string
}

// deliverer brings one partition of the journal to one sink.
type deliverer struct {
	SinkConfig
	journal   JournalReader
	partition int
	only      func(at Position, received time.Time) bool // nil: all
	patience  time.Duration                              // how long the sink may refuse; 0: for ever
	replay    bool                                       // a period is delivered once more, under another id
	sink      Sink
	decoders  map[string]Decoder
	layout    layout
	begin     uint64 // the last chunk that a new sink does not get
	streams   map[string]*streamStats
	dead      func([]DeadLetter) error
	judged    bool // another one gets what the decoder refuses, and counts it
	log       *slog.Logger

	fresh atomic.Pointer[delivery] // taken up with the next chunk; nil for no change
	drain chan struct{}            // closed when everything committed is all there will be
	// loses says that the journal may drop what the sink has not read; lost is
	// told what could not be read, lastLost is the last chunk of that. floor is
	// where a sink without a position began.
	loses           bool
	lost            func(*DamageError)
	lastLost, floor uint64
	// leastLag is how little the sink has been behind since it is beyond its
	// MaxLag, and leastAt since when: they are the watcher's.
	leastLag time.Duration
	leastAt  time.Time

	batch   Batch
	events  []*StoredEvent // what each record of the batch was made of
	wanted  []bool         // which streams of the chunk at hand
	size    int            // bytes of the batch's payloads
	pending time.Time      // when the oldest record of the batch came
	letters []DeadLetter   // of the batch, not yet kept
	making  making         // what emit is about
	emits   func(Record)   // emit, as decoders are given it
	// buried are the dead letters since the last commit: a batch that is read
	// again counts none twice.
	buried map[Key]struct{}

	mu    sync.Mutex
	stats SinkStats
	at    Position
	// detached says that the sink was given up; stop ends its delivery. The
	// journal may drop what the sink has not read up to chunk skipped.
	detached bool
	stop     context.CancelCauseFunc
	skipped  uint64
	tallies  map[string]*tally // by stream
}

const (
	defaultBatchRecords = 10_000
	defaultBatchEvery   = 200 * time.Millisecond
	// moveEvery is how often the position is moved when no record comes.
	moveEvery = 5 * time.Second
	// maxBatchBytes ends a batch of large records early.
	maxBatchBytes = 8 << 20
)

// run delivers until everything is delivered after drain was closed, ctx ends,
// or the destination and the journal turn out not to belong together.
func (d *deliverer) run(ctx context.Context) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	d.mu.Lock()
	d.stop = stop
	gone := d.detached
	d.mu.Unlock()
	if gone {
		return nil
	}
	backoff, good := d.newBackoff(), time.Now()
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
		if s := (*StoredError)(nil); d.replay && errors.As(err, &s) {
			// The sink's own delivery has brought it: waiting takes nothing away.
			d.set("failed", err)
			return err
		}
		if delivered {
			backoff, good = d.newBackoff(), time.Now()
		}
		if d.patience > 0 && time.Since(good) > d.patience {
			d.set("failed", err)
			return err
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
	info := SinkInfo{ID: d.ID, Journal: d.journal.ID(), Partition: d.partition, Columns: d.layout.columns, Begin: d.begin, Adopt: d.Adopt}
	if d.Restart {
		first, _ := d.journal.Bounds(d.partition)
		info.Restart = max(first, 1)
	}
	pos, err := d.sink.Open(ctx, info)
	if err != nil {
		return pos, err
	}
	if !d.plausible(pos) {
		if d.Refused && !d.Restart {
			// It keeps each event once, however often it reads it, and is
			// nobody's to look after.
			d.Restart = true
			return d.open(ctx)
		}
		first, last := d.journal.Bounds(d.partition)
		return pos, &PositionError{
			Sink: d.ID, Want: Position{Journal: d.journal.ID(), Partition: d.partition, Seq: last}, Have: pos,
			Reason: fmt.Sprintf("the destination's position is outside of the journal, which holds chunks %d to %d: the journal or the destination was replaced by another copy; bring them together again, or %s", first, last, d.anew()),
		}
	}
	d.Adopt, d.Restart = false, false // once is enough
	return pos, nil
}

// anew says how a person has what the journal holds delivered once more.
func (d *deliverer) anew() string {
	if d.replay {
		return "replay under a name that the destination does not know"
	}
	return "start with --restart-sink " + d.ID + " to deliver anew what the journal holds"
}

// plausible tells whether a destination can hold the position.
func (d *deliverer) plausible(p Position) bool {
	first, last := d.journal.Bounds(d.partition)
	return p.Journal == d.journal.ID() && p.Seq <= last && (p.Seq == 0 || p.Seq+1 >= first || d.loses)
}

// attempt opens the sink and delivers until something fails. It tells whether
// a batch was committed.
func (d *deliverer) attempt(ctx context.Context) (delivered bool, err error) {
	pos, err := d.open(ctx)
	if d.sink != nil { // also where it is open and of no use
		defer d.sink.Close()
	}
	if err != nil {
		return false, err
	}
	d.journal.Release(d.ID, pos)
	d.next(pos)
	for _, t := range d.tallies { // of a batch that was never committed
		t.made.Add(-t.batch)
		t.batch = 0
	}
	d.move(pos)
	d.set("delivering", nil)
	if first, _ := d.journal.Bounds(d.partition); pos.Seq == 0 && d.floor > 0 && first > d.floor {
		// It had no position to tell that from.
		d.lose(&Chunk{Err: &DamageError{Journal: pos.Journal, Partition: d.partition, From: d.floor, To: first - 1, Err: errors.New("dropped before the sink had read it")}})
	}

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
	clear(d.events)
	d.events = d.events[:0]
	clear(d.letters)
	d.letters = d.letters[:0]
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
		d.lose(c)
	}
	if n := d.fresh.Swap(nil); n != nil {
		d.turn(n)
	}
	d.wanted = d.wanted[:0]
	for _, name := range c.Streams {
		d.wanted = append(d.wanted, d.Wants(name))
	}
	events := c.Events
	if d.indifferent(c) {
		events = nil
	}
	sparse := events != nil && d.sparse(c)
	for i := range events {
		ev := &events[i]
		name := c.Streams[ev.Stream]
		at := Position{Journal: c.Journal, Partition: c.Partition, Seq: c.Seq, Event: i + 1}
		if !d.batch.To.Before(at) || !d.wanted[ev.Stream] || d.only != nil && !d.only(at, ev.Time) {
			continue
		}
		if sparse {
			ev = ev.clone()
		}
		first := len(d.batch.Records) == 0
		if d.decode(name, ev, at); first && len(d.batch.Records) > 0 {
			d.pending = time.Now() // of the first record, not of what made none
		}
		d.batch.To = at
		if len(d.batch.Records)+len(d.letters) >= d.BatchRecords || d.size >= maxBatchBytes {
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

// indifferent tells whether the chunk can hold nothing for a sink that gets what
// decoders refuse and what comes again: its position passes it all the same.
func (d *deliverer) indifferent(c *Chunk) bool {
	if !d.Refused || !c.NoneAgain {
		return false
	}
	for i, name := range c.Streams {
		if d.wanted[i] && d.decoders[name] != nil {
			return false
		}
	}
	return true
}

// flush writes the batch.
func (d *deliverer) flush(ctx context.Context) error {
	if d.batch.From == d.batch.To {
		return nil
	}
	for {
		if err := d.keepLetters(); err != nil {
			return err
		}
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
	for _, t := range d.tallies {
		t.written.Add(t.batch)
		t.batch = 0
	}
	d.mu.Lock()
	d.stats.Records += uint64(len(d.batch.Records))
	d.stats.Batches++
	d.mu.Unlock()
	clear(d.buried)
	d.move(d.batch.To)
	d.journal.Release(d.ID, d.batch.To)
	d.next(d.batch.To)
	return nil
}

// tally is the account of one stream.
type tally struct {
	made, written atomic.Uint64 // records made, and committed
	batch         uint64        // made and not committed
}

// of is the stream's tally. Only the deliverer's own goroutine makes one.
func (d *deliverer) of(name string) *tally {
	d.mu.Lock()
	defer d.mu.Unlock()
	t := d.tallies[name]
	if t == nil {
		if d.tallies == nil {
			d.tallies = map[string]*tally{}
		}
		t = &tally{}
		d.tallies[name] = t
	}
	return t
}

// account is what the records of a stream have come to.
func (d *deliverer) account(name string) (made, written uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if t := d.tallies[name]; t != nil {
		made, written = t.made.Load(), t.written.Load()
	}
	return made, written
}

func (d *deliverer) set(state string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.detached {
		return // that stays
	}
	d.stats.State = state
	if err != nil {
		d.stats.Error = err.Error()
	}
}

func (d *deliverer) move(p Position) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.at = p
}

// position is the last one known to be in the destination.
func (d *deliverer) position() Position {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.at
}

// lose accounts for chunks that do not reach the sink, once.
func (d *deliverer) lose(c *Chunk) {
	gone := &DamageError{Journal: c.Journal, Partition: d.partition, From: c.Seq, To: c.Seq, Err: c.Err}
	errors.As(c.Err, &gone)
	if gone.To <= d.lastLost {
		return
	}
	gone = &DamageError{Journal: gone.Journal, Partition: d.partition, From: max(gone.From, d.lastLost+1), To: gone.To, Err: gone.Err}
	d.lastLost = gone.To
	d.mu.Lock()
	d.stats.Lost += gone.To - gone.From + 1
	d.mu.Unlock()
	d.log.Error("a part of the journal cannot be read: its events do not reach the sink", "sink", d.ID, "from_chunk", gone.From, "to_chunk", gone.To, "error", gone.Err)
	if d.lost != nil {
		d.lost(gone)
	}
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
