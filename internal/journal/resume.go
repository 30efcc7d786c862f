package journal

import (
	"context"
	"slices"
	"strings"

	"github.com/holdline/scrape/framework"
)

// How far Resume looks back for the last events of a stream: for those that
// were active lately once for all of them together, for an idle one from its
// own last chunk.
const (
	tailChunks = 4096
	tailEvents = 1 << 19
	tailBytes  = 64 << 20
	idleChunks = 64
	// historyChunks is how far History looks back: a feed that is not fast fills
	// a chunk with every event.
	historyChunks = 1 << 16
)

// tails are the last events of the streams in the newest chunks, as the first
// Resume after opening found them. They are forgotten once they are asked for,
// or when the next snapshot is taken.
type tails struct {
	// upTo is the chunk that was the newest.
	upTo     uint64
	byStream map[string][]framework.TailEvent
}

// Resume implements [framework.StreamLog].
func (l *streamLog) Resume(ctx context.Context) (framework.Resume, error) {
	// What was appended before must count.
	if err := l.p.sync(ctx); err != nil {
		return framework.Resume{}, err
	}
	tail, err := l.p.tail(ctx, l.state)
	if err != nil {
		return framework.Resume{}, err
	}
	l.p.mu.Lock()
	defer l.p.mu.Unlock()
	s := l.state
	return framework.Resume{Cursor: framework.Cursor(s.cursor), Known: s.known, Tail: tail, Notes: slices.Clone(s.notes)}, nil
}

// History implements [framework.StreamLog]. It looks as far back as Resume does
// for streams that were active lately.
func (l *streamLog) History(ctx context.Context, most int) ([]framework.TailEvent, error) {
	if err := l.p.sync(ctx); err != nil {
		return nil, err
	}
	l.p.mu.Lock()
	name, last := l.state.name, l.state.last
	l.p.mu.Unlock()
	if last == 0 {
		return nil, nil
	}
	found, err := l.p.scan(ctx, last, historyChunks, 1, most, func(n string) bool { return n == name })
	return slices.DeleteFunc(found[name], func(e framework.TailEvent) bool { return e.Filled }), err
}

// tail returns the last events of the stream.
func (p *partition) tail(ctx context.Context, st *streamState) ([]framework.TailEvent, error) {
	p.tailing.Lock() // one scan serves all who wait for it
	defer p.tailing.Unlock()
	p.mu.Lock()
	last, seq, cached := p.last, st.last, p.tails
	p.mu.Unlock()
	if seq == 0 {
		return nil, nil
	}
	if cached == nil {
		found, err := p.scan(ctx, last, tailChunks, p.active(), KeptTail, func(string) bool { return true })
		if err != nil {
			return nil, err
		}
		cached = &tails{upTo: last, byStream: found}
		p.mu.Lock()
		p.tails = cached
		p.mu.Unlock()
	}
	if t, ok := cached.byStream[st.name]; ok && seq <= cached.upTo {
		delete(cached.byStream, st.name)
		return t, nil
	}
	found, err := p.scan(ctx, seq, idleChunks, 1, KeptTail, func(name string) bool { return name == st.name })
	return found[st.name], err
}

// scan collects the last events of the streams from at most that many chunks
// up to number last, until that many streams have as many as are wanted at
// most. A chunk that cannot be read ends every tail: what is before it does not
// adjoin what is after.
func (p *partition) scan(ctx context.Context, last uint64, chunks, streams, most int, want func(string) bool) (map[string][]framework.TailEvent, error) {
	first, _ := p.bounds()
	if n := uint64(chunks); last >= n {
		first = max(first, last-n+1)
	}
	found := make(map[string][]framework.TailEvent)
	events, bytes, damaged := 0, 0, false
	// Under load one chunk is enough, when quiet it takes many.
	for to, window := last, uint64(1); to >= first && !damaged && events < tailEvents && bytes < p.j.tailBytes; window = min(2*window, batchMessages) {
		from := max(first, to-min(to-first, window-1))
		older := make(map[string][]framework.TailEvent)
		for next := from; next <= to; {
			s, err := p.j.serving()
			if err != nil {
				return nil, err
			}
			list, reached, err := p.fetch(ctx, s, next, int(to-next)+1)
			if err != nil {
				return nil, err
			}
			next = reached + 1
			for _, c := range list {
				if c.seq > to {
					break
				}
				bytes += c.size
				if c.err == nil && !slices.ContainsFunc(c.bare.Streams, want) {
					continue
				}
				full, err := c.full()
				if err != nil {
					clear(older)
					damaged = true
					continue
				}
				for i := range full.Events {
					ev := &full.Events[i]
					if name := full.Streams[ev.Stream]; want(name) && ev.Again == nil {
						// Texts are cloned: they are views into the whole chunk.
						tail := framework.TailEvent{
							ID: strings.Clone(ev.ID), Hash: framework.HashEvent(ev.Type, ev.Data), Time: ev.Time,
							Sequence: ev.Sequence, Sequenced: ev.Sequenced, Filled: ev.Filled, Late: ev.Late,
						}
						if tail.Cursor = framework.Cursor(tail.ID); tail.Cursor != ev.Cursor {
							tail.Cursor = framework.Cursor(strings.Clone(string(ev.Cursor)))
						}
						older[name] = append(older[name], tail)
					}
				}
			}
		}
		enough := len(older) > 0
		for name, list := range older {
			have := found[name]
			list = list[max(0, len(list)-(most-len(have))):]
			events += len(list)
			found[name] = append(slices.Clip(list), have...)
		}
		for _, list := range found {
			enough = enough && len(list) == most
		}
		if enough && len(found) == streams || from == first {
			break
		}
		to = from - 1
	}
	return found, nil
}

// active returns how many streams have events.
func (p *partition) active() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, s := range p.streams {
		if s.last > 0 {
			n++
		}
	}
	return n
}
