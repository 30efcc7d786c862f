package journal

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// A snapshot is taken when this much was committed since the one before, so
// that a restart reads no more than that.
const (
	snapshotChunks = 4096
	snapshotBytes  = 64 << 20
)

// state returns what is known of the stream; the mutex is held.
func (p *partition) state(name string) *streamState {
	s := p.streams[name]
	if s == nil {
		s = &streamState{name: name}
		p.streams[name] = s
	}
	return s
}

// load learns from the newest snapshot and the chunks after it what the
// streams' cursors are.
func (p *partition) load(ctx context.Context, s *store) error {
	info, err := s.stream(ctx, chunkStream(p.n))
	if err != nil {
		return err
	}
	tip, err := s.last(ctx, chunkStream(p.n), chunkSubject(p.n))
	if err != nil {
		return err
	}
	p.first, p.last, p.tip = 1, info.State.LastSeq, tip.seq
	if err := p.loadSnapshot(ctx, s); err != nil {
		return err
	}
	if p.last < p.snapped {
		if err := p.fillHole(ctx, s); err != nil {
			return err
		}
	}
	p.used.start(min(p.first, p.last+1), p.last, int64(info.State.Bytes))
	for from := p.snapped + 1; from <= p.last; {
		found, reached, err := p.fetch(ctx, s, from, batchMessages)
		if err != nil {
			return err
		}
		from = reached + 1
		for _, c := range found {
			if c.err != nil {
				p.j.log.Error("journal: damage found", "err", c.err)
			}
			for i := range c.head.rows {
				p.state(c.head.rows[i].name).apply(&c.head.rows[i], c.seq, p.keptNotes())
			}
			p.snappedBytes += int64(c.size)
		}
	}
	return nil
}

// fillHole gives the numbers that the snapshot knows to be used, and that the
// server has forgotten with the file that held them, to holes: destinations may
// hold records under these numbers.
func (p *partition) fillHole(ctx context.Context, s *store) error {
	p.j.log.Error("journal: damage found: the newest chunks are lost", "partition", p.n, "from", p.last+1, "to", p.snapped)
	for p.last < p.snapped {
		f := frame{kind: kindHole, journal: p.j.id, partition: p.n, seq: p.last + 1, sent: time.Now()}
		got, err := s.publish(ctx, chunkSubject(p.n), true, p.tip, appendFrame(nil, &f))
		if err != nil {
			return fmt.Errorf("fill the place of lost chunk %d: %w", f.seq, err)
		}
		p.last, p.tip = got, got
	}
	return nil
}

// loadSnapshot applies the newest readable snapshot.
func (p *partition) loadSnapshot(ctx context.Context, s *store) error {
	m, err := s.last(ctx, snapshotStream, snapshotSubject(p.n))
	if err != nil {
		return err
	}
	p.snapshotSeq = m.seq
	for m.seq > 0 {
		h, seq, err := p.readSnapshot(m.data)
		if err == nil {
			p.snapped, p.first = seq, max(h.oldest, 1)
			for i := range h.rows {
				r := &h.rows[i]
				st := p.state(r.name)
				st.apply(r, r.last, p.keptNotes())
				st.last = r.last
			}
			return nil
		}
		if !errors.Is(err, errElsewhere) {
			p.j.log.Error("journal: a snapshot cannot be read; the one before it is used", "partition", p.n, "err", err)
		}
		if m, err = s.before(ctx, m.seq, snapshotStream, snapshotSubject(p.n)); err != nil {
			return err
		}
	}
	return nil
}

// errElsewhere says that a frame belongs to another journal or partition.
var errElsewhere = errors.New("it belongs to another journal or partition")

func (p *partition) readSnapshot(b []byte) (header, uint64, error) {
	f, err := parseFrame(b)
	switch {
	case err != nil:
		return header{}, 0, err
	case f.kind != kindSnapshot:
		return header{}, 0, fmt.Errorf("kind %d is not a snapshot", f.kind)
	case f.journal != p.j.id || f.partition != p.n:
		return header{}, 0, errElsewhere
	}
	h, err := parseHeader(f.header)
	return h, f.seq, err
}

// maybeSnapshot takes a snapshot when that many chunks or bytes were committed
// since the one before. Only the committer calls it.
func (p *partition) maybeSnapshot(chunks uint64, bytes int64) {
	p.mu.Lock()
	due := p.last-p.snapped >= chunks || p.last > p.snapped && p.snappedBytes >= bytes
	p.mu.Unlock()
	if !due {
		return
	}
	if err := p.snapshot(); err != nil {
		p.j.log.Warn("journal: no snapshot could be written; the next start reads more", "partition", p.n, "err", err)
	}
}

// snapshot takes one.
func (p *partition) snapshot() error {
	p.snapping.Lock()
	defer p.snapping.Unlock()
	p.mu.Lock()
	seq := p.last
	h := header{rows: make([]row, 0, len(p.streams)), oldest: p.first}
	for _, st := range p.streams {
		if st.known {
			h.rows = append(h.rows, row{name: st.name, cursor: st.cursor, moved: true, notes: st.notes, last: st.last})
		}
	}
	p.snappedBytes = 0 // also when it fails: not again with every chunk
	p.mu.Unlock()

	f := frame{kind: kindSnapshot, journal: p.j.id, partition: p.n, seq: seq, sent: time.Now(),
		header: appendHeader(nil, &h, new([]byte))}
	s, err := p.j.serving()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(s.ctx, ackTimeout)
	defer cancel()
	got, err := s.publish(ctx, snapshotSubject(p.n), true, p.snapshotSeq, appendFrame(nil, &f))
	if errors.Is(err, errWrongLast) {
		// The answer to an earlier one was lost. Fencing is the chunks' matter.
		m, lastErr := s.last(ctx, snapshotStream, snapshotSubject(p.n))
		if lastErr != nil {
			return lastErr
		}
		got, err = s.publish(ctx, snapshotSubject(p.n), true, m.seq, appendFrame(nil, &f))
	}
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.snapshotSeq, p.snapped = got, seq
	if p.tails != nil {
		p.tails = &tails{} // whoever wanted its tail has asked by now
	}
	return nil
}
