package framework

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// recipe says how records are made of the events of streams. Those that were
// held once stay in it: their events may be on their way.
type recipe struct {
	streams  []*Stream // in the order in which they came
	decoders map[string]Decoder
	stats    map[string]*streamStats
}

func newRecipe() recipe {
	return recipe{decoders: map[string]Decoder{}, stats: map[string]*streamStats{}}
}

func (c recipe) clone() recipe {
	return recipe{slices.Clone(c.streams), maps.Clone(c.decoders), maps.Clone(c.stats)}
}

// add takes in a stream, or what it has become.
func (c *recipe) add(s *Stream) {
	if i := slices.IndexFunc(c.streams, func(o *Stream) bool { return o.Name == s.Name }); i >= 0 {
		c.streams[i] = s
	} else {
		c.streams = append(c.streams, s)
	}
	delete(c.decoders, s.Name)
	maps.Copy(c.decoders, decodersOf([]*Stream{s}))
}

// layout is that of the records for a sink.
func (c *recipe) layout(s *SinkConfig) (layout, error) {
	if s.Refused {
		return layout{}, nil
	}
	l, err := layoutOf(s, c.streams, c.decoders)
	if err != nil {
		err = fmt.Errorf("sink %s: %w", s.ID, err)
	}
	return l, err
}

// delivery is what a deliverer makes records by.
type delivery struct {
	recipe recipe
	layout layout
}

// turn takes up what has become of the streams.
func (d *deliverer) turn(n *delivery) {
	d.decoders, d.streams, d.layout = n.recipe.decoders, n.recipe.stats, n.layout
}

// sparse tells whether the sink wants less than half of what is in the chunk.
// Records of such a chunk are copied: each would hold all of it in memory, and
// a batch has records of many chunks.
func (d *deliverer) sparse(c *Chunk) bool {
	all, wanted := 0, 0
	for i := range c.Events {
		n := len(c.Events[i].Data)
		if all += n; d.wanted[c.Events[i].Stream] {
			wanted += n
		}
	}
	return wanted < all/2
}

// clone returns a copy that shares no memory with the chunk.
func (ev *StoredEvent) clone() *StoredEvent {
	c := *ev
	c.ID, c.Type, c.Cursor = strings.Clone(ev.ID), strings.Clone(ev.Type), Cursor(strings.Clone(string(ev.Cursor)))
	c.Data = bytes.Clone(ev.Data)
	return &c
}

// decode appends the event's records to the batch, or makes it a dead letter.
func (d *deliverer) decode(name string, ev *StoredEvent, at Position) {
	switch {
	case d.Refused && ev.Again == nil && d.decoders[name] == nil:
		return // in a chunk that has others, too
	case ev.Again != nil && !d.Refused && ev.Again.Sink != d.ID:
		return // it has got it the first time
	}
	before := len(d.batch.Records)
	made, err := d.records(name, ev, at)
	if d.Refused {
		d.undo(before)
		if err != nil || ev.Again != nil {
			rec := Record{Key: Key{Position: at}, Stream: name, ID: ev.ID, Cursor: ev.Cursor, Type: ev.Type, Time: ev.Time, Data: ev.Data, Filled: ev.Filled, Again: ev.Again}
			if err != nil {
				rec.Reason = err.Error()
				d.deadLetter(name)
			}
			d.batch.Records, d.events = append(d.batch.Records, rec), append(d.events, ev)
		}
		made = len(d.batch.Records) - before
	} else if err != nil {
		d.undo(before)
		d.bury(name, ev, Key{Position: at}, err)
		return
	}
	for i := range d.batch.Records[before:] {
		d.size += len(d.batch.Records[before+i].Data)
	}
	t := d.making.tally
	t.batch += uint64(made)
	t.made.Add(uint64(made))
}

// undo takes back the records of the batch from n on.
func (d *deliverer) undo(n int) {
	clear(d.batch.Records[n:])
	d.batch.Records, d.events = d.batch.Records[:n], d.events[:n]
}

// making is the event whose records are being made.
type making struct {
	name   string
	tally  *tally // of the stream
	ev     *StoredEvent
	at     Position
	made   int // with those that the sink does not want
	failed []error
}

// records appends the event's records to the batch, as far as they go before
// an error. It returns how many there are, with those that the sink does not
// want: they count as delivered to it.
func (d *deliverer) records(name string, ev *StoredEvent, at Position) (made int, err error) {
	m := &d.making
	if m.name != name || m.tally == nil {
		m.name, m.tally = name, d.of(name)
	}
	m.ev, m.at, m.made, m.failed = ev, at, 0, nil
	if dec := d.decoders[name]; dec == nil {
		d.emit(Record{Data: ev.Data})
	} else {
		if d.emits == nil {
			d.emits = d.emit // once, and not for each event
		}
		err = dec.Decode(name, ev.event(), d.emits)
	}
	if err == nil && m.failed != nil {
		err = errors.Join(m.failed...)
	}
	return m.made, err
}

// emit takes a record of the event at hand.
func (d *deliverer) emit(rec Record) {
	m := &d.making
	m.made++
	ev := m.ev
	if ev.Again != nil && ev.Again.Record != 0 && ev.Again.Record != m.made {
		return // it has got this one
	}
	d.batch.Records, d.events = append(d.batch.Records, rec), append(d.events, ev)
	d.complete(&d.batch.Records[len(d.batch.Records)-1])
}

// complete gives the last record of the batch what it has of its event, and
// takes it back where the sink does not want it.
func (d *deliverer) complete(rec *Record) {
	m := &d.making
	ev := m.ev
	rec.Key = Key{Position: m.at, Record: m.made}
	rec.Stream, rec.ID, rec.Cursor, rec.Filled, rec.Again = m.name, ev.ID, ev.Cursor, ev.Filled, ev.Again
	if rec.Type == "" {
		rec.Type = ev.Type
	}
	if rec.Time.IsZero() {
		rec.Time = ev.Time
	}
	if d.Where != nil {
		ok, err := d.Where(rec)
		if err != nil {
			m.failed = append(m.failed, err)
		}
		if !ok || err != nil {
			d.undo(len(d.batch.Records) - 1)
			return
		}
	}
	d.layout.place(rec)
}

// bury makes an event a dead letter, which is kept before the batch is
// written.
func (d *deliverer) bury(name string, ev *StoredEvent, key Key, reason error) {
	if d.dead != nil {
		d.letters = append(d.letters, DeadLetter{Key: key, Stream: name, Sink: d.ID, Event: *ev, Reason: reason.Error()})
		d.size += len(ev.Data)
	}
	if _, ok := d.buried[key]; ok {
		return
	}
	if d.buried == nil {
		d.buried = map[Key]struct{}{}
	}
	d.buried[key] = struct{}{}
	if !d.judged || key.Record != 0 {
		d.deadLetter(name)
	}
	d.mu.Lock()
	d.stats.DeadLetters++
	first := d.stats.DeadLetters == 1
	d.mu.Unlock()
	if first {
		d.log.Warn("an event has become a dead letter", "sink", d.ID, "stream", name, "key", key.String(), "reason", reason)
	}
}

// deadLetter counts a dead letter of the stream.
func (d *deliverer) deadLetter(name string) {
	if s := d.streams[name]; s != nil {
		s.dead.Add(1)
	}
}

// keepLetters has the dead letters of the batch kept.
func (d *deliverer) keepLetters() error {
	if len(d.letters) == 0 {
		return nil
	}
	if err := d.dead(d.letters); err != nil {
		return fmt.Errorf("keep dead letters: %w", err)
	}
	clear(d.letters)
	d.letters = d.letters[:0]
	return nil
}

// drop takes the record that the sink refuses for good out of the batch.
func (d *deliverer) drop(bad *RecordError) bool {
	for i := range d.batch.Records {
		if rec := &d.batch.Records[i]; rec.Key == bad.Key {
			d.bury(rec.Stream, d.events[i], rec.Key, bad.Err)
			d.of(rec.Stream).batch--
			d.batch.Records, d.events = slices.Delete(d.batch.Records, i, i+1), slices.Delete(d.events, i, i+1)
			return true
		}
	}
	return false
}
