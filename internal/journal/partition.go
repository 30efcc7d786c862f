package journal

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// partition gathers chunks and commits them, one in flight at a time.
type partition struct {
	j *Journal
	n int

	mu     sync.Mutex
	gather *gathering
	gens   uint64
	// appended counts entries, durable those of them in committed chunks.
	appended, durable uint64
	closing           bool
	err               error // final
	// first is the oldest chunk kept, last the newest one committed.
	first, last uint64
	streams     map[string]*streamState
	// snapped is the chunk after which the newest snapshot was taken.
	snapped      uint64
	snappedBytes int64 // written since
	recent       ring
	used         usage
	tails        *tails            // nil before the first Resume
	holds        map[string]uint64 // by sink: the last chunk it needs no more
	// changed is closed and replaced when chunks became durable or err is
	// set; room when appenders that wait may try again.
	changed, room chan struct{}

	// snapping is held while a snapshot is taken, before mu; snapshotSeq is
	// the newest one's sequence in the snapshots' own stream.
	snapping    sync.Mutex
	snapshotSeq uint64
	// tailing is held while tails are looked for, before mu.
	tailing sync.Mutex

	// kick wakes the committer when there is something to commit, urgent when
	// somebody waits for it.
	kick, urgent chan struct{}

	// What follows belongs to the committer alone. tip is the sequence of the
	// subject's last message, which fences: it is the newest chunk's number
	// unless damage has taken that chunk.
	tip       uint64
	spare     *gathering
	code      []byte
	head      []byte
	msg       []byte
	scratch   []byte
	lastStart time.Time
	troubled  bool
}

func newPartition(j *Journal, n int) *partition {
	p := &partition{
		j: j, n: n,
		gather:  &gathering{},
		spare:   &gathering{},
		streams: make(map[string]*streamState),
		holds:   make(map[string]uint64),
		changed: make(chan struct{}),
		room:    make(chan struct{}),
		kick:    make(chan struct{}, 1),
		urgent:  make(chan struct{}, 1),
	}
	p.gens++
	p.gather.reset(p.gens)
	return p
}

// poke wakes whoever receives from c, now or next.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// lock waits until the chunk being gathered has room for an entry and returns
// it with the partition locked.
func (p *partition) lock(ctx context.Context, events, size int) (*gathering, error) {
	p.mu.Lock()
	for {
		switch {
		case p.err != nil:
			defer p.mu.Unlock()
			return nil, p.err
		case p.closing:
			defer p.mu.Unlock()
			return nil, ErrClosed
		case p.gather.empty(),
			p.gather.count+events <= p.j.cfg.ChunkEvents && p.gather.size()+size <= p.j.cfg.ChunkBytes:
			return p.gather, nil
		}
		room := p.room
		p.mu.Unlock()
		poke(p.urgent)
		select {
		case <-room:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		p.mu.Lock()
	}
}

// unlock ends what lock began, after one entry was made.
func (p *partition) unlock() {
	g := p.gather
	p.appended++
	g.entries++
	kick := g.entries == 1
	if !g.urged && p.halfFull(g) {
		g.urged, kick = true, true
	}
	p.mu.Unlock()
	if kick {
		poke(p.kick)
	}
}

// halfFull tells whether the chunk is worth a commit without linger.
func (p *partition) halfFull(g *gathering) bool {
	return g.count >= p.j.cfg.ChunkEvents/2 || g.size() >= p.j.cfg.ChunkBytes/2
}

// sync waits until everything appended before is durable.
func (p *partition) sync(ctx context.Context) error {
	p.mu.Lock()
	target := p.appended
	for p.durable < target {
		if p.err != nil {
			defer p.mu.Unlock()
			return p.err
		}
		changed := p.changed
		p.mu.Unlock()
		poke(p.urgent)
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		p.mu.Lock()
	}
	p.mu.Unlock()
	return nil
}

// fail ends the partition.
func (p *partition) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil {
		p.err = err
		p.broadcast()
	}
}

// broadcast wakes everybody who waits; the mutex is held.
func (p *partition) broadcast() {
	close(p.changed)
	p.changed = make(chan struct{})
	close(p.room)
	p.room = make(chan struct{})
}

// run commits until the journal is closed and nothing is left, or for ever
// failed. It is the partition's committer.
func (p *partition) run() {
	for {
		g := p.next()
		if g == nil {
			break
		}
		if err := p.commit(g); err != nil {
			p.j.log.Error("journal: nothing more can be written", "partition", p.n, "err", err)
			p.fail(err)
			return
		}
		p.maybeSnapshot(snapshotChunks, snapshotBytes)
	}
	p.maybeSnapshot(1, 1)
}

// next waits for something to commit and takes it; nil means that the journal
// is closed.
func (p *partition) next() *gathering {
	for {
		p.mu.Lock()
		switch wait := p.j.cfg.Linger - time.Since(p.lastStart); {
		case p.gather.empty() && p.closing:
			p.mu.Unlock()
			return nil
		case p.gather.empty():
			p.mu.Unlock()
			select {
			case <-p.kick:
			case <-p.urgent:
			case <-p.j.closing:
			}
		case wait > 0 && !p.closing && !p.halfFull(p.gather):
			// The last commit began a moment ago: under load a little
			// patience makes chunks larger and the disk quieter.
			p.mu.Unlock()
			t := time.NewTimer(wait)
			select {
			case <-t.C:
			case <-p.kick:
			case <-p.urgent:
				p.lastStart = time.Time{}
			case <-p.j.closing:
			}
			t.Stop()
		default:
			g := p.gather
			p.gens++
			p.spare.reset(p.gens)
			p.gather, p.spare = p.spare, nil
			close(p.room)
			p.room = make(chan struct{})
			p.mu.Unlock()
			p.lastStart = time.Now()
			return g
		}
	}
}

// commit makes the gathered chunk durable, however long it takes, and tells
// everybody. An error is final.
func (p *partition) commit(g *gathering) error {
	p.mu.Lock()
	seq := p.last + 1
	share := p.recent.readers > 0
	p.mu.Unlock()

	raw := g.body()
	if need := codedLen(len(raw)); cap(p.code) < need {
		p.code = make([]byte, 0, need)
	}
	f := frame{kind: kindChunk, journal: p.j.id, partition: p.n, sent: time.Now(), rawLen: len(raw)}
	coding, body := codeBody(p.code, raw)
	p.code = reuse(p.code)
	f.coding = coding
	h := header{rows: g.rows, base: g.base, count: g.count}

	written := int64(0)
	for ; len(body) > p.j.cfg.messageBody(); h.parts++ {
		part := frame{kind: kindPart, journal: f.journal, partition: f.partition, seq: seq, sent: f.sent,
			header: appendHeader(nil, &header{part: h.parts}, &p.scratch), body: body[:p.j.cfg.messageBody()]}
		body = body[p.j.cfg.messageBody():]
		if err := p.write(&part); err != nil {
			return err
		}
		written += int64(len(p.msg))
		seq++
	}
	p.head = appendHeader(p.head[:0], &h, &p.scratch)
	f.seq, f.header, f.body = seq, p.head, body
	if err := p.write(&f); err != nil {
		return err
	}
	written += int64(len(p.msg))

	p.mu.Lock()
	defer p.mu.Unlock()
	p.last = seq
	p.snappedBytes += written
	p.used.add(seq, written+int64(h.parts+1)*messageOverhead)
	keep := p.keptNotes()
	for i := range g.rows {
		l, r := g.logs[i], &g.rows[i]
		l.state.apply(r, seq, keep)
		l.committed.Add(uint64(r.count))
	}
	p.durable = p.appended - p.gather.entries
	if share {
		h.rows = slices.Clone(h.rows) // the original is used again
		c := newShared(&f, &h, func() ([]byte, error) { return raw, nil })
		c.size = len(raw)
		p.recent.add(c)
		g.data = make([]byte, 0, min(cap(raw), 2*p.j.cfg.ChunkBytes)) // raw belongs to the readers now
	}
	p.spare = g
	p.broadcast()
	return nil
}

// ErrFenced says that another writer has written to the partition: this one is
// refused for ever. Whoever gets it must stop.
var ErrFenced = errors.New("journal: another writer has taken over the partition")

// How long to wait between attempts to write.
const (
	retryFirst = 50 * time.Millisecond
	retryMost  = 5 * time.Second
)

// write makes one message durable as number f.seq. It tries until it succeeds,
// is fenced, or Close gives up. An attempt whose outcome is unknown is simply
// repeated: the server stores the message only as the successor of the one before,
// and when it refuses, the message that is there says whether it is ours.
func (p *partition) write(f *frame) error {
	p.msg = appendFrame(reuse(p.msg), f)
	for wait := retryFirst; ; wait = min(2*wait, retryMost) {
		err := p.j.attempt(p.n, p.tip, f.seq, p.msg)
		switch {
		case err == nil:
			p.tip = f.seq
			if p.troubled {
				p.troubled = false
				p.j.log.Info("journal: writing again", "partition", p.n)
			}
			return nil
		case errors.Is(err, ErrFenced):
			return err
		case !p.troubled:
			p.troubled = true
			p.j.log.Error("journal: cannot write; reading pauses, nothing is lost; free some space or mend the disk and it goes on by itself",
				"dir", p.j.cfg.Dir, "partition", p.n, "err", err)
		}
		select {
		case <-time.After(wait):
		case <-p.j.abort:
			return fmt.Errorf("journal: closed before chunk %d of partition %d could be written: %w", f.seq, p.n, err)
		}
	}
}
