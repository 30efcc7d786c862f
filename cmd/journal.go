package cmd

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/holdline/scrape/framework"
	"github.com/holdline/scrape/internal/journal"
)

// journalReader is the reading half of a journal: that of a directory that
// nobody holds, or that of a running worker.
type journalReader interface {
	framework.JournalReader
	Partitions() int
	Partition(stream string) int
	Survey(ctx context.Context, deep bool) (*journal.Survey, error)
	Since(ctx context.Context, partition int, t time.Time) (framework.Position, error)
	Close() error
}

// journalFlags say which journal is meant.
type journalFlags struct{ config, data string }

func (o *journalFlags) add(c *cobra.Command) {
	configFlag(c, &o.config)
	c.Flags().StringVar(&o.data, "data", "data", "directory of the run")
}

func (a *app) journalCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "journal",
		Short: "Look into the journal, check it, export it, replay it",
		Long: `The commands read the journal in the data directory. While a worker runs with
it they ask that worker, at its control socket; what they read is kept for so
long. Nothing in the journal is changed.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(a.journalStatsCommand(), a.journalVerifyCommand(), a.journalExportCommand(), a.journalReplayCommand())
	return c
}

func (a *app) journalStatsCommand() *cobra.Command {
	var o journalFlags
	var asJSON bool
	c := &cobra.Command{
		Use:   "stats",
		Short: "Show what the journal holds, and for whom",
		Long: `stats reads the whole journal once and shows its id, how many chunks, events
and bytes it holds, from when to when, by stream, and while a worker runs the
sinks for which chunks are kept.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.withJournal(c.Context(), o, nil, func(j journalReader) error {
				s, err := j.Survey(c.Context(), false)
				if err != nil {
					return fail(ExitError, err)
				}
				if asJSON {
					enc := json.NewEncoder(a.stdout)
					enc.SetIndent("", "  ")
					return enc.Encode(s)
				}
				return printSurvey(a.stdout, s)
			})
		},
	}
	o.add(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print everything as JSON")
	return c
}

func (a *app) journalVerifyCommand() *cobra.Command {
	var o journalFlags
	c := &cobra.Command{
		Use:   "verify",
		Short: "Read everything and check numbers and checksums",
		Long: `verify reads every chunk, checks its number and its checksum, takes its events
apart, and names what cannot be read. Exit code 1 says that there is damage.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.withJournal(c.Context(), o, nil, func(j journalReader) error {
				s, err := j.Survey(c.Context(), true)
				if err != nil {
					return fail(ExitError, err)
				}
				return a.printVerdict(s)
			})
		},
	}
	o.add(c)
	return c
}

// printVerdict says whether the journal is whole.
func (a *app) printVerdict(s *journal.Survey) error {
	chunks, events := uint64(0), uint64(0)
	for _, p := range s.Partitions {
		chunks, events = chunks+p.Chunks, events+p.Events
		for _, d := range p.Damage {
			fmt.Fprintf(a.stdout, "partition %d: chunks %d to %d cannot be read: %s\n", p.Partition, d.From, d.To, d.Why)
		}
	}
	if s.Damaged() {
		return fail(ExitError, fmt.Errorf("journal %s is damaged: %d chunks with %d events can be read, those named above cannot; what they held is lost to sinks that had not read it yet, the others and the writing go on", s.Journal, chunks, events))
	}
	fmt.Fprintf(a.stdout, "journal %s is whole: %d chunks, %d events\n", s.Journal, chunks, events)
	return nil
}

// withJournal calls with the journal, of a worker where one runs. only are the
// targets or streams that will be read; none means all.
func (a *app) withJournal(ctx context.Context, o journalFlags, only []string, use func(journalReader) error) (err error) {
	worker, err := a.loadWorker(o.config)
	if err != nil {
		return fail(ExitUsage, err)
	}
	j, err := a.openJournal(ctx, journalDir(worker, o.data), o.data, only)
	if err != nil {
		return fail(ExitSetup, err)
	}
	defer func() { err = errors.Join(err, j.Close()) }()
	return use(j)
}

func (a *app) openJournal(ctx context.Context, dir, data string, only []string) (journalReader, error) {
	if !journal.Exists(dir) { // opening it would make one
		return nil, fmt.Errorf("there is no journal in %s: name the data directory of a run with --data", dir)
	}
	log := slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: slog.LevelError, ReplaceAttr: shortText}))
	j, err := journal.Open(ctx, journal.Config{Dir: dir, KeepAll: true, Log: log})
	if used := (*journal.InUseError)(nil); errors.As(err, &used) {
		remote, dialErr := dialJournal(ctx, data, only)
		if dialErr != nil {
			return nil, fmt.Errorf("%w; nor does it answer at its control socket (%w): stop it first", err, dialErr)
		}
		return remote, nil
	}
	if err != nil {
		return nil, err
	}
	return j, nil
}

func printSurvey(w io.Writer, s *journal.Survey) error {
	chunks, events := uint64(0), uint64(0)
	for _, p := range s.Partitions {
		chunks, events = chunks+p.Chunks, events+p.Events
	}
	out := bufio.NewWriter(w)
	fmt.Fprintf(out, "journal %s: %d chunks, %d events, %s on disk", s.Journal, chunks, events, megabytes(int64(s.Bytes)))
	if s.Free > 0 {
		fmt.Fprintf(out, ", %s free there", megabytes(int64(s.Free)))
	}
	fmt.Fprint(out, "\n\n")
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "PARTITION\tCHUNKS\tFROM\tTO\tEVENTS\tSIZE\tOLDEST\tNEWEST")
	for _, p := range s.Partitions {
		fmt.Fprintf(t, "%d\t%d\t%d\t%d\t%d\t%s\t%s\t%s\n", p.Partition, p.Chunks, p.First, p.Last, p.Events, megabytes(int64(p.Bytes)), moment(p.Oldest, time.Local), moment(p.Newest, time.Local))
	}
	fmt.Fprintln(t, "\nSTREAM\tPARTITION\tEVENTS\tCURSOR")
	holds := false
	for _, p := range s.Partitions {
		for _, st := range p.Streams {
			fmt.Fprintf(t, "%s\t%d\t%d\t%s\n", st.Stream, p.Partition, st.Events, cmp.Or(string(st.Cursor), "-"))
		}
		holds = holds || len(p.Holds) > 0
	}
	if holds {
		fmt.Fprintln(t, "\nHELD FOR\tPARTITION\tREAD UP TO\tCHUNKS BEHIND\tSIZE")
		for _, p := range s.Partitions {
			for _, h := range p.Holds {
				fmt.Fprintf(t, "%s\t%d\t%d\t%d\t%s\n", h.Sink, p.Partition, h.Seq, h.Behind, megabytes(int64(h.Bytes)))
			}
		}
	}
	t.Flush()
	for _, p := range s.Partitions {
		for _, d := range p.Damage {
			fmt.Fprintf(out, "\npartition %d: chunks %d to %d cannot be read: %s\n", p.Partition, d.From, d.To, d.Why)
		}
	}
	return out.Flush()
}

func (a *app) journalExportCommand() *cobra.Command {
	var o journalFlags
	var from, to string
	var names []string
	c := &cobra.Command{
		Use:   "export",
		Short: "Print the events as they were received, as JSON lines",
		Long: `export prints the events that the journal holds by now, in its order, one JSON
object a line: key (journal/partition/chunk/event), stream, id, type, cursor,
time (when it was received) and the data as text, or as base64 where it is not
UTF-8. A stretch that cannot be read is named, and the exit code is 1.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			span, err := parsePeriod(from, to, time.Now())
			if err != nil {
				return fail(ExitUsage, err)
			}
			return a.withJournal(c.Context(), o, names, func(j journalReader) error {
				return a.export(c.Context(), j, span, names)
			})
		},
	}
	o.add(c)
	periodFlags(c, &from, &to)
	c.Flags().StringArrayVar(&names, "stream", nil, `only this stream ("target/stream"), or those of a target ("target"); repeatable`)
	return c
}

func periodFlags(c *cobra.Command, from, to *string) {
	f := c.Flags()
	f.StringVar(from, "from", "", `begin with what was received then ("2026-03-01", "2026-03-01T12:00:00Z", or "2h" ago), or after a position ("journal/partition/chunk/event")`)
	f.StringVar(to, "to", "", "end before what was received then, or with the event at a position")
}

// exported is one line of an export.
type exported struct {
	Key      string           `json:"key"`
	Stream   string           `json:"stream"`
	ID       string           `json:"id,omitempty"`
	Type     string           `json:"type"`
	Cursor   framework.Cursor `json:"cursor,omitempty"`
	Time     time.Time        `json:"time"`
	Sequence *uint64          `json:"sequence,omitempty"`
	Filled   bool             `json:"filled,omitempty"`
	Text     *string          `json:"text,omitempty"`
	Base64   []byte           `json:"base64,omitempty"`
}

func (a *app) export(ctx context.Context, j journalReader, span period, names []string) error {
	out := bufio.NewWriterSize(a.stdout, 64<<10)
	enc := json.NewEncoder(out)
	enc.SetEscapeHTML(false)
	damaged := false
	for p := range j.Partitions() {
		for c, err := range span.chunks(ctx, j, p, named(names)) {
			if err != nil {
				return fail(ExitError, errors.Join(err, out.Flush()))
			}
			if c.Err != nil {
				damaged = true
				fmt.Fprintln(a.stderr, c.Err)
				continue
			}
			for i := range c.Events {
				ev := &c.Events[i]
				at := framework.Position{Journal: j.ID(), Partition: p, Seq: c.Seq, Event: i + 1}
				if !named(names)(c.Streams[ev.Stream]) || !span.holds(at, ev.Time) {
					continue
				}
				line := exported{Key: at.String(), Stream: c.Streams[ev.Stream], ID: ev.ID, Type: ev.Type, Cursor: ev.Cursor, Time: ev.Time.UTC(), Filled: ev.Filled}
				if ev.Sequenced {
					line.Sequence = &ev.Sequence
				}
				if utf8.Valid(ev.Data) {
					line.Text = new(string(ev.Data))
				} else {
					line.Base64 = ev.Data
				}
				if err := enc.Encode(line); err != nil {
					return fail(ExitError, err)
				}
			}
		}
	}
	if err := out.Flush(); err != nil {
		return fail(ExitError, err)
	}
	if damaged {
		return fail(ExitError, errors.New("a part of the journal cannot be read and is missing from the export"))
	}
	return nil
}

// named tells whether a stream is one of those named, by its own name or its
// target's; all are where no name is given.
func named(names []string) func(stream string) bool {
	return func(stream string) bool {
		for _, n := range names {
			if stream == n || strings.HasPrefix(stream, n+"/") {
				return true
			}
		}
		return len(names) == 0
	}
}
