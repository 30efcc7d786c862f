package framework

import (
	"context"
	"slices"
	"time"

	"github.com/holdline/scrape/internal/splice"
)

// A site may begin each connection with a replay that is longer than what the
// splice remembers, and than what a line may hold while it waits. Where ids tell
// events apart each one is looked for in the journal. Where the sequence does,
// the line itself is looked for: what the journal has of the past is laid before
// what the splice remembers, and a line of which all that it holds lies in it,
// in one place and not by chance, follows the past. Each event that equals the
// next one of the past was delivered, until the line comes to what the splice
// remembers and is put there. With the first one that does not, the line waits
// again and is looked for anew. As long as it follows, it has not joined: it
// moves no cursor and proves nothing.
//
// A replay may also begin before all that is known. Then it is delivered, for
// lack of anything better, but the line looks out for the beginning of the past,
// holds what equals it, for a moment, and follows the past from there. What was
// delivered meanwhile lies before the past, and the ledger says how much of it
// may have been delivered before that.

const (
	// maxLookout and lookoutTime bound for how many events, and how long, a line
	// looks out.
	maxLookout  = 1 << 18
	lookoutTime = 10 * time.Minute
	// askSeldom and askLeast are how long, at first and at most, the journal is
	// not asked after it was in vain, unless a replay is likely.
	askSeldom, askLeast = time.Minute, time.Hour
	// margin is how far a line is from being forgotten where the splice takes it
	// over: others may deliver more before it brings its next event.
	margin = splice.Window / 2
	// glance and pace are after how many events it is looked at how fast they
	// come, of a line that looks out and of one that follows.
	glance, pace = 256, 16
)

// pursuit is what a line has to do with the past.
type pursuit struct {
	past  *splice.Past  // nil when it has nothing more to do with it
	cut   bool          // something was delivered before the past begins
	usual time.Duration // how long an event of it took
	end   int           // how much had been delivered when it was looked up

	following bool
	at        int       // the index of the next event
	passed    int       // events followed since the journal was asked
	paced     time.Time // when it was last looked at how fast they come
	tried     int       // of the events held when its place was last looked for

	mark      *splice.Mark // what it looks out for; nil when it does not
	from, to  int          // where that lies in the past
	began     time.Time    // when the first event came whose place is not known
	opened    int          // how much had been delivered then
	burst     int          // of the events since then, so many came too fast to be new
	tentative bool         // the line holds what may be the beginning of the mark …
	held      time.Time    // … since then
	spent     time.Duration
	told      []told
}

// told is a gap that the ledger told of when the line joined without a place.
type told struct {
	gap Gap
	end int // how much had been delivered
}

// busy tells whether the line follows the past or holds what may be the
// beginning of it: nothing else is to be found for it.
func (p *pursuit) busy() bool { return p != nil && (p.following || p.tentative) }

// recollect lays the journal, if it is to be asked, before what the splice
// remembers. It runs under r.mu.
func (r *runner) recollect(ctx context.Context, ask bool) *pursuit {
	var tail []TailEvent
	if ask {
		var err error
		// Also while the stream is being stopped: see run.
		if tail, err = r.log.History(context.WithoutCancel(ctx), maxPast); err != nil {
			// To deliver it twice is better than not at all.
			r.Log.Warn("the journal cannot tell what was delivered before", "error", err)
		}
	}
	tokens := make([]uint64, len(tail))
	for i := range tail {
		tokens[i] = r.splice.Token([]byte(tail[i].ID), tail[i].Hash)
	}
	p := &pursuit{past: r.splice.Past(tokens, func(i int) bool { return tail[i].Late }, r.loose), usual: usual(tail)}
	p.cut = r.known || r.splice.End() > p.past.Len()
	if n := r.splice.End(); len(tail) == 0 && n > 0 && !r.first.IsZero() {
		p.usual = r.lastEvent.Sub(r.first) / time.Duration(n)
	}
	return p
}

// usual is how long an event took, as a rule. Half of the time passed with
// events that took no longer: what came in a burst, as replays do that were
// delivered, counts for little, and the longest pauses not at all.
func usual(tail []TailEvent) time.Duration {
	const block = 64
	var blocks []time.Duration
	var sum time.Duration
	for i, n := 1, 0; i < len(tail); i++ {
		sum += max(tail[i].Time.Sub(tail[i-1].Time), 0)
		if n++; n == block || i == len(tail)-1 {
			blocks = append(blocks, sum/time.Duration(n))
			sum, n = 0, 0
		}
	}
	slices.Sort(blocks)
	if n := len(blocks); n >= 8 {
		blocks = blocks[:n-max(n/100, 1)]
	}
	var all, until time.Duration
	for _, d := range blocks {
		all += d
	}
	for _, d := range blocks {
		if until += d; 2*until >= all {
			return d
		}
	}
	return 0
}

// fast tells whether so many events since then came faster than they did when
// they were new, as a replay does: a feed that begins over again, such as a
// recording that is played in a loop, brings them as fast as before.
func (p *pursuit) fast(events int, since time.Time) bool {
	return p.usual == 0 || time.Duration(events)*p.usual > 2*time.Since(since)
}

// remember has the line know the past. Where the splice does not remember all of
// it the journal is asked, which is slow, and more so for a thousand streams that
// have lost their site together: not where what the line holds is too little to
// be found, or came as a feed does that goes on from now, and seldom where that
// was in vain and it is no burst. It runs under r.mu.
func (r *runner) remember(ctx context.Context, l *line) {
	h, was := &l.held, l.pursuit
	p := r.recollect(ctx, false)
	burst := h.full() || len(h.events) >= deepReplay
	older := r.splice.End() >= splice.Window // of fewer it remembers what the journal knows
	now := time.Now()
	likely := burst || !now.Before(r.askAfter) && p.fast(len(h.tokens), h.events[0].Time)
	if older && likely && p.past.Telling(h.tokens) {
		p = r.recollect(ctx, true)
		r.asked = min(max(2*r.asked, askSeldom), askLeast)
		r.askAfter = now.Add(r.asked)
	}
	p.began, p.opened, p.end = h.events[0].Time, r.splice.End(), r.splice.End()
	if was != nil {
		p.told = was.told
	}
	l.pursuit = p
}

// search looks in the past for the place of a line that is about to join, and
// has it follow from there. It runs under r.mu.
func (r *runner) search(ctx context.Context, l *line) (found bool, err error) {
	if p := l.pursuit; p == nil || p.past == nil || p.passed >= deepReplay || r.splice.End()-p.end > margin {
		r.remember(ctx, l)
	}
	h, p := &l.held, l.pursuit
	began := h.events[0].Time
	if at, ok, _ := p.past.Find(h.tokens); ok && p.fast(len(h.tokens), began) {
		r.asked, r.askAfter = 0, time.Time{}
		return true, r.chase(ctx, l, 0, at)
	}
	if at, n := p.past.Longest(h.tokens); n >= deepReplay && p.fast(n, began) {
		// The replay lacks something there, or has something more.
		r.asked, r.askAfter = 0, time.Time{}
		r.drop(l, n)
		p.at, p.passed = at+n, p.passed+n
		r.astray(ctx, l, began)
		return true, r.refind(ctx, l, true)
	}
	return false, nil
}

// pursue is search for a line that has no other place. Where it finds none it
// tells in fit what the line may double, and has it look out for the past. It
// runs under r.mu.
func (r *runner) pursue(ctx context.Context, l *line, fit *splice.Fit) (found bool, err error) {
	if found, err := r.search(ctx, l); found || err != nil {
		return found, err
	}
	h, p := &l.held, l.pursuit
	at, ok, equal := p.past.Find(h.tokens)
	fit.Doubtful = max(fit.Doubtful, p.past.Doubtful(h.tokens))
	switch {
	case ok, equal && len(h.events) >= deepReplay:
		fit.Doubtful = max(fit.Doubtful, p.past.Len()-at) // so long it may go on
	case p.replays(len(h.tokens)):
		fit.Doubtful = len(h.tokens)
	default:
		r.loose = 0
	}
	if l.remains || r.leaving == l {
		l.pursuit = nil
	} else if p.mark == nil {
		p.lookOut()
	}
	return false, nil
}

// align looks for the place of a waiting line among what the splice remembers.
func (r *runner) align(l *line, open bool) splice.Fit {
	if r.splice.All(r.loose) {
		return splice.Fit{} // the end of it is not that of the stream
	}
	return r.splice.Align(&l.seam, l.held.tokens, open)
}

// fits has a waiting line join where it fits among what the splice remembers.
func (r *runner) fits(ctx context.Context, l *line, fit splice.Fit) error {
	if fit.Doubtful > 0 && r.splice.End() >= splice.Window {
		// It seems to begin before that: the journal may know of it.
		if found, err := r.search(ctx, l); found || err != nil {
			return err
		}
	}
	l.pursuit = l.pursuit.over()
	return r.join(ctx, l, fit)
}

// lookOut has the line look out for the beginning of the past.
func (p *pursuit) lookOut() {
	from, to, ok := p.past.Mark(maxLookout)
	if ok {
		p.mark, p.from, p.to = p.past.NewMark(from, to), from, to
	}
}

// replays tells whether so many events, of the past from before what is known,
// came too fast to be new.
func (p *pursuit) replays(events int) bool {
	return p.cut && events >= deepReplay && time.Duration(events)*p.usual > 4*time.Since(p.began)
}

// refind looks in the past once more for a line that has lost its place there.
func (r *runner) refind(ctx context.Context, l *line, now bool) error {
	p, held := l.pursuit, l.held.tokens
	n := len(held)
	if p == nil || p.past == nil || n == 0 || !now && (n&(n-1) != 0 || n <= p.tried) {
		return nil // it costs: seldom
	}
	if p.tried = n; !p.fast(n, l.held.events[0].Time) {
		return nil
	}
	if at, ok, _ := p.past.Find(held); ok {
		return r.chase(ctx, l, 0, at)
	}
	if late, ok := p.past.FindFrom(p.at, held); ok {
		return r.chase(ctx, l, late, p.at-late)
	}
	return nil
}

// drop takes the first events out of what the line holds: they were delivered.
func (r *runner) drop(l *line, events int) {
	h := &l.held
	n := h.after(events)
	r.doubled(l, h.events[:n]...)
	h.events, h.contents, h.tokens, h.size = h.events[n:], h.contents[n:], h.tokens[events:], 0
	for i := range h.events {
		h.size += len(h.events[i].ID) + len(h.events[i].Data)
	}
}

// chase has the line follow the past. What it holds begins at that place but
// for the first ones, so many, which came to nobody before.
func (r *runner) chase(ctx context.Context, l *line, late, at int) error {
	p := l.pursuit
	late = max(late, -at)
	if late > 0 && p.past.CameLate(l.held.tokens[:late]) {
		r.drop(l, late)
		late, at = 0, at+late
	}
	m := len(l.held.tokens)
	next := at + m
	if late == 0 && next < p.past.Len() {
		h := l.held
		l.held = held{}
		r.doubled(l, h.events...)
		return r.pass(ctx, l, next)
	}
	fit := splice.Fit{OK: true, Late: late, Onto: -1, Next: r.splice.End()}
	fit.Again = min(m, p.past.Len()-at) - late
	if at+late > 0 {
		fit.Onto = p.past.Position(at + late)
	}
	if p.cut || at+late > 0 {
		fit.Doubtful = late // what was before, or came late, nobody knows any more
	}
	if err := r.join(ctx, l, fit); err != nil || next >= p.past.Len() {
		l.pursuit = p.over()
		return err
	}
	return r.pass(ctx, l, next)
}

// pass has the line go on with the event of the past that has the index.
func (r *runner) pass(ctx context.Context, l *line, next int) error {
	p := l.pursuit
	if !l.waiting {
		r.await(ctx, l)
	}
	l.deadline.Stop()
	p.following, p.tentative, p.mark, p.at, p.paced = true, false, nil, next, time.Now()
	return r.arrive(ctx, l)
}

// arrive has the line join if the splice remembers the place that it has come to.
func (r *runner) arrive(ctx context.Context, l *line) error {
	p := l.pursuit
	position, over := p.past.Position(p.at), p.at == p.past.Len()
	switch {
	case l.remains || r.leaving == l:
		r.loosen(p)
		l.pursuit = nil // that is all it brings
	case position >= 0 && r.splice.Remembers(position) && (over || position-margin >= r.splice.End()-splice.Window):
		r.splice.Place(&l.seam, position, true)
	case over && r.splice.Own(&l.seam, position):
		r.splice.Place(&l.seam, r.splice.End(), true)
	case over: // others have delivered more meanwhile than the splice remembers
		r.astray(ctx, l, time.Now())
		return nil
	default:
		return nil
	}
	l.pursuit = p.over()
	return r.join(ctx, l, splice.Fit{})
}

// astray has a line that follows wait again until its place is found.
func (r *runner) astray(ctx context.Context, l *line, at time.Time) {
	p := l.pursuit
	p.following, p.tried, p.began, p.opened, p.burst = false, 0, at, r.splice.End(), 0
	l.side, l.since = false, r.splice.End()
	r.limit(ctx, l)
}

// over forgets the past.
func (p *pursuit) over() *pursuit {
	if p == nil || len(p.told) == 0 {
		return nil
	}
	return &pursuit{told: p.told}
}

// pursued takes an event of a line that has to do with the past. It reports
// false where the event is to be taken like any other. It runs under r.mu.
func (r *runner) pursued(ctx context.Context, l *line, ev *Event, content uint64) (taken bool, err error) {
	p := l.pursuit
	if p.past == nil || ev.ignored || !r.splice.Sequential() && !p.busy() {
		return false, nil
	}
	token := r.splice.Token(ev.ID, content)
	slow := false
	switch {
	case p.following && token != p.past.At(p.at):
		r.astray(ctx, l, ev.Time)
		return false, nil
	case p.following:
		p.at++
		if p.passed++; p.passed%pace == 0 {
			if !p.fast(pace, p.paced) {
				slow = true
			}
			p.paced = time.Now()
		}
		l.heard++
		n, numbered := r.number(ev)
		r.step(l, n, numbered)
		r.doubled(l, *ev)
		if err := r.recognised(ctx, l, n, numbered, -1); err != nil {
			return true, err
		}
		if slow {
			r.astray(ctx, l, time.Now()) // is it a replay?
			return true, nil
		}
		return true, r.arrive(ctx, l)
	case p.mark != nil:
		return r.lookedOut(ctx, l, ev, content, token)
	}
	return false, nil
}

// lookedOut takes an event of a line that looks out for the past.
func (r *runner) lookedOut(ctx context.Context, l *line, ev *Event, content, token uint64) (taken bool, err error) {
	p := l.pursuit
	seen, all := p.mark.Next(token)
	if p.tentative && seen != len(l.held.tokens)+1 {
		if err := r.untie(ctx, l); err != nil {
			return true, err
		}
	}
	switch n := r.splice.End() - p.opened; {
	case all:
		return r.sighted(ctx, l, ev, content, token)
	case p.tentative, seen == 1 && !l.waiting && p.spent < replayTimeout && !r.abreast(l):
		if !p.tentative {
			r.await(ctx, l)
			p.tentative, p.held = true, time.Now()
		}
		if l.held.add(ev, content, token); l.held.full() {
			return true, r.untie(ctx, l)
		}
		return true, nil
	case n > maxLookout || n%glance == 0 && time.Since(p.began) > lookoutTime:
		return false, r.unseen(ctx, l)
	case n%glance == 0 && p.replays(n):
		p.burst = n + glance
	}
	return false, nil
}

// untie delivers what turned out not to be the beginning of the past, or too
// slow to be waited for.
func (r *runner) untie(ctx context.Context, l *line) error {
	p := l.pursuit
	p.tentative = false
	p.spent += time.Since(p.held)
	if r.abreast(l) && r.leaving != l {
		r.limit(ctx, l) // it waits for the other line now
		return nil
	}
	h := r.admit(l)
	err := r.acceptAll(ctx, l, h.events, h.contents)
	l.missed = l.missed || err != nil
	return err
}

// interrupted ends what the line was about with the past, because its time is
// over or its connection has ended.
func (r *runner) interrupted(ctx context.Context, l *line) error {
	switch {
	case l.pursuit.tentative:
		return r.untie(ctx, l)
	case l.remains || r.leaving == l:
		r.loosen(l.pursuit)
		l.pursuit = nil
		return r.join(ctx, l, splice.Fit{})
	}
	return nil // what it brings next tells
}

// sighted has the line, which has come to the past, follow it.
func (r *runner) sighted(ctx context.Context, l *line, ev *Event, content, token uint64) (taken bool, err error) {
	p := l.pursuit
	again, doubtful := p.to-p.from, p.cut || p.from > p.past.Begin()
	if n := r.splice.End() - p.opened + len(l.held.events) + 1; !p.fast(n, p.began) {
		return false, r.tell(ctx, l, r.splice.End()+p.past.Len()-p.from) // so long it may go on
	}
	if r.splice.Own(&l.seam, p.opened) {
		r.splice.Insert(p.opened, p.past.Position(0))
	}
	switch {
	case !l.waiting:
		r.doubled(l, *ev)
		doubtful = true
	default:
		l.held.add(ev, content, token)
		h := &l.held
		doubtful = doubtful || len(h.tokens) < again
		again = min(again, len(h.tokens))
		late := len(h.tokens) - again
		if late == 0 {
			events := h.events
			l.held = held{}
			r.doubled(l, events...)
			break
		}
		fit := splice.Fit{OK: true, Late: late, Onto: -1, Again: again, Next: r.splice.End()}
		if doubtful {
			fit.Doubtful = late
		}
		if err := r.join(ctx, l, fit); err != nil {
			return true, err
		}
	}
	if doubtful {
		if err := r.tell(ctx, l, r.splice.End()); err != nil {
			return true, err
		}
	}
	return true, r.pass(ctx, l, p.to)
}

// unseen ends the look-out for the past.
func (r *runner) unseen(ctx context.Context, l *line) (err error) {
	p := l.pursuit
	r.loosen(p)
	if p != nil && p.burst > 0 {
		err = r.tell(ctx, l, min(p.opened+p.burst, r.splice.End()))
	}
	l.pursuit = l.pursuit.over()
	return err
}

// loosen notes, when a line ends that has not come from before the past to its
// end, that what it delivered lies before what was delivered earlier.
func (r *runner) loosen(p *pursuit) {
	if p != nil && (p.burst > 0 || p.following && len(p.told) > 0) && r.loose == 0 {
		r.loose = p.opened
	}
}

// tell has the ledger say that the events since the line joined, up to that
// position, may have been delivered before.
func (r *runner) tell(ctx context.Context, l *line, end int) (err error) {
	for i := range l.pursuit.told {
		t := &l.pursuit.told[i]
		if n := end - t.end; n > int(t.gap.Doubled) && err == nil {
			t.gap.Doubled = uint64(n)
			err = r.corrected(ctx, t.gap)
		}
	}
	return err
}

// told remembers a gap that the ledger tells of where the line joins without a
// place.
func (l *line) told(g Gap, end int) {
	if p := l.pursuit; p != nil && g.State == GapPossible {
		p.told = append(p.told, told{g, end})
	}
}

// mend has the ledger say that nothing was missing where the line joined: it has
// come from there to what was delivered last.
func (r *runner) mend(ctx context.Context, l *line) (err error) {
	p := l.pursuit
	if p == nil || p.past != nil {
		return nil
	}
	l.pursuit = nil
	for _, t := range p.told {
		if t.gap.State, t.gap.Proof = GapReplayed, ProofSeenAgain; err == nil {
			err = r.corrected(ctx, t.gap)
		}
	}
	return err
}

func (r *runner) corrected(ctx context.Context, g Gap) (err error) {
	apart(func() {
		r.stats.filled(g)
		err = r.note(ctx, NoteGap, g)
	})
	return err
}
