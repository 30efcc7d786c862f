package framework

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"slices"
	"time"
)

// Replay delivers a period of a journal to a sink that has an id of its own,
// exactly once in effect: interrupted, it goes on from the sink's position.
type Replay struct {
	Journal JournalReader
	// Streams have the decoders; nothing of them is opened.
	Streams []*Stream
	Sink    SinkConfig
	Parts   []ReplayPart
	// Only tells whether an event just before the place, received then, is in
	// the period; nil is all.
	Only func(at Position, received time.Time) bool
	// Patience is how long the sink may refuse everything before that is an
	// error; 0 means for ever.
	Patience time.Duration
	Log      *slog.Logger
}

// ReplayPart is what of one partition is replayed.
type ReplayPart struct {
	Partition int
	// After and Last bound the chunks: those after number After up to Last.
	After, Last uint64
}

// Run delivers one partition after the other and returns the account. It
// returns when all is delivered, when the destination does not belong to the
// journal (*PositionError) or has a record of the period already
// (*StoredError), when Patience is over, or with what ended ctx.
func (r *Replay) Run(ctx context.Context) (SinkStats, error) {
	sum := SinkStats{ID: r.Sink.ID}
	if r.Log == nil {
		r.Log = slog.New(slog.DiscardHandler)
	}
	r.Sink.defaults()
	decoders := decodersOf(r.Streams)
	lay, err := layoutOf(&r.Sink, r.Streams, decoders)
	if err != nil {
		return sum, err
	}
	over := make(chan struct{})
	close(over)
	for _, part := range r.Parts {
		d := &deliverer{
			SinkConfig: r.Sink, partition: part.Partition, only: r.Only, patience: r.Patience, begin: part.After, drain: over, replay: true,
			journal:  &boundedJournal{r.Journal, part.Last},
			decoders: decoders, layout: lay, log: r.Log,
		}
		d.stats.ID = r.Sink.ID
		err := d.run(ctx)
		s := d.snapshot()
		sum.Records += s.Records
		sum.Batches += s.Batches
		sum.Retries += s.Retries
		sum.DeadLetters += s.DeadLetters
		sum.Lost += s.Lost
		sum.State, sum.Error, sum.Position, sum.Behind = s.State, s.Error, s.Position, sum.Behind+s.Behind
		if err := errors.Join(err, context.Cause(ctx)); err != nil {
			return sum, err
		}
	}
	return sum, nil
}

// boundedJournal is a journal that ends with a chunk.
type boundedJournal struct {
	JournalReader
	last uint64
}

func (b *boundedJournal) Bounds(partition int) (first, last uint64) {
	first, last = b.JournalReader.Bounds(partition)
	return first, min(last, b.last)
}

func (b *boundedJournal) Read(ctx context.Context, after Position, want func(string) bool) iter.Seq2[*Chunk, error] {
	return func(yield func(*Chunk, error) bool) {
		if after.Seq > b.last {
			return
		}
		for c, err := range b.JournalReader.Read(ctx, after, want) {
			if err == nil && c.Err == nil && c.Seq > b.last || !yield(c, err) || err != nil || c.Seq >= b.last {
				return
			}
		}
	}
}

// decodersOf returns the decoders of the streams, by name.
func decodersOf(streams []*Stream) map[string]Decoder {
	decoders := map[string]Decoder{}
	for _, s := range streams {
		if d, ok := s.Target.(Decoder); ok {
			decoders[s.Name] = d
		}
		if s.Decoder != nil {
			decoders[s.Name] = s.Decoder
		}
	}
	return decoders
}

// layoutOf returns how the records of those streams that the sink wants share
// its columns.
func layoutOf(c *SinkConfig, streams []*Stream, decoders map[string]Decoder) (layout, error) {
	var wanted []string
	for _, s := range streams {
		if c.Wants(s.Name) && !slices.Contains(wanted, s.Name) {
			wanted = append(wanted, s.Name)
		}
	}
	return newLayout(wanted, decoders)
}
