package journal

import (
	"cmp"
	"context"
	"math"
	"slices"
	"time"

	"github.com/holdline/scrape/framework"
)

// usage knows how many bytes the chunks after any number take, nearly: it
// keeps a mark for every markBytes written and goes straight between two.
type usage struct {
	marks []mark
	total int64 // bytes ever counted
}

// mark says how much had been counted once the chunk was written.
type mark struct {
	seq   uint64
	total int64
}

const (
	markBytes = 1 << 20
	// messageOverhead is about what the server writes with each message.
	messageOverhead = 100
)

// start begins with what is on the disk already.
func (u *usage) start(first, last uint64, bytes int64) {
	u.total = bytes
	u.marks = append(u.marks[:0], mark{first - 1, 0}, mark{last, bytes})
}

// add counts a chunk.
func (u *usage) add(seq uint64, bytes int64) {
	u.total += bytes
	// The last mark follows the newest chunk until it is worth another one.
	if n := len(u.marks); n >= 2 && u.marks[n-1].total-u.marks[n-2].total < markBytes {
		u.marks[n-1] = mark{seq, u.total}
	} else {
		u.marks = append(u.marks, mark{seq, u.total})
	}
}

// after returns the bytes of the chunks after the number.
func (u *usage) after(seq uint64) int64 {
	if len(u.marks) == 0 {
		return u.total
	}
	i, exact := slices.BinarySearchFunc(u.marks, seq, func(m mark, seq uint64) int { return cmp.Compare(m.seq, seq) })
	switch {
	case exact:
		return u.total - u.marks[i].total
	case i == 0:
		return u.total - u.marks[0].total
	case i == len(u.marks):
		return 0
	}
	a, b := u.marks[i-1], u.marks[i]
	share := float64(seq-a.seq) / float64(b.seq-a.seq)
	return u.total - a.total - int64(share*float64(b.total-a.total))
}

// before returns the number after which there are that many bytes, nearly.
func (u *usage) before(bytes int64) uint64 {
	want := u.total - bytes
	i, exact := slices.BinarySearchFunc(u.marks, want, func(m mark, want int64) int { return cmp.Compare(m.total, want) })
	switch {
	case len(u.marks) == 0:
		return 0
	case exact || i == 0:
		return u.marks[i].seq
	case i == len(u.marks):
		return u.marks[i-1].seq
	}
	a, b := u.marks[i-1], u.marks[i]
	return a.seq + uint64(math.Ceil(float64(want-a.total)/float64(b.total-a.total)*float64(b.seq-a.seq)))
}

// drop forgets what is before the first chunk kept.
func (u *usage) drop(first uint64) {
	i, _ := slices.BinarySearchFunc(u.marks, first, func(m mark, seq uint64) int { return cmp.Compare(m.seq, seq) })
	// One mark below first stays, to go straight from.
	u.marks = slices.Delete(u.marks, 0, max(0, min(i, len(u.marks)-1)-1))
}

// held returns the holds of the partition, the one furthest behind first.
func (p *partition) held() []Hold {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make([]Hold, 0, len(p.holds))
	for sink, seq := range p.holds {
		out = append(out, Hold{Sink: sink, Seq: seq, Behind: p.last - min(seq, p.last), Bytes: uint64(max(0, p.used.after(seq)))})
	}
	slices.SortFunc(out, func(a, b Hold) int {
		return cmp.Or(cmp.Compare(a.Seq, b.Seq), cmp.Compare(a.Sink, b.Sink))
	})
	return out
}

// Behind implements [framework.Measurer].
func (j *Journal) Behind(partition int, seq uint64) (bytes int64) {
	p := j.parts[partition]
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.used.after(max(seq, p.first-1))
}

// Waiting implements [framework.Measurer].
func (j *Journal) Waiting(ctx context.Context, partition int, seq uint64) (time.Time, error) {
	p := j.parts[partition]
	first, last := p.bounds()
	if seq >= last {
		return time.Time{}, nil
	}
	s, err := j.serving()
	if err != nil {
		return time.Time{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	msgs, err := s.batch(ctx, partition, max(seq+1, first), 1)
	if err != nil || len(msgs) == 0 {
		return time.Time{}, err
	}
	f, err := parseFrame(msgs[0].data)
	if err != nil {
		return time.Time{}, nil // damage: whoever reads it says so
	}
	return f.sent, nil
}

// Reach implements [framework.Measurer].
func (j *Journal) Reach(partition int, bytes int64) uint64 {
	p := j.parts[partition]
	p.mu.Lock()
	defer p.mu.Unlock()
	return min(p.used.before(bytes), p.last)
}

var _ framework.Measurer = (*Journal)(nil)

// Space implements [framework.Measurer].
func (j *Journal) Space() (used, free int64) {
	for _, p := range j.parts {
		p.mu.Lock()
		used += p.used.after(p.first - 1)
		p.mu.Unlock()
	}
	if n, err := j.free(j.cfg.Dir); err == nil {
		return used, int64(min(n, math.MaxInt64))
	}
	return used, -1
}
