package framework

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sethvargo/go-retry"

	"github.com/holdline/scrape/auth"
	"github.com/holdline/scrape/internal/splice"
	"github.com/holdline/scrape/internal/sse"
	"github.com/holdline/scrape/internal/watch"
)

// Stream is one logical feed of a target, to be held for days. Its zero fields
// mean the documented defaults; Target is required, and in a [Worker] Name. It
// is not changed while it runs: see [Worker.Update].
type Stream struct {
	// Name is "target/stream", unique in a worker: the journal knows the
	// stream by it for ever. Without a worker it only appears in logs.
	Name   string
	Target Target
	// Decoder makes the records; nil leaves that to the Target, if it is one.
	Decoder Decoder
	// Host is whose connection attempts are paced together, "host:port".
	Host string
	// Identities makes the identities, shared with the target's other
	// streams; nil makes anonymous ones that leave directly.
	Identities *Identities
	// Page says how the stream is read inside a browser: the Client of its
	// sessions then sends from there. It needs IdentityConfig.Browser. Nil: the
	// program itself sends.
	Page *auth.Page
	// Types are the event types to keep; empty keeps all. Events of other
	// types keep the line alive but are neither journaled nor delivered.
	Types []string
	// StaleAfter is the longest wait for a byte before the line is taken for
	// dead; negative means for ever. 0 learns it from the stream: 45 s at
	// first, then as long as the pauses that it makes allow, between 1 s and
	// 30 min. What was learnt is kept from one connection to the next.
	StaleAfter time.Duration
	// QuietAfter is the longest wait for an event of a kept type while other
	// bytes arrive; 0 or negative means for ever.
	QuietAfter time.Duration
	// MinWait and MaxWait bound the wait before a reconnect, which doubles,
	// with jitter, until a connection has been healthy; 0 means 1 s and 60 s.
	MinWait, MaxWait time.Duration
	// HealthyAfter is how long a connection must have brought events to begin
	// again with MinWait; 0 means 10 s.
	HealthyAfter time.Duration
	// Handover says how a planned change is made; empty means HandoverAuto.
	Handover Handover
	// Lines is how many connections are held side by side, through different
	// exits where there are any: what one loses without a word the others
	// bring. 0 means 1, and more than 4 means 4.
	Lines int
	// From is the cursor of the very first connection, when the journal knows
	// none.
	From Cursor
	// Sequence returns the number of an event, if it has one, where events
	// bring numbers that count without holes, each by one: then missing ones
	// are named, also within a connection. A number of 0 or 1 begins anew. Nil
	// means that ids which are seen to count so are such numbers. It is called
	// concurrently, also with events that are not of Types.
	Sequence func(*Event) (uint64, bool)
	// ReplayCheck is how many events before the cursor a new connection
	// resumes, where the site can replay: seeing them again proves that
	// nothing is missing. Needs ids or Sequence.
	ReplayCheck int
	// Backfill fetches the events that are missing for certain; nil leaves
	// them missing.
	Backfill *Backfill
	// Limits paces connection attempts; nil means limits of the stream's own.
	Limits *Limits
	// Budget bounds the unfinished events of all streams that share it; nil
	// means no such bound.
	Budget *sse.Budget
	Log    *slog.Logger

	like *Stream // the one that WithDecoder was called of
}

// Handover says how a connection is replaced when the change can be foreseen.
type Handover string

const (
	// HandoverAuto overlaps where the site and the caps allow it, and breaks
	// where they do not.
	HandoverAuto Handover = "auto"
	// HandoverOverlap opens the successor before the old connection is closed.
	HandoverOverlap Handover = "overlap"
	// HandoverBreak closes the old connection first and resumes from the cursor.
	HandoverBreak Handover = "break"
)

// maxLines bounds the connections that a stream holds side by side.
const maxLines = 4

// withDefaults returns a copy with every default in place.
func (s *Stream) withDefaults() Stream {
	c := *s
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	c.Log = c.Log.With("stream", c.Name)
	if c.Identities == nil {
		c.Identities = NewIdentities(IdentityConfig{Key: c.Name, Log: c.Log})
	}
	if c.Limits == nil {
		c.Limits = &Limits{}
	}
	c.MinWait = or(c.MinWait, time.Second)
	c.MaxWait = max(or(c.MaxWait, time.Minute), c.MinWait)
	c.HealthyAfter = or(c.HealthyAfter, 10*time.Second)
	if c.Handover == "" {
		c.Handover = HandoverAuto
	}
	c.Lines = min(max(c.Lines, 1), maxLines)
	return c
}

func or(d, otherwise time.Duration) time.Duration {
	if d == 0 {
		return otherwise
	}
	return d
}

// runner is one stream at work. Each of its lines is one goroutine that reads
// a connection and opens the next one after it; there are as many as the
// definition says, of which the first is run's own goroutine, and one more for
// the length of a handover.
type runner struct {
	Name   string
	Log    *slog.Logger
	def    atomic.Pointer[definition] // stored with mu held
	log    StreamLog
	feed   *feed                             // the log, where there is no journal
	share  *allowance                        // of the worker's events; nil without a limit
	rhythm watch.Rhythm                      // of all connections
	jitter func(retry.Backoff) retry.Backoff // of the waits between attempts; nil but in tests that are to be run again

	// Of a worker's: what holds it back, what ends it, and what has become of it
	// when done is closed.
	brake *brake
	stop  context.CancelFunc
	done  chan struct{}
	err   error

	// What the stream began with and keeps.
	Sequence    func(*Event) (uint64, bool)
	ReplayCheck int
	Backfill    *Backfill

	wg    sync.WaitGroup
	stats streamStats

	mu        sync.Mutex // guards what follows, and the feed's guest; Append is called with it held
	splice    *splice.Splice
	cursor    Cursor
	warned    Cursor  // the last one that the site was found to refuse
	lines     uint32  // numbers connections
	connected []*line // those with a connection
	waiting   []*line // those whose place has to be found; replaced, never changed
	joining   bool    // a line is delivering what it held
	steady    bool    // the line that is being read was calm, and nothing else has come since: see offer
	head      uint32  // the number of the connection that brought the last event
	past      history
	askAfter  time.Time     // when the journal is asked again for the sequence of the past, and …
	asked     time.Duration // … how long that is: see pursuit.go
	loose     int           // the position from which on events lie before those delivered earlier; 0 for none
	first     time.Time     // when the first event came that was remembered
	lastEvent time.Time
	lostAt    time.Time // when the last connection ended, until the next event
	lostCause Cause     // why, until an event has been added since
	known     bool      // earlier runs held the stream
	cursors   []Cursor  // of the last events, as many as ReplayCheck asks for
	sequence  sequence
	missing   missing
	anew      int    // how much had been delivered when the site began the numbers anew
	unsound   int    // the position after the first event of which nothing shows that it is in the count
	leaving   *line  // its connection has ended, and what it held is being delivered
	hashed    string // the type that has that hash
	hash      uint64
	final     error // why the stream ended
	ended     bool
	changed   chan struct{} // closed when the stream is to be read otherwise; nil while nobody waits
	slots     [maxLines]int // lines at work, by their place
	begin     func(*line)   // has one more line work, while any does
}

// newRunner takes up the stream where the log says that it was left.
func newRunner(ctx context.Context, s *Stream, log StreamLog) (*runner, error) {
	def := define(s)
	if err := def.check(); err != nil {
		return nil, err
	}
	r := &runner{
		Name: s.Name, Log: def.Log, log: log, splice: splice.New(), hash: hashType(""),
		Sequence: s.Sequence, ReplayCheck: s.ReplayCheck, Backfill: s.Backfill,
	}
	r.def.Store(def)
	at, err := log.Resume(ctx)
	if err != nil {
		return nil, fmt.Errorf("stream %s: resume: %w", r.Name, err)
	}
	r.feed, _ = log.(*feed)
	r.cursor, r.known = s.From, at.Known
	if at.Known {
		r.cursor = at.Cursor
	}
	r.stats.name = r.Name
	if r.Backfill != nil {
		r.missing.wake = make(chan struct{}, 1)
	}
	notes := readNotes(at.Notes)
	anew := notes.beginnings()
	if len(anew) > 0 { // they may lie before the tail
		r.splice.Renewed()
	}
	var last *TailEvent
	late := 0 // where the last of those that came late begin, if they are the last of all
	for i := range at.Tail {
		e := &at.Tail[i]
		if e.Filled {
			continue // not of a connection: see recallFilled
		}
		if !e.Late {
			r.splice.Insert(late, -1)
			late = r.splice.End() + 1
		}
		last = e
		if _, ok := decimal([]byte(e.ID)); ok && anew[beginning{e.Time.UnixNano(), e.ID}] {
			r.splice.Renewed()
		}
		if r.first.IsZero() {
			r.first = e.Time
		}
		r.splice.Recall(e.ID, e.Hash)
		r.lastEvent = e.Time
		r.passed(e.Cursor)
	}
	r.splice.Insert(late, -1)
	if r.known {
		r.lostAt, r.lostCause = time.Now(), CauseRestart
	}
	if last != nil {
		r.stats.resumed(*last)
		r.lostAt = r.lastEvent
		r.Log.Info("going on where the journal ends", "id", last.ID, "at", r.lastEvent.Format(time.RFC3339))
	}
	if err := r.recallLedger(ctx, notes); err != nil {
		return nil, fmt.Errorf("stream %s: %w", r.Name, err)
	}
	r.recallCount(at.Tail, notes)
	r.recallSparse(at.Tail, notes)
	if err := r.recallFilled(ctx, at.Tail, notes); err != nil {
		return nil, fmt.Errorf("stream %s: %w", r.Name, err)
	}
	return r, nil
}

// run holds the stream until ctx ends (nil), it is done (nil), or the engine
// has to give it up (the error). Nothing of it is left when it returns.
func (r *runner) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r.stats.begin(time.Now())
	// Its answer is needed also while the stream is being stopped: without it a
	// replay would be taken for new events.
	past := context.WithoutCancel(ctx)
	r.splice.Older = func(id []byte) (uint64, bool) { return r.past.find(past, r, id) }
	if r.Backfill != nil {
		r.wg.Go(func() { r.backfill(ctx, cancel) })
	}
	first := r.newLine(0, r.now().Identities)
	r.mu.Lock()
	r.begin = func(l *line) {
		r.slots[l.slot]++
		r.wg.Go(func() { r.hold(ctx, cancel, l, nil) })
	}
	r.slots[0]++
	r.settleIn(r.now())
	r.mu.Unlock()
	r.hold(ctx, cancel, first, nil)
	r.wg.Wait() // for the others, and those that have taken over
	r.mu.Lock()
	defer r.mu.Unlock()
	at := r.now()
	at.Limits.join(at.Host, -at.Lines)
	r.stats.end(time.Now())
	if r.final != nil {
		return fmt.Errorf("stream %s: %w", r.Name, r.final)
	}
	return nil
}

// end ends the stream for good.
func (r *runner) end(cancel context.CancelFunc, err error) {
	r.mu.Lock()
	if !r.ended {
		r.ended, r.final = true, err
	}
	r.mu.Unlock()
	cancel()
}

// errEnough ends a line because the worker has its --max-events.
var errEnough = errors.New("the number of events asked for has been reached")

// offer takes one event of a line. It runs under r.mu, so that events of two
// lines are never mixed up and a cursor never passes an event that has not
// been appended.
func (r *runner) offer(ctx context.Context, l *line, ev *Event) error {
	if l.closed() {
		return errReplaced
	}
	if ev.ignored && !l.waiting && !l.seam.Begun() && r.abreast(l) {
		return nil // the other line passes its number
	}
	content := r.content(ev)
	if r.steady && r.splice.Next(&l.seam, ev.ID, content) {
		return r.append(ctx, l, ev)
	}
	r.steady = false
	if l.pursuit != nil {
		if taken, err := r.pursued(ctx, l, ev, content); taken || err != nil {
			return err
		}
	}
	if !l.waiting && r.stray(l, ev, content) {
		r.await(ctx, l)
	}
	if l.waiting {
		return r.wait(ctx, l, ev, content)
	}
	return r.accept(ctx, l, ev, content)
}

// calm tells whether there is nothing to do about a new event of the line that
// follows those before it but to append it: what [runner.accept] looks after
// does not concern it.
func (r *runner) calm(l *line) bool {
	return len(r.waiting) == 0 && l.news.Load() && r.missing.none() && r.share == nil && r.Sequence == nil
}

// content is HashEvent of the event: its type is most often that of the last.
func (r *runner) content(ev *Event) uint64 {
	if ev.Type != r.hashed {
		r.hashed, r.hash = ev.Type, hashType(ev.Type)
	}
	return r.hash ^ hashData(ev.Data)
}

// accept delivers an event of a line that has joined, unless another line has
// delivered it.
func (r *runner) accept(ctx context.Context, l *line, ev *Event, content uint64) error {
	if ev.ignored {
		return r.passIgnored(ctx, l, ev)
	}
	l.heard++
	n, numbered := r.number(ev)
	r.step(l, n, numbered)
	filled := r.missing.filled(n, numbered) && !r.behind(l)
	if filled && l.count.sure {
		r.stats.duplicates.Add(1)
		r.reached(ev.Time)
		return nil
	}
	beside, next := r.beside(l, ev, content), r.follows(n, numbered)
	v := r.splice.Offer(&l.seam, ev.ID, content)
	if v.Duplicate {
		r.doubled(l, *ev)
		l.brought(v.Position >= l.opened)
		return r.recognised(ctx, l, n, numbered, v.Position)
	}
	l.brought(!v.Doubtful)
	if !r.share.take() {
		return errEnough
	}
	r.reached(ev.Time)
	if v.Restarted {
		if err := r.restarted(ctx, l, ev); err != nil {
			return err
		}
	}
	if v.Join == splice.First && r.known {
		v.Join = splice.Possible // the journal has forgotten what was before
	}
	var late *hole
	if !r.behind(l) {
		late = r.missing.lacks(n, numbered)
	}
	if filled {
		v = r.again(l, n, v)
	}
	if v.Join != splice.Within || ev.Sequenced {
		if err := r.meet(ctx, l, ev, v, numberedAt{n, late, beside, filled}); err != nil {
			return err
		}
	}
	if err := r.append(ctx, l, ev); err != nil {
		return err
	}
	if err := r.place(ctx, l, n, numbered, late, next); err != nil {
		return err
	}
	if r.share.done() {
		return errEnough // at once: the next event may be long in coming
	}
	if len(r.waiting) > 0 {
		return r.delivered(ctx)
	}
	return nil
}

// append has an event of the line journaled.
func (r *runner) append(ctx context.Context, l *line, ev *Event) error {
	if err := r.put(ctx, ev); err != nil {
		return err
	}
	r.cursor, r.lastEvent, r.head = ev.Cursor, ev.Time, l.seam.Number
	r.passed(ev.Cursor)
	r.past.age()
	l.joined = true
	r.stats.event(ev)
	return nil
}

// put puts an event into the log. One that is too long for that is a dead
// letter of which nothing could be kept, and a cursor that is leaves the cursor
// as it was: a site must not be able to end the worker.
func (r *runner) put(ctx context.Context, ev *Event) error {
	if n := len(ev.Cursor); n > MaxCursor {
		r.odd("cursor too long", excerpt(ev.Cursor), false)
		ev.Cursor = r.cursor
	}
	err := r.log.Append(ctx, ev)
	if err == nil {
		return nil
	}
	if long, ok := errors.AsType[interface {
		error
		TooLong() bool
	}](err); ok && long.TooLong() {
		r.odd("event too long for the journal", excerpt(ev.Data), true)
		return nil
	}
	return &journalError{err}
}

// meet writes into the ledger what lies between the event and those before it.
func (r *runner) meet(ctx context.Context, l *line, ev *Event, v splice.Verdict, at numberedAt) error {
	if r.first.IsZero() {
		r.first = ev.Time
	}
	v, within, err := r.count(ctx, l, ev, v, at)
	if err != nil {
		return err
	}
	v = r.unproven(l, v, at)
	if v.Join != splice.Within && v.Join != splice.First {
		apart(func() { err = r.seam(ctx, l, v, ev, within) })
		if v.Join == splice.Possible && at.late != nil {
			l.count.seam = &Gap{From: r.lastEvent.UTC(), To: ev.Time.UTC(), Cause: cmp.Or(l.succeeds, r.lostCause)}
		}
	}
	if !within { // the seam has told of them
		l.doubtful, r.lostCause = 0, ""
	}
	return err
}

// doubled counts what the line has brought of events that were delivered before.
func (r *runner) doubled(l *line, events ...Event) {
	for i := range events {
		if !events[i].ignored {
			l.again = true
			r.stats.duplicates.Add(1)
			r.reached(events[i].Time)
		}
	}
}

// reached notes that events flow again.
func (r *runner) reached(at time.Time) {
	if r.lostAt.IsZero() {
		return
	}
	if r.lostCause != CausePlanned && r.lostCause != CauseRestart {
		r.stats.resume(at.Sub(r.lostAt))
		apart(func() {
			r.Log.Info("resumed", "after", at.Sub(r.lostAt).Round(time.Millisecond).String(), "cause", r.lostCause)
		})
	}
	r.lostAt = time.Time{}
}

// journalError marks a failure of the journal: it ends the worker, since
// nothing can be promised without it.
type journalError struct{ error }

func (e *journalError) Unwrap() error { return e.error }
