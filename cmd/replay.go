package cmd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdline/scrape/framework"
	"github.com/holdline/scrape/targets"
)

// replayFlags are the flags of `scrape journal replay`.
type replayFlags struct {
	journalFlags
	sink, as, from, to string
	giveUp             time.Duration
}

func (a *app) journalReplayCommand() *cobra.Command {
	var o replayFlags
	c := &cobra.Command{
		Use:   "replay FILE --sink NAME --as NEWNAME",
		Short: "Deliver a period again, to a sink under a new id",
		Long: `replay delivers what the journal holds of a target, or of a period, to a sink
of the target file, under the id target/NEWNAME: it has a position of its own in
the destination, and the sink's own delivery is not touched. What is interrupted
goes on from that position when the same command is run again; without --to it
then also takes what has come since. Records are made by the target file as it
is now, and keep their keys, so a table with a unique key must not hold those
of the period: name a sink with a table of its own, in a copy of the target file
if need be.

Exit code 1 says that events could not be read, decoded or stored; the others
were delivered. Exit code 4 says that the destination has records of the period
already, or knows the new name from another journal.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error { return a.replay(c.Context(), args[0], o) },
	}
	o.add(c)
	periodFlags(c, &o.from, &o.to)
	f := c.Flags()
	f.StringVar(&o.sink, "sink", "", "the sink of the target file that says where to and how")
	f.StringVar(&o.as, "as", "", "the name of the new sink, which the destination keeps a position for")
	f.DurationVar(&o.giveUp, "give-up-after", time.Minute, "end when the sink has refused everything for so long; 0: never")
	for _, name := range []string{"sink", "as"} {
		_ = c.MarkFlagRequired(name) // fails only for flags that do not exist
	}
	return c
}

func (a *app) replay(ctx context.Context, path string, o replayFlags) error {
	span, err := parsePeriod(o.from, o.to, time.Now())
	if err != nil {
		return fail(ExitUsage, err)
	}
	files, worker, err := a.load([]string{path}, o.config)
	if err != nil {
		return fail(ExitUsage, err)
	}
	f := files[0]
	sink, err := newSink(f, o.sink, o.as)
	if err != nil {
		return fail(ExitUsage, err)
	}
	log := slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: slog.LevelWarn, ReplaceAttr: shortText}))
	j, err := a.openJournal(ctx, journalDir(worker, o.data), o.data, []string{f.Name})
	if err != nil {
		return fail(ExitSetup, err)
	}
	defer j.Close()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(a.drain, stop)() // an interrupt: it goes on another time

	w := &wiring{data: o.data, log: log, limits: map[string]*framework.Limits{}}
	r := framework.Replay{Journal: j, Sink: w.sink(f, sink), Only: span.holds, Patience: o.giveUp, Log: log}
	r.Sink.Latest = false
	partitions := map[int]bool{}
	for i := range f.Streams {
		st := w.stream(f, &f.Streams[i], nil)
		r.Streams = append(r.Streams, st)
		if p := j.Partition(st.Name); !partitions[p] {
			partitions[p] = true
			part, err := span.part(ctx, j, p)
			if err != nil {
				return fail(ExitUsage, err)
			}
			r.Parts = append(r.Parts, part)
		}
	}
	s, err := r.Run(ctx)
	if a.drain.Err() != nil && errors.Is(err, context.Canceled) {
		err = nil
		fmt.Fprintln(a.stderr, "interrupted: the same command goes on from here")
	}
	fmt.Fprintf(a.stdout, "%d records in %d batches to %s, position %s\n", s.Records, s.Batches, s.ID, cmp.Or(s.Position, "-"))
	if err != nil {
		return replayError(ctx, err, o)
	}
	if s.DeadLetters > 0 || s.Lost > 0 {
		return fail(ExitError, fmt.Errorf("not delivered: %d events that could not be decoded or stored, %d chunks that cannot be read: see the lines above", s.DeadLetters, s.Lost))
	}
	return nil
}

// replayError gives the error of a replay its exit code, and the remedies that
// a replay has.
func replayError(ctx context.Context, err error, o replayFlags) error {
	var stored *framework.StoredError
	var position *framework.PositionError
	switch {
	case context.Cause(ctx) != nil:
	case errors.As(err, &stored):
		return fail(ExitPosition, fmt.Errorf("--sink %s: record %v of the period is in %s already, and a key is in a table once: name a sink with another table or another file (in a copy of the target file, if need be), or remove these rows first", o.sink, stored.Key, stored.Place))
	case errors.As(err, &position) && position.Foreign():
		return fail(ExitPosition, fmt.Errorf("--as %s: the destination keeps a position for %s in another journal (journal: %v, destination: %v): choose another name", o.as, position.Sink, position.Want, position.Have))
	}
	return runError(ctx, err)
}

// newSink returns the named sink of the target under a name of its own.
func newSink(f *targets.File, name, as string) (*targets.Sink, error) {
	names := []string{}
	for i := range f.Sinks {
		names = append(names, f.Sinks[i].Name)
	}
	i := slices.Index(names, name)
	switch {
	case i < 0:
		return nil, fmt.Errorf("--sink %s: %s has no such sink; its sinks are %s", name, f.Path, orNone(strings.Join(names, ", ")))
	case slices.Contains(names, as):
		return nil, fmt.Errorf("--as %s: a sink of %s has this name and a position of its own: choose another name", as, f.Path)
	}
	if err := targets.CheckName(as); err != nil {
		return nil, fmt.Errorf("--as: %w", err)
	}
	sink := f.Sinks[i]
	sink.Name = as
	return &sink, nil
}

// part returns which chunks of a partition may hold something of the period.
func (p period) part(ctx context.Context, j journalReader, partition int) (framework.ReplayPart, error) {
	after, err := p.start(ctx, j, partition)
	if err != nil {
		return framework.ReplayPart{}, err
	}
	first, _ := j.Bounds(partition)
	if after.Seq > 0 && after.Seq+1 < first {
		return framework.ReplayPart{}, fmt.Errorf("--from %v: the journal holds no chunk before %d any more", after, first)
	}
	if p.begin.pos.Seq > 0 && after.Seq > 0 {
		after.Seq-- // the rest of the position's own chunk
	}
	return framework.ReplayPart{Partition: partition, After: after.Seq, Last: p.last(j, partition)}, nil
}
