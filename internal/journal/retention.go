package journal

import (
	"context"
	"time"

	"github.com/holdline/scrape/framework"
)

// trimEvery is how often retention looks for chunks to drop.
const trimEvery = 10 * time.Second

// Release implements [framework.Journal]. Holds live in memory: whoever wants
// chunks kept across a restart calls it, with the position that the sink has
// (Seq 0 when it has none yet), before the first append. A position of another
// journal is ignored.
func (j *Journal) Release(sink string, pos framework.Position) {
	if pos.Journal != j.id || pos.Partition < 0 || pos.Partition >= len(j.parts) {
		return
	}
	p := j.parts[pos.Partition]
	p.mu.Lock()
	defer p.mu.Unlock()
	// Never back: a sink that starts again says so by a position of its own,
	// and what was dropped meanwhile is gone.
	p.holds[sink] = max(p.holds[sink], pos.Seq)
}

// Forget implements [framework.Journal].
func (j *Journal) Forget(sink string) {
	for _, p := range j.parts {
		p.mu.Lock()
		delete(p.holds, sink)
		p.mu.Unlock()
	}
}

// keep enforces retention until the journal is closed.
func (j *Journal) keep() {
	t := time.NewTicker(trimEvery)
	defer t.Stop()
	for {
		select {
		case <-j.closing:
			return
		case now := <-t.C:
			j.trim(now)
		}
	}
}

func (j *Journal) trim(now time.Time) {
	s := j.reading()
	if s == nil {
		return
	}
	for _, p := range j.parts {
		ctx, cancel := context.WithTimeout(s.ctx, readTimeout)
		if err := p.trim(ctx, s, now); err != nil {
			j.log.Warn("journal: old chunks could not be dropped; it is tried again", "partition", p.n, "err", err)
		}
		cancel()
	}
}

// retainBytes is how much a partition keeps beyond what the sinks need.
func (j *Journal) retainBytes() int64 {
	most := j.cfg.MaxBytes
	if most <= 0 {
		used, free := j.Space()
		if free < 0 {
			return j.cfg.RetainBytes
		}
		most = (used + free) / 4 * 3 / int64(len(j.parts))
	}
	return min(j.cfg.RetainBytes, most)
}

// trim drops chunks that are older than Retain or beyond retainBytes, as far
// as no sink needs them.
func (p *partition) trim(ctx context.Context, s *store, now time.Time) error {
	p.mu.Lock()
	if p.appended == 0 || p.j.cfg.KeepAll {
		// Not before the first entry: the sinks of a worker may not have said
		// yet what they need, and who only reads is to change nothing.
		p.mu.Unlock()
		return nil
	}
	// The newest message stays in any case: it is what fences writers. So does
	// the chunk that a sink's position is in, of which it may want the rest.
	limit := p.last
	for _, seq := range p.holds {
		limit = min(limit, seq)
	}
	first := p.first
	p.mu.Unlock()
	if limit <= first {
		return nil
	}
	m, err := s.since(ctx, p.n, now.Add(-p.j.cfg.Retain))
	if err != nil {
		return err
	}
	if m.seq == 0 || m.seq > limit {
		m.seq = limit // all are older
	}
	if err := p.drop(ctx, s, m.seq); err != nil {
		return err
	}
	keep := float64(p.j.retainBytes())
	// How many bytes the oldest chunks hold is not known: a few careful steps.
	for range 8 {
		info, err := s.stream(ctx, chunkStream(p.n))
		if err != nil {
			return err
		}
		st := info.State
		excess := float64(st.Bytes) - keep
		if excess <= 0 || st.FirstSeq >= limit {
			return nil
		}
		step := float64(st.LastSeq-st.FirstSeq+1) * excess / float64(st.Bytes) / 2
		if err := p.drop(ctx, s, min(limit, st.FirstSeq+uint64(step)+1)); err != nil {
			return err
		}
	}
	return nil
}

// drop drops what is before the chunk that number seq belongs to.
func (p *partition) drop(ctx context.Context, s *store, seq uint64) error {
	if first, _ := p.bounds(); seq <= first {
		return nil
	}
	msgs, err := s.batch(ctx, p.n, seq, 1)
	if err != nil {
		return err
	}
	if len(msgs) > 0 && msgs[0].seq == seq {
		if _, h, err := p.read(msgs[0]); err == nil {
			seq -= uint64(h.part + h.parts) // not into the middle of a chunk
		}
	}
	p.mu.Lock()
	if seq <= p.first {
		p.mu.Unlock()
		return nil
	}
	p.first = seq
	p.used.drop(seq)
	p.mu.Unlock()
	// The snapshot comes first: it takes over the cursors of idle streams, and
	// tells later readers that this is not damage.
	if err := p.snapshot(); err != nil {
		return err
	}
	return s.purge(ctx, p.n, seq)
}
