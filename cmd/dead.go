package cmd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/holdline/scrape/framework"
	"github.com/holdline/scrape/internal/deadletter"
	"github.com/holdline/scrape/internal/journal"
)

// deadFile is the store of dead letters in the data directory.
const deadFile = "dead-letters.db"

// deadSink is the id of the reader that finds the dead letters of a target. No
// sink can have it: names have no spaces.
func deadSink(target string) string { return target + "/dead letters" }

// deadFlags choose letters.
type deadFlags struct {
	config, data string
	target       string
	stream       string
	all          bool
}

func (o *deadFlags) filter(events []string) deadletter.Filter {
	return deadletter.Filter{Events: events, Target: o.target, Stream: o.stream}
}

func (a *app) deadCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "dead", Short: "Look after events that could not be decoded or delivered",
		Long: `A dead letter is an event that could not be made into records, or of which a
sink refused a record. It is kept as it came, with the reason and the sinks that
have not got it. After mending the target file or the table, retry appends it to
the journal again for just these sinks; once that has been read, the letter is
retired, and what is refused again is a new one.

A letter is named by the place of its event in the journal, as list shows it.
All of this works while a worker runs, and while none does.`,
	}
	var o deadFlags
	f := c.PersistentFlags()
	f.StringVar(&o.data, "data", "data", "the data directory of the run")
	f.StringVar(&o.config, "config", "", "the worker's file (default scrape.yaml where there is one)")
	choose := func(c *cobra.Command) *cobra.Command {
		c.Flags().StringVar(&o.target, "target", "", "only those of this target")
		c.Flags().StringVar(&o.stream, "stream", "", "only those of this stream (target/stream)")
		return c
	}
	list := choose(&cobra.Command{
		Use: "list", Short: "List dead letters", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return a.listDead(c.Context(), o) },
	})
	list.Flags().BoolVar(&o.all, "retired", false, "list those that were sent again, too")
	show := &cobra.Command{
		Use: "show EVENT…", Short: "Show dead letters with their data", Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, events []string) error { return a.showDead(c.Context(), o, events) },
	}
	export := choose(&cobra.Command{
		Use: "export [EVENT…]", Short: "Write dead letters as JSON lines, their data in base64",
		RunE: func(c *cobra.Command, events []string) error { return a.exportDead(c.Context(), o, events) },
	})
	export.Flags().BoolVar(&o.all, "retired", false, "write those that were sent again, too")
	some := func(do func(context.Context, deadFlags, []string) error) func(*cobra.Command, []string) error {
		return func(c *cobra.Command, events []string) error {
			if len(events) == 0 && o.target == "" && o.stream == "" && !o.all {
				return fail(ExitUsage, errors.New("say which: events as in scrape dead list, --target, --stream or --all"))
			}
			return do(c.Context(), o, events)
		}
	}
	retry := choose(&cobra.Command{Use: "retry [EVENT…]", Short: "Send dead letters again", RunE: some(a.retryDead)})
	retry.Flags().BoolVar(&o.all, "all", false, "all of them")
	drop := choose(&cobra.Command{Use: "drop [EVENT…]", Short: "Throw dead letters away", RunE: some(a.dropDead)})
	drop.Flags().BoolVar(&o.all, "all", false, "all of them")
	c.AddCommand(list, show, retry, drop, export)
	return c
}

// openDead opens the store of a data directory, which must be there.
func (a *app) openDead(data string) (*deadletter.Store, error) {
	path := filepath.Join(data, deadFile)
	if !deadletter.Exists(path) {
		return nil, fail(ExitSetup, fmt.Errorf("there are no dead letters in %s: name the data directory of a run with --data", data))
	}
	s, err := deadletter.Open(path, 0, nil)
	if err != nil {
		return nil, fail(ExitSetup, err)
	}
	return s, nil
}

func (a *app) listDead(ctx context.Context, o deadFlags) error {
	s, err := a.openDead(o.data)
	if err != nil {
		return err
	}
	defer s.Close()
	f := o.filter(nil)
	f.Retired = o.all
	t := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	n := 0
	for l, err := range s.Letters(ctx, f) {
		if err != nil {
			return fail(ExitError, err)
		}
		if n++; n == 1 {
			fmt.Fprintln(t, "EVENT\tSTREAM\tID\tTYPE\tSEEN\tMISSING IN\tREASON")
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", l.Event, l.Stream, printable(l.ID), printable(l.Type), l.Seen.Local().Format(time.DateTime), missingIn(&l), shorten(l.Reason))
	}
	if err := t.Flush(); err != nil {
		return fail(ExitError, err)
	}
	if n == 0 {
		fmt.Fprintln(a.stdout, "no dead letters")
	}
	return nil
}

// missingIn says which sinks have not got the letter.
func missingIn(l *deadletter.Letter) string {
	if !l.Retired.IsZero() {
		return "retired"
	}
	var sinks []string
	for _, r := range l.Missing {
		name := r.Sink
		if r.Record > 0 {
			name += fmt.Sprintf(" (record %d)", r.Record)
		}
		sinks = append(sinks, name)
	}
	return orNone(strings.Join(sinks, ", "))
}

// printable makes bytes of a feed harmless to a terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == utf8.RuneError {
			return '·'
		}
		return r
	}, s)
}

// shorten keeps a reason on one line of a table.
func shorten(s string) string {
	const most = 100
	if s = printable(s); utf8.RuneCountInString(s) > most {
		s = string([]rune(s)[:most-1]) + "…"
	}
	return s
}

func (a *app) showDead(ctx context.Context, o deadFlags, events []string) error {
	s, err := a.openDead(o.data)
	if err != nil {
		return err
	}
	defer s.Close()
	found := 0
	for l, err := range s.Letters(ctx, deadletter.Filter{Events: events, Retired: true}) {
		if err != nil {
			return fail(ExitError, err)
		}
		found++
		fmt.Fprintf(a.stdout, "event     %s\nstream    %s\nid        %s\ntype      %s\ncursor    %s\nreceived  %s\nseen      %s\nreason    %s\n",
			l.Event, l.Stream, printable(l.ID), printable(l.Type), printable(l.Cursor), l.Time.Local().Format(time.RFC3339Nano), l.Seen.Local().Format(time.RFC3339), printable(l.Reason))
		if l.Again != "" {
			fmt.Fprintf(a.stdout, "again     %s\n", l.Again)
		}
		if !l.Retired.IsZero() {
			fmt.Fprintf(a.stdout, "retired   %s\n", l.Retired.Local().Format(time.RFC3339))
		}
		for _, r := range l.Missing {
			fmt.Fprintf(a.stdout, "missing   %s, record %d: %s\n", r.Sink, r.Record, printable(r.Reason))
		}
		if utf8.Valid(l.Data) {
			fmt.Fprintf(a.stdout, "data      %d bytes\n%s\n\n", len(l.Data), strings.Map(func(r rune) rune {
				if r < ' ' && r != '\n' && r != '\t' || r == 0x7f {
					return '·'
				}
				return r
			}, string(l.Data)))
		} else {
			fmt.Fprintf(a.stdout, "data      %d bytes, not text\n%q\n\n", len(l.Data), l.Data)
		}
	}
	if found < len(events) {
		return fail(ExitUsage, fmt.Errorf("%d of %d dead letters are not there: scrape dead list shows those that are", len(events)-found, len(events)))
	}
	return nil
}

func (a *app) exportDead(ctx context.Context, o deadFlags, events []string) error {
	s, err := a.openDead(o.data)
	if err != nil {
		return err
	}
	defer s.Close()
	f := o.filter(events)
	f.Retired = o.all
	enc := json.NewEncoder(a.stdout)
	for l, err := range s.Letters(ctx, f) {
		if err == nil {
			err = enc.Encode(l)
		}
		if err != nil {
			return fail(ExitError, err)
		}
	}
	return nil
}

func (a *app) dropDead(ctx context.Context, o deadFlags, events []string) error {
	s, err := a.openDead(o.data)
	if err != nil {
		return err
	}
	defer s.Close()
	f := o.filter(events)
	f.Retired = true
	n, err := s.Drop(ctx, f)
	if err != nil {
		return fail(ExitError, err)
	}
	fmt.Fprintf(a.stdout, "%d dead letters dropped\n", n)
	return nil
}

// retryDead has the worker send the letters again, or does it itself where none
// runs.
func (a *app) retryDead(ctx context.Context, o deadFlags, events []string) error {
	s, err := a.openDead(o.data)
	if err != nil {
		return err
	}
	defer s.Close()
	f := o.filter(events)
	done, err := deadletter.Sending{}, error(nil)
	body, err := json.Marshal(f)
	if err != nil {
		return fail(ExitError, err)
	}
	err = askWorker(ctx, o.data, "POST", "/dead/retry", bytes.NewReader(body), &done)
	running := err == nil
	if errors.Is(err, errNoWorker) {
		done, err = a.sendOffline(ctx, o, s, f)
	}
	if err != nil {
		return err
	}
	switch {
	case done == deadletter.Sending{}:
		fmt.Fprintln(a.stdout, "there are no such dead letters")
	case running:
		fmt.Fprintf(a.stdout, "%d sent again, on their way to their sinks\n", done.Sent)
	default:
		fmt.Fprintf(a.stdout, "%d sent again: the next run delivers them\n", done.Sent)
	}
	if done.UnderWay > 0 {
		fmt.Fprintf(a.stdout, "%d are on their way already\n", done.UnderWay)
	}
	if done.Unasked > 0 {
		fmt.Fprintf(a.stdout, "%d are missing in no sink: those that are behind will come to them\n", done.Unasked)
	}
	return nil
}

// sendOffline appends to the journal that no worker holds.
func (a *app) sendOffline(ctx context.Context, o deadFlags, s *deadletter.Store, f deadletter.Filter) (done deadletter.Sending, err error) {
	worker, err := a.loadWorker(o.config)
	if err != nil {
		return done, fail(ExitUsage, err)
	}
	dir := journalDir(worker, o.data)
	if !journal.Exists(dir) {
		return done, fail(ExitSetup, fmt.Errorf("there is no journal in %s: name the data directory of a run with --data", dir))
	}
	log := slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: slog.LevelWarn, ReplaceAttr: shortText}))
	j, err := journal.Open(ctx, journal.Config{Dir: dir, KeepAll: true, Log: log})
	if err != nil {
		return done, fail(ExitSetup, err)
	}
	defer func() { err = errors.Join(err, j.Close()) }()
	if err := settle(s, j); err != nil {
		return done, fail(ExitError, err)
	}
	if done, err = s.Send(ctx, f, &resender{journal: j, store: s}); err != nil {
		return done, fail(ExitError, err)
	}
	return done, nil
}

// settle tells the store where the journal ends.
func settle(s *deadletter.Store, j *journal.Journal) error {
	last := make([]uint64, j.Partitions())
	for p := range last {
		_, last[p] = j.Bounds(p)
	}
	return s.Settle(last)
}

// resender appends dead letters to the journal.
type resender struct {
	journal framework.Journal
	store   *deadletter.Store
	logs    map[string]framework.StreamLog
}

// Append implements [deadletter.Appender].
func (r *resender) Append(ctx context.Context, stream string, ev *framework.Event) error {
	log := r.logs[stream]
	if log == nil {
		var err error
		if log, err = r.journal.Stream(ctx, stream); err != nil {
			return err
		}
		if r.logs == nil {
			r.logs = map[string]framework.StreamLog{}
		}
		r.logs[stream] = log
	}
	return log.Append(ctx, ev)
}

// Sync implements [deadletter.Appender].
func (r *resender) Sync(ctx context.Context) error { return r.journal.Sync(ctx) }

// Passed implements [deadletter.Appender].
func (r *resender) Passed(ctx context.Context, stream string, chunk uint64) (bool, error) {
	target, _, _ := strings.Cut(stream, "/")
	pos, err := r.store.Position(deadSink(target), r.journal.Partition(stream))
	if err != nil || pos.Seq != chunk || pos.Journal != r.journal.ID() {
		return pos.Seq > chunk && pos.Journal == r.journal.ID(), err
	}
	before := pos
	before.Event = 0
	for c, err := range r.journal.Read(ctx, before, func(string) bool { return false }) {
		return err == nil && (c.Seq > chunk || c.Err != nil || pos.Event >= c.Count), err
	}
	return false, nil
}

// sendDead is the worker's side of retryDead.
func (w *wiring) sendDead(ctx context.Context, body io.Reader) (deadletter.Sending, error) {
	var f deadletter.Filter
	if err := json.NewDecoder(body).Decode(&f); err != nil {
		return deadletter.Sending{}, err
	}
	return w.dead.Send(ctx, f, &resender{journal: w.journal, store: w.dead})
}
