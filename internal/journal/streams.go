package journal

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/holdline/scrape/framework"
)

// Limits of one entry. What is longer is refused and harms nothing else.
const (
	// MaxEvent is the largest event (id, type, cursor and data together).
	MaxEvent = 128 << 20
	// MaxText is the longest stream name, cursor or body of a note.
	MaxText = framework.MaxCursor
	// KeptNotes is how many entries of a stream's ledger are kept at most, once
	// they are shortened with framework.CompactNotes; up to as many more are
	// gathered before that. Where a partition has many streams, they share
	// sharedNotes, so that a snapshot stays one message.
	KeptNotes   = 1024
	sharedNotes = 64 << 10
	leastNotes  = 16
	// KeptTail is how many last events of a stream Resume returns at most.
	KeptTail = 4096
)

// SizeError says that an entry is too long for the journal. Nothing was
// written, and the stream log can still be used.
type SizeError struct {
	Stream, What string
	Size, Limit  int
}

// TooLong tells the engine that the journal itself is well.
func (e *SizeError) TooLong() bool { return true }

func (e *SizeError) Error() string {
	return fmt.Sprintf("journal: %s: %s of %d bytes is longer than the limit of %d", e.Stream, e.What, e.Size, e.Limit)
}

// streamState is what the journal knows of a stream from committed chunks. The
// partition's mutex guards it.
type streamState struct {
	name   string
	known  bool
	cursor string
	notes  []framework.Note
	last   uint64 // newest chunk with an event of the stream
}

// apply adds what a committed chunk says of the stream, whose ledger is to
// keep so many entries.
func (s *streamState) apply(r *row, seq uint64, keep int) {
	s.known = true
	if r.moved {
		s.cursor = r.cursor
	}
	if r.count > 0 {
		s.last = seq
	}
	s.notes = append(s.notes, r.notes...)
	// In steps: shortening reads the whole ledger.
	if len(s.notes) > 2*keep {
		s.notes = framework.CompactNotes(s.notes, keep)
	}
}

// keptNotes is how many entries of a ledger are kept; the mutex is held.
func (p *partition) keptNotes() int {
	return max(leastNotes, min(KeptNotes, sharedNotes/max(len(p.streams), 1)))
}

// Streams returns the names of the streams that the journal has held, sorted.
func (j *Journal) Streams() (names []string) {
	for _, p := range j.parts {
		p.mu.Lock()
		for name, s := range p.streams {
			if s.known {
				names = append(names, name)
			}
		}
		p.mu.Unlock()
	}
	slices.Sort(names)
	return names
}

// streamLog is the writing end of one stream.
type streamLog struct {
	p     *partition
	state *streamState
	// gen and row say where the stream is in the chunk being gathered.
	gen       uint64
	row       int
	committed atomic.Uint64
}

func (l *streamLog) check(what string, size, limit int) error {
	if size > limit {
		return &SizeError{Stream: l.state.name, What: what, Size: size, Limit: limit}
	}
	return nil
}

// Append implements [framework.StreamLog].
func (l *streamLog) Append(ctx context.Context, ev *framework.Event) error {
	const most = 64 // bytes of meta besides id, type and cursor
	size := most + len(ev.ID) + len(ev.Type) + len(ev.Cursor) + len(ev.Data)
	if err := l.check("an event", size, MaxEvent); err != nil {
		return err
	}
	if err := l.check("a cursor", len(ev.Cursor), MaxText); err != nil {
		return err
	}
	g, err := l.p.lock(ctx, 1, size)
	if err != nil {
		return err
	}
	g.event(l, ev)
	l.p.unlock()
	return nil
}

// Move implements [framework.StreamLog].
func (l *streamLog) Move(ctx context.Context, c framework.Cursor) error {
	if err := l.check("a cursor", len(c), MaxText); err != nil {
		return err
	}
	g, err := l.p.lock(ctx, 0, len(c))
	if err != nil {
		return err
	}
	g.move(g.row(l), string(c))
	l.p.unlock()
	return nil
}

// Note implements [framework.StreamLog].
func (l *streamLog) Note(ctx context.Context, n framework.Note) error {
	if err := l.check("a note", len(n.Body), MaxText); err != nil {
		return err
	}
	g, err := l.p.lock(ctx, 0, len(n.Body))
	if err != nil {
		return err
	}
	g.note(g.row(l), n)
	l.p.unlock()
	return nil
}

// Committed implements [framework.StreamLog].
func (l *streamLog) Committed() uint64 { return l.committed.Load() }
