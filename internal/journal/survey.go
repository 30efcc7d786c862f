package journal

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/holdline/scrape/framework"
)

// Survey is what a journal holds, as [Journal.Survey] found it. Its JSON form
// is stable.
type Survey struct {
	Journal framework.JournalID `json:"journal"`
	// Bytes is what the chunks and snapshots take on the disk, Free what is
	// free there; Free is 0 where that is not known.
	Bytes      uint64            `json:"bytes"`
	Free       uint64            `json:"free,omitempty"`
	Partitions []PartitionSurvey `json:"partitions"`
}

// PartitionSurvey is what one partition holds.
type PartitionSurvey struct {
	Partition int `json:"partition"`
	// First and Last are the oldest chunk kept and the newest one; the
	// partition is empty where First is the greater.
	First uint64 `json:"first"`
	Last  uint64 `json:"last"`
	// Chunks can be read, Events are in them, Bytes on the disk.
	Chunks uint64 `json:"chunks"`
	Events uint64 `json:"events"`
	Bytes  uint64 `json:"bytes"`
	// Oldest and Newest are when the first and the last chunk were committed.
	Oldest  time.Time      `json:"oldest,omitzero"`
	Newest  time.Time      `json:"newest,omitzero"`
	Streams []StreamSurvey `json:"streams"`
	// Holds are the sinks for which chunks are kept, while a worker runs.
	Holds []Hold `json:"holds,omitempty"`
	// Damage are the stretches that cannot be read, in order.
	Damage []Damage `json:"damage,omitempty"`
}

// StreamSurvey is what a partition holds of a stream.
type StreamSurvey struct {
	Stream string           `json:"stream"`
	Cursor framework.Cursor `json:"cursor,omitempty"`
	// Events are those in the chunks still kept.
	Events uint64 `json:"events"`
}

// Hold is a sink for which chunks are kept.
type Hold struct {
	Sink string `json:"sink"`
	// Seq is the last chunk that it needs no more, Behind how many there are
	// after it, and Bytes what these take on the disk, nearly.
	Seq    uint64 `json:"seq"`
	Behind uint64 `json:"behind"`
	Bytes  uint64 `json:"bytes"`
}

// Damage is a stretch of chunks that cannot be read.
type Damage struct {
	From uint64 `json:"from"`
	To   uint64 `json:"to"`
	Why  string `json:"why"`
}

// Damaged tells whether something cannot be read.
func (s *Survey) Damaged() bool {
	return slices.ContainsFunc(s.Partitions, func(p PartitionSurvey) bool { return len(p.Damage) > 0 })
}

// Survey reads every chunk that is committed by now and says what is there.
// Numbers and checksums are checked in any case; deep also takes the events
// apart. It reads the whole journal from the disk.
func (j *Journal) Survey(ctx context.Context, deep bool) (*Survey, error) {
	out := &Survey{Journal: j.id, Partitions: []PartitionSurvey{}}
	if free, err := j.free(j.cfg.Dir); err == nil {
		out.Free = free
	}
	s, err := j.serving()
	if err != nil {
		return nil, err
	}
	info, err := s.stream(ctx, snapshotStream)
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	out.Bytes = info.State.Bytes
	for _, p := range j.parts {
		found, err := p.survey(ctx, deep)
		if err != nil {
			return nil, fmt.Errorf("journal: partition %d: %w", p.n, err)
		}
		out.Bytes += found.Bytes
		out.Partitions = append(out.Partitions, *found)
	}
	return out, nil
}

func (p *partition) survey(ctx context.Context, deep bool) (*PartitionSurvey, error) {
	s, err := p.j.serving()
	if err != nil {
		return nil, err
	}
	info, err := s.stream(ctx, chunkStream(p.n))
	if err != nil {
		return nil, err
	}
	first, last := p.bounds()
	out := &PartitionSurvey{Partition: p.n, First: first, Last: last, Bytes: info.State.Bytes, Holds: p.held()}
	streams := map[string]*StreamSurvey{}
	p.mu.Lock()
	for name, st := range p.streams {
		if st.known {
			streams[name] = &StreamSurvey{Stream: name, Cursor: framework.Cursor(st.cursor)}
		}
	}
	p.mu.Unlock()
	for from := first; from <= last; {
		if s, err = p.j.serving(); err != nil {
			return nil, err
		}
		found, reached, err := p.fetch(ctx, s, from, batchMessages)
		if err != nil {
			return nil, err
		}
		from = reached + 1
		for _, c := range found {
			if c.seq > last {
				break
			}
			out.add(c, streams, deep)
		}
	}
	out.Streams = make([]StreamSurvey, 0, len(streams))
	for _, name := range slices.Sorted(maps.Keys(streams)) {
		out.Streams = append(out.Streams, *streams[name])
	}
	return out, nil
}

func (s *PartitionSurvey) add(c *shared, streams map[string]*StreamSurvey, deep bool) {
	bad := c.err
	if bad == nil && deep {
		if _, err := c.full(); err != nil {
			bad = &framework.DamageError{From: c.seq - uint64(c.head.parts), To: c.seq, Err: err}
		}
	}
	if bad != nil {
		// What retention has dropped meanwhile is no damage.
		if bad.Err != errPurged {
			s.Damage = append(s.Damage, Damage{From: bad.From, To: bad.To, Why: bad.Err.Error()})
		}
		return
	}
	s.Chunks++
	s.Events += uint64(c.head.count)
	if s.Oldest.IsZero() {
		s.Oldest = c.bare.Committed
	}
	s.Newest = c.bare.Committed
	for i := range c.head.rows {
		r := &c.head.rows[i]
		st := streams[r.name]
		if st == nil { // its notes and cursor are in damaged chunks
			st = &StreamSurvey{Stream: r.name}
			streams[r.name] = st
		}
		st.Events += uint64(r.count)
	}
}

// Since returns the place before the first chunk that was committed at that
// time or later, by the clock of the machine then.
func (j *Journal) Since(ctx context.Context, partition int, t time.Time) (framework.Position, error) {
	p := j.parts[partition]
	pos := framework.Position{Journal: j.id, Partition: partition}
	s, err := j.serving()
	if err != nil {
		return pos, err
	}
	m, err := s.since(ctx, partition, t)
	if err != nil {
		return pos, err
	}
	first, last := p.bounds()
	switch {
	case m.seq == 0:
		pos.Seq = last
	case m.seq > first:
		pos.Seq = m.seq - 1
	default:
		return pos, nil
	}
	// Events of the chunk before the place are not wanted.
	pos.Event = math.MaxInt32
	return pos, nil
}
