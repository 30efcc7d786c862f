package journal

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"
	"time"

	"github.com/holdline/scrape/framework"
)

// shared is a committed chunk as all readers share it. Its events are decoded
// once, by the first reader that wants them.
type shared struct {
	seq  uint64
	size int
	head header
	// bare is the chunk without events, full the one with them.
	bare *framework.Chunk
	full func() (*framework.Chunk, error)
	// err says that this is no chunk but damage, up to seq.
	err *framework.DamageError
}

func newShared(f *frame, h *header, body func() ([]byte, error)) *shared {
	names := make([]string, len(h.rows))
	for i := range h.rows {
		names[i] = h.rows[i].name
	}
	bare := &framework.Chunk{Journal: f.journal, Partition: f.partition, Seq: f.seq, Committed: f.sent, Streams: names, Count: h.count}
	c := &shared{seq: f.seq, head: *h, bare: bare}
	c.full = sync.OnceValues(func() (*framework.Chunk, error) {
		if c.head.count == 0 {
			return bare, nil
		}
		raw, err := body()
		if err != nil {
			return nil, err
		}
		full, h := *bare, c.head
		full.Events, err = parseEvents(&h, raw)
		full.NoneAgain = !h.again
		return &full, err
	})
	return c
}

// ring holds the newest chunks for readers that keep up.
type ring struct {
	chunks  []*shared
	bytes   int
	readers int
}

// Limits of the ring: what a reader may fall behind before it reads the disk.
const (
	ringChunks = 256
	ringBytes  = 16 << 20
)

func (r *ring) add(c *shared) {
	r.chunks = append(r.chunks, c)
	r.bytes += c.size
	drop := 0
	for drop < len(r.chunks)-1 && (len(r.chunks)-drop > ringChunks || r.bytes > ringBytes) {
		r.bytes -= r.chunks[drop].size
		drop++
	}
	r.chunks = slices.Delete(r.chunks, 0, drop)
}

// after returns the chunks of the ring when the first of them is the one that
// follows number seq.
func (r *ring) after(seq uint64) []*shared {
	i, ok := slices.BinarySearchFunc(r.chunks, seq+1, func(c *shared, want uint64) int {
		switch first := c.seq - uint64(c.head.parts); {
		case first < want:
			return -1
		case first > want:
			return 1
		}
		return 0
	})
	if !ok {
		return nil
	}
	return slices.Clone(r.chunks[i:])
}

// Read implements [framework.Journal]. A position of another journal or of no
// partition of this one is an error; a position below the oldest chunk kept
// begins with a damaged chunk that says so, unless its Seq is 0.
func (j *Journal) Read(ctx context.Context, after framework.Position, want func(stream string) bool) iter.Seq2[*framework.Chunk, error] {
	return func(yield func(*framework.Chunk, error) bool) {
		if after.Journal != "" && after.Journal != j.id || after.Partition < 0 || after.Partition >= len(j.parts) {
			yield(nil, fmt.Errorf("journal: position %v is not of journal %s with %d partitions", after, j.id, len(j.parts)))
			return
		}
		p := j.parts[after.Partition]
		p.mu.Lock()
		p.recent.readers++
		seq := after.Seq
		if seq == 0 {
			seq = p.first - 1 // from the oldest on
		} else if seq >= p.first {
			seq-- // the position may be in the middle of its chunk
		}
		p.mu.Unlock()
		defer func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			if p.recent.readers--; p.recent.readers == 0 {
				p.recent = ring{}
			}
		}()
		for {
			found, reached, err := p.await(ctx, seq)
			if err != nil {
				yield(nil, err)
				return
			}
			seq = reached
			for i, c := range found {
				found[i] = nil // once decoded it is large: let go of it one by one
				if c.seq == after.Seq && c.err == nil && c.head.count <= after.Event {
					continue
				}
				if !yield(c.chunk(p, want), nil) {
					return
				}
			}
		}
	}
}

// chunk returns what the reader gets.
func (c *shared) chunk(p *partition, want func(stream string) bool) *framework.Chunk {
	if c.err != nil {
		return &framework.Chunk{Journal: p.j.id, Partition: p.n, Seq: c.seq, Err: c.err}
	}
	if want != nil && !slices.ContainsFunc(c.bare.Streams, want) {
		return c.bare
	}
	full, err := c.full()
	if err != nil {
		return &framework.Chunk{Journal: p.j.id, Partition: p.n, Seq: c.seq, Err: p.damage(c.seq-uint64(c.head.parts), c.seq, err)}
	}
	return full
}

func (p *partition) damage(from, to uint64, err error) *framework.DamageError {
	return &framework.DamageError{Journal: p.j.id, Partition: p.n, From: from, To: to, Err: err}
}

// readRetry is how long a reader waits after the server failed to answer it.
const readRetry = 200 * time.Millisecond

// await returns chunks after number seq and the number that they reach to,
// waiting until there are any.
func (p *partition) await(ctx context.Context, seq uint64) ([]*shared, uint64, error) {
	for {
		p.mu.Lock()
		last, changed, closing := p.last, p.changed, p.closing
		found := p.recent.after(seq)
		p.mu.Unlock()
		if len(found) > 0 {
			return found, found[len(found)-1].seq, nil
		}
		if ctx.Err() != nil {
			return nil, 0, context.Cause(ctx)
		}
		if closing {
			return nil, 0, ErrClosed
		}
		var retry <-chan time.Time
		if seq < last {
			if s := p.j.reading(); s != nil {
				found, reached, err := p.fetch(ctx, s, seq+1, batchMessages)
				if err == nil {
					return found, reached, nil
				}
				if ctx.Err() == nil {
					p.j.log.Debug("journal: reading failed and is tried again", "partition", p.n, "err", err)
				}
			}
			retry = time.After(readRetry)
		}
		select {
		case <-changed:
		case <-retry:
		case <-p.j.closing:
		case <-ctx.Done():
		}
	}
}

// Why chunks cannot be read, apart from what is wrong with their own bytes.
var (
	errMissing = errors.New("missing: the file that held it is damaged or was removed")
	errPurged  = errors.New("no longer kept")
	errHole    = errors.New("lost: the end of the journal was damaged while it was closed")
)

// fetch reads chunks from number from on, out of at most that many messages. It returns what it found, damage
// included, and the last number it has dealt with, which is not below from
// unless from is beyond the newest chunk.
func (p *partition) fetch(ctx context.Context, s *store, from uint64, most int) (out []*shared, reached uint64, err error) {
	p.mu.Lock()
	last := p.last // before asking: what is committed later is not missing
	p.mu.Unlock()
	bad := func(to uint64, err error) {
		// Neighbours with one cause are one stretch.
		if n := len(out); n > 0 && out[n-1].err != nil && out[n-1].err.Err.Error() == err.Error() {
			out[n-1].err.To, out[n-1].seq = to, to
		} else {
			d := p.damage(from, to, err)
			out = append(out, &shared{seq: to, err: d, full: func() (*framework.Chunk, error) { return nil, d }})
		}
		from = to + 1
	}
	var parts assembly
	for len(out) == 0 && from <= last {
		msgs, err := s.batch(ctx, p.n, from, min(most, batchMessages))
		if err != nil {
			return nil, 0, err
		}
		// A file that is gone makes the server answer nothing at all for the
		// numbers in it, though there may be more after them.
		for n := from + 1; len(msgs) == 0; n++ {
			if n > last {
				msgs = append(msgs, message{seq: n})
			} else if msgs, err = s.batch(ctx, p.n, n, min(most, batchMessages)); err != nil {
				return nil, 0, err
			}
		}
		for _, m := range msgs {
			if first, _ := p.bounds(); from < first && from < m.seq {
				bad(min(m.seq, first)-1, errPurged)
			}
			if from < m.seq {
				bad(m.seq-1, errMissing)
			}
			if m.seq > last {
				break
			}
			f, h, err := p.read(m)
			switch {
			case err != nil:
				bad(m.seq, err)
				continue
			case f.kind == kindPart:
				parts.add(&f, &h)
				from++
				continue
			}
			body := f.body
			if h.parts > 0 {
				body, err = p.assemble(ctx, s, &parts, &f, &h)
				if broken := (*partError)(nil); errors.As(err, &broken) {
					bad(m.seq, err)
					continue
				} else if err != nil {
					return nil, 0, err
				}
			}
			c := newShared(&f, &h, func() ([]byte, error) { return plainBody(f.coding, body, f.rawLen) })
			c.size = len(m.data) - len(f.body) + len(body)
			out = append(out, c)
			from++
		}
	}
	return out, from - 1, nil
}

func (p *partition) bounds() (first, last uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.first, p.last
}

// read checks a message of the partition.
func (p *partition) read(m message) (frame, header, error) {
	f, err := parseFrame(m.data)
	if err != nil {
		return f, header{}, err
	}
	if f.journal != p.j.id || f.partition != p.n || f.seq != m.seq {
		return f, header{}, fmt.Errorf("it is chunk %d of partition %d of journal %s", f.seq, f.partition, f.journal)
	}
	if f.kind == kindHole {
		return f, header{}, errHole
	}
	if f.kind != kindChunk && f.kind != kindPart {
		return f, header{}, fmt.Errorf("kind %d is unknown to this program: run a newer scrape", f.kind)
	}
	h, err := parseHeader(f.header)
	if err == nil && uint64(h.parts) >= f.seq {
		err = fmt.Errorf("it claims %d parts before it", h.parts)
	}
	return f, h, err
}

// assembly collects the parts of one chunk as they are read.
type assembly struct {
	from uint64 // number of the first part
	n    int
	body []byte
}

func (a *assembly) add(f *frame, h *header) {
	switch {
	case h.part == 0:
		*a = assembly{from: f.seq, n: 1, body: append([]byte(nil), f.body...)}
	case a.n == h.part && a.from+uint64(a.n) == f.seq:
		a.n, a.body = a.n+1, append(a.body, f.body...)
	}
}

// partError says that a part of a chunk cannot be read.
type partError struct {
	seq uint64
	err error
}

func (e *partError) Error() string { return fmt.Sprintf("its part in number %d: %v", e.seq, e.err) }
func (e *partError) Unwrap() error { return e.err }

// assemble returns the coded body of a chunk in parts. The parts are usually
// those just read; a reader that began between them reads them again.
func (p *partition) assemble(ctx context.Context, s *store, a *assembly, f *frame, h *header) ([]byte, error) {
	begin := f.seq - uint64(h.parts)
	if a.from != begin || a.n != h.parts {
		*a = assembly{}
	}
	for next := begin + uint64(a.n); next < f.seq; {
		msgs, err := s.batch(ctx, p.n, next, int(min(f.seq-next, batchMessages)))
		if err != nil {
			return nil, err
		}
		if len(msgs) == 0 {
			return nil, &partError{next, errMissing}
		}
		for _, m := range msgs {
			pf, ph, err := p.read(m)
			if err == nil && (m.seq != next || pf.kind != kindPart) {
				err = errMissing
			}
			if err != nil {
				return nil, &partError{next, err}
			}
			if a.add(&pf, &ph); a.n != int(next-begin)+1 {
				return nil, &partError{next, errMissing}
			}
			next++
		}
	}
	body := append(a.body, f.body...)
	*a = assembly{}
	return body, nil
}
