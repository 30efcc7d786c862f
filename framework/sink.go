package framework

import (
	"context"
	"fmt"
	"math"
)

// Sink is where records are delivered, in batches.
//
// A sink serves one partition of one journal under one id and is called by one
// goroutine at a time: Open, then Write any number of times, then Close. Exactly
// once in effect rests on one rule: the position is kept in the destination and
// moves in the same transaction as the rows.
type Sink interface {
	// Open connects, makes what is missing and is allowed to be made, and
	// returns the position kept in the destination. One that has never seen
	// this sink takes info.First for it, and keeps that. A destination that knows another journal returns a *PositionError (unless
	// info.Adopt). It is called again after a Write failed and the engine has
	// waited.
	Open(ctx context.Context, info SinkInfo) (Position, error)
	// Write delivers the records of the batch and moves the position from
	// b.From to b.To, all or nothing. It first compares the stored position
	// with b.From, in the same transaction, and answers *PositionError when
	// they differ: another writer is at work, or an answer was lost. The
	// engine then opens the sink again and goes on from where it really is.
	// *RecordError says that one record can never be stored and which,
	// *StoredError that one is there already though by the position it is not;
	// that and any other error is retried with backoff, and the former ends a
	// Replay.
	Write(ctx context.Context, b *Batch) error
	// Close releases what Open took. It may be called without Open.
	Close() error
}

// SinkInfo says for whom a sink is opened.
type SinkInfo struct {
	// ID is the sink's stable id, "target/name".
	ID string
	// Journal and Partition are those that the records will come from.
	Journal   JournalID
	Partition int
	// Columns are those of the records, beside what each record has; empty
	// means that the records have their Data only.
	Columns []Column
	// Begin, when not 0, is the chunk after which a sink begins that the
	// destination has never seen.
	Begin uint64
	// Adopt lets the sink take over a destination that knows another journal:
	// its rows stay, and its position is set to the beginning of this one.
	Adopt bool
	// Restart, when not 0, has the sink begin anew: it removes the records it
	// has of this journal and partition from this chunk on (the oldest one
	// that the journal keeps), which are then delivered again; what is older
	// stays. Its position is set to the beginning.
	Restart uint64
}

// First is the position of a sink that the destination has never seen.
func (i *SinkInfo) First() Position {
	p := Position{Journal: i.Journal, Partition: i.Partition}
	if i.Begin > 0 {
		p.Seq, p.Event = i.Begin, math.MaxInt32 // after all of the chunk
	}
	return p
}

// Batch is a run of records of one partition, in journal order.
type Batch struct {
	// From is the position before the first record, To that after the last.
	// A batch may move the position over events that made no record for this
	// sink, and then may be empty.
	From, To Position
	Records  []Record
}

// PositionError says that the destination and the journal do not belong
// together at this point.
type PositionError struct {
	Sink string
	// Want is what the engine expected, Have what the destination holds.
	Want, Have Position
	// Reason names the disagreement in words.
	Reason string
}

func (e *PositionError) Error() string {
	return fmt.Sprintf("sink %s: %s (journal: %v, destination: %v)", e.Sink, e.Reason, e.Want, e.Have)
}

// Foreign tells whether the destination belongs to another journal.
func (e *PositionError) Foreign() bool { return e.Want.Journal != e.Have.Journal }

// StoredError says that a destination has a record already which by the
// position kept there it has not got. It is never passed over: what is there is
// not known to be this record.
type StoredError struct {
	Sink string
	Key  Key
	// Place is where the record is, and Position where the position is kept, as
	// a person would say.
	Place, Position string
}

func (e *StoredError) Error() string {
	return fmt.Sprintf("record %v is in %s already, though the position kept in %s is before it: the position was changed by hand (put it back, or remove the rows), or another sink writes the same records to this table (name another table); --restart-sink %s removes them and delivers them again", e.Key, e.Place, e.Position, e.Sink)
}

// RecordError says that one record can never be stored as it is.
type RecordError struct {
	Key Key
	Err error
}

func (e *RecordError) Error() string { return fmt.Sprintf("record %v: %v", e.Key, e.Err) }

// Unwrap returns the sink's own error.
func (e *RecordError) Unwrap() error { return e.Err }
