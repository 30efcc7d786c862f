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
// and Data are valid until the next iteration.
func (s *Stream) Events(ctx context.Context) iter.Seq2[*Event, error] {
	return func(yield func(*Event, error) bool) {
		if s.Target == nil {
			yield(nil, errors.New("the stream has no Target"))
			return
		}
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		f := &feed{ready: make(chan struct{}, 1), space: make(chan struct{}, 1), gathering: &gathered{}}
		r, err := newRunner(ctx, s, f)
		if err != nil {
			yield(nil, err)
			return
		}
		if s.Identities == nil {
			defer r.Identities.Close() // made for this loop alone
		}
		over := make(chan error, 1)
		go func() { over <- r.run(ctx); f.wake() }()
		ended := false
		spare := &gathered{}
		for {
			batch := f.take(spare)
			for i := range batch.events {
				if !yield(&batch.events[i], nil) {
					cancel()
					if !ended {
						<-over
					}
					return
				}
			}
			if len(batch.events) == 0 {
				if ended {
					break
				}
				select {
				case <-f.ready:
				case err = <-over:
					ended = true
				}
			}
			spare = batch
		}
		if err != nil {
			yield(nil, err)
		}
	}
}

// feed is the StreamLog of a stream without a journal. It gathers events while
// the reader is busy with those before, within bounds.
type feed struct {
	ready chan struct{} // something was gathered, or the stream is over
	space chan struct{} // the reader has taken what was gathered

	mu        sync.Mutex
	gathering *gathered
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
	for {
		f.mu.Lock()
		g := f.gathering
		if n := len(g.events); n == 0 || n < maxGathered && g.size+len(ev.Data) <= maxGatheredBytes {
			g.events = append(g.events, *ev)
			kept := &g.events[n]
			kept.ID, kept.Data = g.copy(ev.ID), g.copy(ev.Data)
			g.size += len(ev.Data)
			f.mu.Unlock()
			if n == 0 {
				f.wake() // for all that follow, too
			}
			return nil
		}
		f.mu.Unlock()
		select {
		case <-f.space:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
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

// take returns what was gathered and gathers into spare from now on.
func (f *feed) take(spare *gathered) *gathered {
	clear(spare.events)
	spare.calm++
	if len(spare.events) > cap(spare.events)/8 {
		spare.calm = 0
	}
	if spare.calm > calm || cap(spare.block) > maxBlock {
		*spare = gathered{} // what a burst needed is not kept
	}
	spare.events, spare.block, spare.size = spare.events[:0], spare.block[:0], 0
	f.mu.Lock()
	defer f.mu.Unlock()
	g := f.gathering
	if len(g.events) == 0 {
		return spare
	}
	f.gathering = spare
	select {
	case f.space <- struct{}{}:
	default:
	}
	return g
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
