package framework

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// sparse tells whether the sink wants less than half of what is in the chunk.
// Records of such a chunk are copied: each would hold all of it in memory, and
// a batch has records of many chunks.
func (d *deliverer) sparse(c *Chunk) bool {
	all, wanted := 0, 0
	for i := range c.Events {
		n := len(c.Events[i].Data)
		if all += n; d.Wants(c.Streams[c.Events[i].Stream]) {
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
func (d *deliverer) decode(name string, ev *StoredEvent, at Position) error {
	if ev.Again != nil && !d.Refused && !slices.Contains(ev.Again.Sinks, d.ID) {
		return nil // it has got it the first time
	}
	before := len(d.batch.Records)
	err := d.records(name, ev, at)
	if d.Refused {
		d.undo(before)
		if err != nil || ev.Again != nil {
			rec := Record{Key: Key{Position: at}, Stream: name, ID: ev.ID, Cursor: ev.Cursor, Type: ev.Type, Time: ev.Time, Data: ev.Data, Filled: ev.Filled, Again: ev.Again}
			if err != nil {
				rec.Reason = err.Error()
			}
			d.add(rec, ev)
		}
	} else if err != nil {
		d.undo(before)
		return d.bury(name, ev, Key{Position: at}, err)
	}
	for i := range d.batch.Records[before:] {
		d.size += len(d.batch.Records[before+i].Data)
	}
	made := uint64(len(d.batch.Records) - before)
	d.counts[name] += made
	d.counter(d.made, name).Add(made)
	return nil
}

func (d *deliverer) add(rec Record, ev *StoredEvent) {
	d.batch.Records, d.events = append(d.batch.Records, rec), append(d.events, ev)
}

// undo takes back the records of the batch from n on.
func (d *deliverer) undo(n int) {
	clear(d.batch.Records[n:])
	d.batch.Records, d.events = d.batch.Records[:n], d.events[:n]
}

// records appends the event's records to the batch, as far as they go before
// an error.
func (d *deliverer) records(name string, ev *StoredEvent, at Position) error {
	made := 0
	var failed []error
	emit := func(rec Record) {
		made++
		rec.Key = Key{Position: at, Record: made}
		rec.Stream, rec.ID, rec.Cursor, rec.Filled, rec.Again = name, ev.ID, ev.Cursor, ev.Filled, ev.Again
		if rec.Type == "" {
			rec.Type = ev.Type
		}
		if rec.Time.IsZero() {
			rec.Time = ev.Time
		}
		if d.Where != nil {
			if ok, err := d.Where(&rec); err != nil {
				failed = append(failed, err)
				return
			} else if !ok {
				return
			}
		}
		d.layout.place(&rec)
		d.add(rec, ev)
	}
	dec := d.decoders[name]
	if dec == nil {
		emit(Record{Data: ev.Data})
	} else if err := dec.Decode(name, ev.event(), emit); err != nil {
		return err
	}
	return errors.Join(failed...)
}

// bury makes an event a dead letter.
func (d *deliverer) bury(name string, ev *StoredEvent, key Key, reason error) error {
	if _, ok := d.buried[key]; ok {
		return nil
	}
	if d.dead != nil {
		if err := d.dead(DeadLetter{Key: key, Stream: name, Sink: d.ID, Event: *ev, Reason: reason.Error()}); err != nil {
			return fmt.Errorf("keep a dead letter: %w", err)
		}
	}
	if d.buried == nil {
		d.buried = map[Key]struct{}{}
	}
	d.buried[key] = struct{}{}
	if s := d.streams[name]; s != nil {
		s.dead.Add(1)
	}
	d.mu.Lock()
	d.stats.DeadLetters++
	first := d.stats.DeadLetters == 1
	d.mu.Unlock()
	if first {
		d.log.Warn("an event has become a dead letter", "sink", d.ID, "stream", name, "key", key.String(), "reason", reason)
	}
	return nil
}

// drop takes the record that the sink refuses for good out of the batch.
func (d *deliverer) drop(bad *RecordError) bool {
	for i := range d.batch.Records {
		if rec := &d.batch.Records[i]; rec.Key == bad.Key {
			if err := d.bury(rec.Stream, d.events[i], rec.Key, bad.Err); err != nil {
				d.log.Error("a dead letter could not be kept", "sink", d.ID, "error", err)
				return false
			}
			d.counts[rec.Stream]--
			d.batch.Records, d.events = slices.Delete(d.batch.Records, i, i+1), slices.Delete(d.events, i, i+1)
			return true
		}
	}
	return false
}
