package framework

import (
	"context"
	"errors"
	"iter"
	"sync"
)

// Events holds the stream without a journal and yields its events as they
// come, across reconnects, logins and rotations, until ctx ends, the stream is
// done, or the loop is left. The error, yielded last, says why the engine gave
// up; a stream that is done or was stopped yields none. Nothing runs any more
// when the loop is over.
//
// Each event brings the cursor that resumes the stream after it: store it with
// what was made of the event, and set From to it the next time. The event's ID
// and Data are valid until the next iteration. Most of the time the loop's own
// goroutine reads the connection: one that takes long over an event keeps the
// next ones waiting at the site.
func (s *Stream) Events(ctx context.Context) iter.Seq2[*Event, error] {
	return func(yield func(*Event, error) bool) {
		if s.Target == nil {
			yield(nil, errors.New("the stream has no Target"))
			return
		}
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		f := newFeed()
		r, err := newRunner(ctx, s, f)
		if err != nil {
			yield(nil, err)
			return
		}
		if s.Identities == nil {
			defer r.now().Identities.Close() // made for this loop alone
		}
		if r.now().Lines == 1 && r.Backfill == nil { // else others deliver while it reads
			f.lent = make(chan func(func(bool) error))
		}
		over := make(chan error, 1)
		go func() { over <- r.run(ctx) }()
		left := false
		after := func(held bool) error {
			if !left && !f.next(yield) {
				left = true
				cancel()
			}
			if left || held { // what is held others may deliver
				return errReturned
			}
			return nil
		}
		for ended := false; !ended; {
			select {
			case <-f.ready:
			case read := <-f.lent:
				read(after)
			case err = <-over:
				ended = true
			}
			if left || !f.drain(yield) {
				cancel()
				if !ended {
					<-over
				}
				return
			}
		}
		if err != nil {
			yield(nil, err)
		}
	}
}

// feed is the StreamLog of a stream without a journal. It gathers events while
// the reader is busy with those before, within bounds.
//
// To wake a goroutine for every few events costs more than the events do. So
// while the reader waits, a line that has brought something lends it the
// reading of its connection: the reader is the line's guest, and takes the
// events on the goroutine that ranges over them, without a copy.
type feed struct {
	ready chan struct{} // something was gathered
	space chan struct{} // the reader has taken what was gathered
	// lent is received from by a reader that waits; nil where nothing is lent.
	lent chan func(after func(held bool) error)

	guest bool     // the guest is taking events; guarded by runner.mu
	taken []*Event // by the guest

	mu        sync.Mutex
	gathering *gathered // who has runner.mu may look without mu
	spare     *gathered // the reader's
}

func newFeed() *feed {
	return &feed{ready: make(chan struct{}, 1), space: make(chan struct{}, 1), gathering: &gathered{}, spare: &gathered{}}
}

// errReturned ends what was lent.
var errReturned = errors.New("the line goes on reading by itself")

// lender returns what a line calls after each burst that it has delivered: it
// lends read to the reader, until that returns it, or has the reader woken.
func (f *feed) lender(read func(after func(held bool) error) error) (after func(held bool) error) {
	done := make(chan error, 1)
	lend := func(after func(bool) error) {
		err := errReturned // also where the loop panics
		defer func() { done <- err }()
		f.wake()
		if after(false) == nil {
			err = read(after)
			after(true) // what was delivered before an error
		}
	}
	return func(held bool) error {
		if !held {
			select {
			case f.lent <- lend:
				if err := <-done; err != errReturned {
					return err
				}
				return nil
			default:
			}
		}
		f.wake()
		return nil
	}
}

// next yields what the guest has taken, and what was gathered since; false when
// the loop was left.
func (f *feed) next(yield func(*Event, error) bool) bool {
	for _, ev := range f.taken {
		if !yield(ev, nil) {
			return false
		}
	}
	f.taken = f.taken[:0]
	select {
	case <-f.ready:
		return f.drain(yield)
	default:
		return true
	}
}

// drain yields what was gathered; false when the loop was left.
func (f *feed) drain(yield func(*Event, error) bool) bool {
	for {
		batch := f.take()
		if batch == nil {
			return true
		}
		for i := range batch.events {
			if !yield(&batch.events[i], nil) {
				return false
			}
		}
		f.spare = batch
	}
}

// gathered is a run of events whose slices lie in block.
type gathered struct {
	events []Event
	block  []byte
	size   int
	calm   int
}

const (
	maxGathered      = 512
	maxGatheredBytes = 1 << 20
	minBlock         = 512
	maxBlock         = 64 << 10
	calm             = 100 // runs much shorter than the space kept for them
)

// Append implements StreamLog.
func (f *feed) Append(ctx context.Context, ev *Event) error {
	if f.guest && len(f.gathering.events) == 0 {
		f.taken = append(f.taken, ev)
		return nil
	}
	for {
		f.mu.Lock()
		g := f.gathering
		if n := len(g.events); n == 0 || n < maxGathered && g.size+len(ev.Data) <= maxGatheredBytes || f.guest {
			g.add(ev)
			f.mu.Unlock()
			if f.guest {
				f.wake()
			}
			return nil
		}
		f.mu.Unlock()
		f.wake()
		select {
		case <-f.space:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (g *gathered) add(ev *Event) {
	g.events = append(g.events, *ev)
	kept := &g.events[len(g.events)-1]
	kept.ID, kept.Data = g.copy(ev.ID), g.copy(ev.Data)
	g.size += len(ev.Data)
}

// copy puts b into the block. A block that is full is left to the events that
// lie in it, and the next one is larger.
func (g *gathered) copy(b []byte) []byte {
	if b == nil {
		return nil
	}
	if cap(g.block)-len(g.block) < len(b) {
		g.block = make([]byte, 0, max(min(2*cap(g.block), maxBlock), minBlock, len(b)))
	}
	start := len(g.block)
	g.block = append(g.block, b...)
	return g.block[start:len(g.block):len(g.block)]
}

func (f *feed) wake() {
	select {
	case f.ready <- struct{}{}:
	default:
	}
}

// take returns what was gathered, nil if that is nothing, and gathers into the
// spare one from now on.
func (f *feed) take() *gathered {
	f.mu.Lock()
	defer f.mu.Unlock()
	g := f.gathering
	if len(g.events) == 0 {
		return nil
	}
	f.spare.reset()
	f.gathering, f.spare = f.spare, nil
	select {
	case f.space <- struct{}{}:
	default:
	}
	return g
}

// reset makes g ready to be used again.
func (g *gathered) reset() {
	clear(g.events)
	g.calm++
	if len(g.events) > cap(g.events)/8 {
		g.calm = 0
	}
	if g.calm > calm || cap(g.block) > maxBlock {
		*g = gathered{} // what a burst needed is not kept
	}
	g.events, g.block, g.size = g.events[:0], g.block[:0], 0
}

// Resume implements StreamLog: nothing is known.
func (f *feed) Resume(context.Context) (Resume, error) { return Resume{}, nil }

// History implements StreamLog: nothing is known.
func (f *feed) History(context.Context, int) ([]TailEvent, error) { return nil, nil }

// Move implements StreamLog: the next event brings the cursor.
func (f *feed) Move(context.Context, Cursor) error { return nil }

// Note implements StreamLog: there is no ledger.
func (f *feed) Note(context.Context, Note) error { return nil }

// Committed implements StreamLog: nothing ever is.
func (f *feed) Committed() uint64 { return 0 }
