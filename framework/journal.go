package framework

import (
	"context"
	"fmt"
	"hash/maphash"
	"iter"
	"math/bits"
	"time"
)

// Journal is the durable ordered log that every event passes through. The
// engine is its only writer; internal/journal keeps it on NATS JetStream.
// All methods may be called concurrently.
type Journal interface {
	JournalReader
	// Stream opens the log of one stream ("target/stream"). A stream belongs
	// to one partition for ever.
	Stream(ctx context.Context, name string) (StreamLog, error)
	// Partition tells which partition the stream belongs to.
	Partition(stream string) int
	// Sync blocks until everything appended before the call is durable.
	Sync(ctx context.Context) error
}

// JournalReader is the reading half of a [Journal].
type JournalReader interface {
	// ID returns the journal's own id.
	ID() JournalID
	// Bounds returns the number of the oldest chunk still kept and of the
	// newest one committed in the partition; first > last means it is empty
	// below last+1.
	Bounds(partition int) (first, last uint64)
	// Read yields the committed chunks after the position in order, without
	// end, waiting for new ones, until ctx ends. Chunks in which want is true
	// for no stream are yielded without their events. A reader that keeps up
	// is fed from memory. A chunk is shared between readers and never changed.
	// A damaged or missing chunk is yielded as one with Err set, and reading
	// goes on after it.
	Read(ctx context.Context, after Position, want func(stream string) bool) iter.Seq2[*Chunk, error]
	// Release says that the sink needs nothing at or before the position any
	// more: retention may drop it. A sink holds the whole partition from the
	// first Release or Hold on.
	Release(sink string, p Position)
	// Forget says that the sink holds nothing any more, in any partition.
	Forget(sink string)
}

// MaxCursor is the longest cursor, in bytes: an event with a longer one leaves
// the cursor of its stream as it was.
const MaxCursor = 64 << 10

// StreamLog is the end of the journal that one stream writes to.
type StreamLog interface {
	// Resume returns the committed cursor and what is needed to splice a new
	// connection to the old ones. It is asked once, before the first Append.
	Resume(ctx context.Context) (Resume, error)
	// History returns the last events of the stream like Resume's Tail, at
	// most that many and as far back as the journal will look, without those
	// that were filled: a site's history may word them differently. The engine
	// asks when a connection brings what was delivered long ago. It is slow.
	History(ctx context.Context, most int) ([]TailEvent, error)
	// Append takes a copy of the event into the chunk being gathered, and of
	// its cursor. It blocks only while the chunk being gathered is full and
	// the one before is still being committed. It returns before the event is
	// durable; an error is final and concerns the whole partition, unless it has
	// a method TooLong() bool that returns true: then only this event was
	// refused. A cursor has at most MaxCursor bytes.
	Append(ctx context.Context, ev *Event) error
	// Move moves the cursor without an event, with the next chunk.
	Move(ctx context.Context, c Cursor) error
	// Note puts an entry of the stream's ledger into the next chunk.
	Note(ctx context.Context, n Note) error
	// Committed returns how many of the events appended to this log since it
	// was opened are durable.
	Committed() uint64
}

// Resume is what the journal knows about a stream when it is opened.
type Resume struct {
	// Cursor is the cursor after the last committed chunk that moved it.
	Cursor Cursor
	// Known tells whether the journal has held the stream before.
	Known bool
	// Tail are the last events of the stream, oldest first, as many as the
	// journal still holds up to a bound of its own (4,096).
	Tail []TailEvent
	// Notes is the stream's ledger, oldest first, shortened by [CompactNotes]
	// where it grew long.
	Notes []Note
}

// TailEvent is what the splice needs to know of an event it delivered before.
type TailEvent struct {
	ID     string
	Hash   uint64 // of type and data: see [HashEvent]
	Time   time.Time
	Cursor Cursor
	// Sequence, Sequenced, Filled and Late are those of the [Event].
	Sequence  uint64
	Sequenced bool
	Filled    bool
	Late      bool
}

// HashEvent tells events of different type or data apart. Its values hold for
// this process only and are never stored.
func HashEvent(typ string, data []byte) uint64 {
	return hashType(typ) ^ hashData(data)
}

func hashType(typ string) uint64  { return bits.RotateLeft64(maphash.String(hashSeed, typ), 1) }
func hashData(data []byte) uint64 { return maphash.Bytes(hashSeed, data) }

var hashSeed = maphash.MakeSeed()

// Note is one entry of a stream's ledger.
type Note struct {
	// Kind is one of the framework's: [NoteHeld] and so on.
	Kind byte
	// Body is its content, in the framework's own encoding.
	Body []byte
}

// Chunk is what the streams of a partition received since the commit before.
type Chunk struct {
	Journal   JournalID
	Partition int
	// Seq is the chunk's number. Numbers rise, not always by one: the parts of
	// a chunk too large for one message take the numbers before its own.
	Seq uint64
	// Committed is when the writer sent it, by the writer's clock.
	Committed time.Time
	// Streams are the names that StoredEvent.Stream indexes.
	Streams []string
	// Events are all events of the chunk, in order; nil when the reader
	// wanted none of its streams.
	Events []StoredEvent
	// Count is the number of events in the chunk, also when they were not
	// decoded.
	Count int
	// NoneAgain says that no event of the chunk came again: none has Again. A
	// journal that cannot tell leaves it false.
	NoneAgain bool
	// Err says that the chunk is damaged or missing (*DamageError): its
	// events are lost to this reader. Seq is then that of the last one.
	Err error
}

// DamageError says that chunks of a partition cannot be read: what they held
// is a gap for whoever had not read it yet.
type DamageError struct {
	Journal   JournalID
	Partition int
	// From and To are the first and the last chunk concerned.
	From, To uint64
	// Err is what is wrong with them.
	Err error
}

func (e *DamageError) Error() string {
	return fmt.Sprintf("journal %s, partition %d: chunks %d to %d cannot be read: %v", e.Journal, e.Partition, e.From, e.To, e.Err)
}

// Unwrap returns what is wrong.
func (e *DamageError) Unwrap() error { return e.Err }

// Again says that an event was appended a second time, after it had become a
// dead letter: for one sink, which had not got it.
type Again struct {
	// Event is where the event was the first time, as [Position.String] writes
	// it.
	Event string
	// Sink is the id of the sink; all others pass over the event.
	Sink string
	// Record is the one of the event's records that the sink had not got; 0
	// means that it had none of them.
	Record int
}

// StoredEvent is an event as the journal keeps it. Its slices are shared by
// all readers.
type StoredEvent struct {
	Stream int // index into Chunk.Streams
	ID     string
	Type   string
	Cursor Cursor
	Time   time.Time
	Data   []byte
	// Sequence, Sequenced, Filled and Late are those of the [Event].
	Sequence  uint64
	Sequenced bool
	Filled    bool
	Late      bool
	// Again is nil but for a dead letter that was appended again.
	Again *Again
}

// event is the event as it was before it was stored.
func (ev *StoredEvent) event() *Event {
	return &Event{ID: []byte(ev.ID), Type: ev.Type, Data: ev.Data, Time: ev.Time, Cursor: ev.Cursor, Sequence: ev.Sequence, Sequenced: ev.Sequenced, Filled: ev.Filled, Late: ev.Late, Again: ev.Again}
}
