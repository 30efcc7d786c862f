package framework

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// definition says how a stream is read. It is not changed: another one takes
// its place, and a connection keeps the one that it was opened with until a
// planned change replaces it.
type definition struct {
	Stream                 // with every default in place
	types  map[string]bool // nil for all
	own    bool            // Identities were made for the stream alone
	turn   uint64          // how often other exits were asked for
	serial uint64          // how often the stream was to be read otherwise
}

func define(s *Stream) *definition {
	d := &definition{Stream: s.withDefaults(), own: s.Identities == nil}
	if len(s.Types) > 0 {
		d.types = map[string]bool{}
		for _, t := range s.Types {
			d.types[t] = true
		}
	}
	return d
}

// check finds what cannot be read.
func (d *definition) check() error {
	if d.Page != nil && d.Identities.config.Browser == nil {
		return fmt.Errorf("stream %s: it is to be read inside a browser, and its Identities have none", d.Name)
	}
	return nil
}

// now is the definition that the next connection is opened with.
func (r *runner) now() *definition { return r.def.Load() }

// change has the stream read as s says from its next connection on, and the
// connections that it has replaced. False means that the stream has ended.
func (r *runner) change(s *Stream) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.begin != nil && !r.works() {
		return false
	}
	old := r.now()
	if s.Identities == nil && old.own {
		kept := *s
		kept.Identities = old.Identities
		s = &kept
	}
	def := define(s)
	def.own, def.turn = old.own && def.Identities == old.Identities || def.own, old.turn
	def.serial = old.serial + 1
	r.def.Store(def)
	if r.changed != nil {
		close(r.changed)
		r.changed = nil
	}
	if r.begin != nil {
		old.Limits.join(old.Host, -old.Lines)
		r.settleIn(def)
	}
	r.replace()
	return true
}

// rotate has the connections of the stream replaced by others through another
// exit, and tells whether there are any.
func (r *runner) rotate() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	def := *r.now()
	def.turn++
	r.def.Store(&def)
	return r.replace()
}

// replace begins a planned change of every connection, and tells whether there
// are any. It runs under r.mu.
func (r *runner) replace() (some bool) {
	for _, l := range r.connected {
		if l.change != nil { // else it is about to look by itself
			l.change(CausePlanned, false)
		}
		some = true
	}
	return some
}

// works tells whether any line is at work, and so the stream has not ended. It
// runs under r.mu.
func (r *runner) works() bool {
	return !r.ended && r.slots != [maxLines]int{}
}

// settleIn has as many lines as the definition says at work. It runs under
// r.mu.
func (r *runner) settleIn(def *definition) {
	def.Limits.join(def.Host, def.Lines)
	for slot := range def.Lines {
		if r.slots[slot] == 0 {
			r.begin(r.anotherLine(slot, def.Identities.slot(slot)))
		}
	}
}

// enough tells a line whether there are enough without it. Then it is over.
func (r *runner) enough(l *line) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return l.surplus || l.slot >= r.now().Lines && r.dismiss(l)
}

// held tells whether one of the lines that stay is delivering. It runs
// under r.mu.
func (r *runner) held(def *definition) bool {
	return slices.ContainsFunc(r.connected, func(o *line) bool { return o.slot < def.Lines && !o.waiting && o.seam.Begun() })
}

// dismiss takes a line out of the count of those at work. It runs under r.mu.
func (r *runner) dismiss(l *line) bool {
	l.surplus = true
	r.slots[l.slot]--
	return true
}

// over notes that a line is not at work any more.
func (r *runner) over(l *line) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !l.surplus {
		r.slots[l.slot]--
	}
}

// lookEvery is how often a line that waits for a login looks whether a person
// has brought one.
const lookEvery = 10 * time.Second

// rest waits before the next connection of a line, whose last one was opened
// with def. A stream that is to be read otherwise is tried at once, since that
// may be the cure, and so is one whose login somebody else has brought.
func (r *runner) rest(ctx context.Context, d time.Duration, def *definition, s *streak) error {
	if d <= 0 {
		return ctx.Err()
	}
	r.mu.Lock()
	if r.changed == nil {
		r.changed = make(chan struct{})
	}
	changed, same := r.changed, r.now().serial == def.serial
	r.mu.Unlock()
	if same {
		t := time.NewTimer(d)
		defer t.Stop()
		var look <-chan time.Time
		if s.hold != nil {
			every := time.NewTicker(lookEvery)
			defer every.Stop()
			look = every.C
		}
		for waiting := true; waiting; {
			select {
			case <-t.C:
				return nil
			case <-look:
				waiting = !s.relieved()
			case <-changed:
				waiting = false
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
	}
	s.backoff, s.failures, s.silences, s.cured = nil, 0, 0, false
	return ctx.Err()
}

// relieved tells whether somebody has brought the login that the line waits
// for.
func (s *streak) relieved() bool {
	apart(func() { s.brought = s.hold.Over() })
	return s.brought
}
