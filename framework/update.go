package framework

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// Rotate has every connection of the streams that match (by "target/stream")
// replaced by one through another exit, as when its lease were at its end: the
// successor delivers before the old connection is closed, where the stream's
// Handover and the site allow that, and connections are opened no faster than
// Limits say. Streams that share Identities move to the same exit. Where there
// is no other exit the same one is taken, with a fresh connection. It returns
// at once, with the number of streams that have a connection to replace. It may
// be called from any goroutine.
func (w *Worker) Rotate(match func(stream string) bool) (streams int) {
	for _, r := range w.held() {
		if match(r.Name) && r.rotate() {
			streams++
		}
	}
	return streams
}

// held are the runners of the streams, none before they have begun and after they have ended.
func (w *Worker) held() []*runner {
	select {
	case <-w.prepared:
	default:
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.alive == 0 {
		return nil
	}
	return slices.Clone(w.runners)
}

// WithDecoder returns a stream that is read as s is, and whose records d makes:
// [Worker.Update] then leaves its connections alone.
func (s *Stream) WithDecoder(d Decoder) *Stream {
	c := *s
	c.Decoder, c.like = d, s.read()
	return &c
}

// read is the stream that says how this one is read.
func (s *Stream) read() *Stream {
	if s.like != nil {
		return s.like
	}
	return s
}

// Updated is what [Worker.Update] has done, by the names of the streams.
type Updated struct {
	Added, Removed []string
	// Changed streams are read otherwise, each from its next connection on,
	// which is about to be opened.
	Changed []string
	// Decoded streams are read as before and have another decoder.
	Decoded []string
}

// ErrNotHeld says that the worker has not begun to hold streams, or holds none
// any more.
var ErrNotHeld = errors.New("the worker holds no streams now")

// Update has the worker hold these streams from now on, in place of those that
// it holds. One that is the same *Stream as before is left alone. One that has
// the name of another goes on where that one is, by a planned change of each of
// its connections; what it was held with (Identities) is closed once no stream
// refers to it. Others begin, and those that are missing end: what they brought
// is delivered. A Decoder is for what each sink takes from now on. Sequence,
// ReplayCheck, Backfill and From stay as they were when the stream was begun.
//
// An error says that nothing was changed, unless it is the journal's: so where
// the columns of a sink would become others. It may be called from any
// goroutine while Run is running.
func (w *Worker) Update(ctx context.Context, streams []*Stream) (done Updated, err error) {
	w.updating.Lock()
	defer w.updating.Unlock()
	if err := checkStreams(streams); err != nil {
		return done, err
	}
	u, err := w.beginUpdate()
	if err != nil {
		return done, err
	}
	if err := u.prepare(ctx, streams); err != nil {
		return done, err
	}
	return u.apply(ctx, streams)
}

// Revive has those streams begin again that match and were given up, since
// somebody has brought what they lacked, and tells how many. Errors are those of
// Update, and so is who may call it.
func (w *Worker) Revive(ctx context.Context, match func(stream string) bool) (streams int, err error) {
	w.updating.Lock()
	defer w.updating.Unlock()
	u, err := w.beginUpdate()
	if err != nil {
		return 0, err
	}
	for name := range u.before {
		if match(name) && u.held[name].givenUp() {
			delete(u.before, name)
			streams++
		}
	}
	if streams == 0 {
		return 0, nil
	}
	if err := u.prepare(ctx, w.config.Streams); err != nil {
		return 0, err
	}
	_, err = u.apply(ctx, w.config.Streams)
	return streams, err
}

// givenUp tells whether the stream has ended with an error.
func (r *runner) givenUp() bool {
	select {
	case <-r.done:
		return r.err != nil
	default:
		return false
	}
}

// update is one Update on its way.
type update struct {
	*Worker
	held   map[string]*runner // also those of streams that were held once
	before map[string]*Stream // that are held
	fresh  map[string]*runner // that are to begin
	recipe recipe
	places []layout // of the deliverers
}

// beginUpdate is called with w.updating held.
func (w *Worker) beginUpdate() (*update, error) {
	held := w.held()
	if len(held) == 0 {
		return nil, ErrNotHeld
	}
	u := &update{Worker: w, held: map[string]*runner{}, fresh: map[string]*runner{}, before: map[string]*Stream{}, recipe: w.recipe.clone()}
	for _, r := range held {
		u.held[r.Name] = r
	}
	for _, s := range w.config.Streams {
		u.before[s.Name] = s
	}
	return u, nil
}

// prepare does what can fail.
func (u *update) prepare(ctx context.Context, streams []*Stream) (err error) {
	partitions := map[int]bool{}
	for name := range u.held {
		partitions[u.config.Journal.Partition(name)] = true
	}
	for _, s := range streams {
		if err := define(s).check(); err != nil {
			return err
		}
		if u.before[s.Name] == nil && !partitions[u.config.Journal.Partition(s.Name)] {
			return fmt.Errorf("stream %s: it belongs to a partition of the journal that this worker does not deliver", s.Name)
		}
		u.recipe.add(s)
	}
	for i, d := range u.deliverers {
		l, err := u.recipe.layout(&d.SinkConfig)
		if err == nil && !slices.Equal(l.columns, u.columns[i]) {
			err = fmt.Errorf("sink %s: its columns would become others", d.ID)
		}
		if err != nil {
			return err
		}
		u.places = append(u.places, l)
	}
	for _, s := range streams {
		if u.before[s.Name] != nil {
			continue
		}
		if u.fresh[s.Name], err = u.takeAnew(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

// takeAnew takes a stream up that may have been held before.
func (u *update) takeAnew(ctx context.Context, s *Stream) (*runner, error) {
	if r := u.held[s.Name]; r != nil {
		select {
		case <-r.done:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	return u.take(ctx, s)
}

func (u *update) apply(ctx context.Context, streams []*Stream) (done Updated, err error) {
	u.mu.Lock()
	if u.alive == 0 {
		u.mu.Unlock()
		return done, ErrNotHeld
	}
	u.alive++ // the worker goes on until this is done
	u.mu.Unlock()
	defer u.left()

	old := map[*Identities]bool{}
	for name := range u.before {
		old[u.held[name].now().Identities] = true
	}
	u.deliver()
	for _, s := range streams {
		switch before := u.before[s.Name]; {
		case before == nil:
			u.start(u.fresh[s.Name])
			done.Added = append(done.Added, s.Name)
		case before == s:
		case before.read() == s.read():
			done.Decoded = append(done.Decoded, s.Name)
		default:
			if !u.held[s.Name].change(s) { // it has ended, maybe for want of this
				if u.fresh[s.Name], err = u.takeAnew(ctx, s); err != nil {
					return done, err
				}
				u.deliver()
				u.start(u.fresh[s.Name])
			}
			done.Changed = append(done.Changed, s.Name)
		}
		delete(u.before, s.Name)
	}
	u.config.Streams = slices.Clone(streams)
	for name := range u.before {
		u.held[name].stop()
		done.Removed = append(done.Removed, name)
	}
	slices.Sort(done.Removed)
	for _, s := range streams {
		delete(old, u.held[s.Name].now().Identities)
	}
	for ids := range old {
		ids.Close()
	}
	return done, nil
}

// deliver has the sinks make records as the streams say now.
func (u *update) deliver() {
	u.recipe = u.recipe.clone()
	for _, r := range u.fresh {
		u.recipe.stats[r.Name] = &r.stats
	}
	u.Worker.recipe = u.recipe
	for i, d := range u.deliverers {
		d.fresh.Store(&delivery{u.recipe, u.places[i]})
	}
}

// start begins to hold a stream, in the place of the runner that it may have
// had.
func (u *update) start(r *runner) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if i := slices.Index(u.runners, u.held[r.Name]); i >= 0 {
		u.runners[i] = r
	} else {
		u.runners = append(u.runners, r)
	}
	u.held[r.Name] = r
	u.brakes = maps.Clone(u.brakes)
	u.brakes[r.Name] = r.brake
	u.begin(r)
}
