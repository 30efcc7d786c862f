package cmd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdline/scrape/framework"
	"github.com/holdline/scrape/internal/journal"
)

func (a *app) coverageCommand() *cobra.Command {
	var config, data, since string
	var asJSON bool
	c := &cobra.Command{
		Use:   "coverage [TARGET…]",
		Short: "Show what was held, what was missed, and how it was healed",
		Long: `coverage reads the ledger that the journal keeps of each stream, or of the
streams of the targets named ("target" or "target/stream"), while a worker runs
or none does. It shows how much of the time a connection was held, how the
outages were healed, and where the holes are.

REPLAYED outages lost nothing: the site sent again what was missed, and the
numbers or the events seen again prove it. OVERLAPPED ones are handovers: two
connections were open. FILLED ones were fetched from the site's history. After a
POSSIBLE gap nothing proves that no event is missing. In a KNOWN gap events are
missing for certain. COVERAGE is the share of the time outside of possible and
known gaps; nothing is said of a stream that never had an event.

Exit code 1 says that a known gap is open, in the time shown.`,
		RunE: func(c *cobra.Command, names []string) error {
			from, err := parseSince(since, time.Now())
			if err != nil {
				return fail(ExitUsage, err)
			}
			worker, err := a.loadWorker(config)
			if err != nil {
				return fail(ExitUsage, err)
			}
			ask := coverageOf{names, from}
			list, err := a.readCoverage(c.Context(), journalDir(worker, data), ask)
			if used := (*journal.InUseError)(nil); errors.As(err, &used) {
				list, err = runningCoverage(c.Context(), data, ask, err)
			}
			if err != nil {
				return err
			}
			if asJSON {
				err = writeCoverageJSON(a.stdout, list)
			} else {
				err = printCoverage(a.stdout, list, time.Local)
			}
			if err != nil {
				return fail(ExitError, err)
			}
			if slices.ContainsFunc(list, func(s streamCoverage) bool { return s.Sum.Gaps[framework.GapKnown].Count > 0 }) {
				return fail(ExitError, nil)
			}
			return nil
		},
	}
	configFlag(c, &config)
	f := c.Flags()
	f.StringVar(&data, "data", "data", "directory of the run")
	f.StringVar(&since, "since", "", `only what came after: a length of time before now ("24h"), a day or a moment ("2026-03-01", "2026-03-01T12:00:00Z")`)
	f.BoolVar(&asJSON, "json", false, "print everything as JSON, one array with an object for each stream")
	return c
}

func parseSince(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if at, ok := parseMoment(text, now); ok {
		return at, nil
	}
	return time.Time{}, fmt.Errorf("--since %s: want a length of time such as 24h, or a moment such as 2026-03-01 or 2026-03-01T12:00:00Z", text)
}

// streamCoverage is the coverage of one stream. Its JSON form is stable.
type streamCoverage struct {
	Stream string `json:"stream"`
	// HeldShare and Coverage are shares of the time, 0 to 1. Where no event has
	// ever come Empty is true and Coverage 0: nothing shows that anything was
	// covered.
	HeldShare float64 `json:"held"`
	Coverage  float64 `json:"coverage"`
	Empty     bool    `json:"empty,omitempty"`
	// Sum is the sum of what Ledger tells one by one.
	Sum    framework.Total  `json:"sum"`
	Ledger framework.Ledger `json:"ledger"`
}

// coverageOf says of which streams, and since when.
type coverageOf struct {
	Names []string
	From  time.Time
}

// runningCoverage has the worker that holds the journal read it.
func runningCoverage(ctx context.Context, data string, ask coverageOf, inUse error) (list []streamCoverage, err error) {
	body, err := json.Marshal(ask)
	if err != nil {
		return nil, fail(ExitError, err)
	}
	err = askWorker(ctx, data, http.MethodPost, "/coverage", bytes.NewReader(body), &list)
	if errors.Is(err, errNoWorker) {
		return nil, inUse // by something else
	}
	return list, err
}

func (a *app) readCoverage(ctx context.Context, dir string, ask coverageOf) (list []streamCoverage, err error) {
	if !journal.Exists(dir) { // opening it would make one
		return nil, fail(ExitSetup, fmt.Errorf("there is no journal in %s: name the data directory of a run with --data", dir))
	}
	log := slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: slog.LevelWarn, ReplaceAttr: shortText}))
	j, err := journal.Open(ctx, journal.Config{Dir: dir, KeepAll: true, Log: log})
	if err != nil {
		return nil, fail(ExitSetup, err)
	}
	defer func() { err = errors.Join(err, j.Close()) }()
	return ask.read(ctx, dir, j)
}

// read reads the ledgers of a journal that lies in dir.
func (ask coverageOf) read(ctx context.Context, dir string, j *journal.Journal) (list []streamCoverage, err error) {
	all := j.Streams()
	matched := map[string]bool{}
	for _, name := range all {
		if len(ask.Names) > 0 && !matches(name, ask.Names, matched) {
			continue
		}
		l, err := j.Stream(ctx, name)
		if err != nil {
			return nil, err
		}
		state, err := l.Resume(ctx)
		if err != nil {
			return nil, err
		}
		var last time.Time
		for _, ev := range state.Tail {
			last = ev.Time
		}
		ledger := framework.ReadLedger(state.Notes, last)
		empty := last.IsZero() && ledger.Sum().Events == 0
		if !ask.From.IsZero() {
			ledger = ledger.Since(ask.From)
		}
		sum := ledger.Sum()
		covered := sum.Coverage()
		if empty {
			covered = 0
		}
		list = append(list, streamCoverage{name, sum.HeldShare(), covered, empty, sum, ledger})
	}
	for _, name := range ask.Names {
		if !matched[name] {
			return nil, fail(ExitUsage, fmt.Errorf("the journal in %s holds no stream of %s; it holds %s", dir, name, orNone(strings.Join(all, ", "))))
		}
	}
	return list, nil
}

// matches tells whether the stream is one of those named, and notes by which
// names.
func matches(stream string, names []string, matched map[string]bool) (any bool) {
	for _, name := range names {
		if stream == name || strings.HasPrefix(stream, name+"/") {
			matched[name], any = true, true
		}
	}
	return any
}

func writeCoverageJSON(out io.Writer, list []streamCoverage) error {
	// Empty lists are lists, not null.
	list = append([]streamCoverage{}, list...)
	for i := range list {
		l := &list[i].Ledger
		l.Totals, l.Held, l.Gaps = append([]framework.Total{}, l.Totals...), append([]framework.Held{}, l.Held...), append([]framework.Gap{}, l.Gaps...)
	}
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	return e.Encode(list)
}

func printCoverage(out io.Writer, list []streamCoverage, zone *time.Location) error {
	if len(list) == 0 {
		_, err := fmt.Fprintln(out, "The journal holds no stream yet.")
		return err
	}
	var b strings.Builder
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "STREAM\tFROM\tTO\tHELD\tCOVERAGE\tREPLAYED\tOVERLAPPED\tFILLED\tPOSSIBLE\tKNOWN\tMISSING")
	for i := range list {
		s := &list[i]
		n := func(state framework.GapState) uint64 { return s.Sum.Gaps[state].Count }
		covered := percent(s.Coverage)
		if s.Empty {
			covered = "no event"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%d\t%d\t%d\t%d\t%d\t%d\n", s.Stream,
			moment(s.Ledger.From, zone), moment(s.Ledger.To, zone), percent(s.HeldShare), covered,
			n(framework.GapReplayed), n(framework.GapOverlapped), n(framework.GapFilled), n(framework.GapPossible), n(framework.GapKnown),
			s.Sum.Gaps[framework.GapKnown].Missing)
	}
	t.Flush()
	b.WriteByte('\n')
	width := 0
	for i := range list {
		width = max(width, len(list[i].Stream))
	}
	for i := range list {
		if s := &list[i]; s.Ledger.To.After(s.Ledger.From) {
			fmt.Fprintf(&b, "%-*s  %s\n", width, s.Stream, bar(s.Ledger))
		}
	}
	fmt.Fprintf(&b, "%-*s  %s\n", width, "", legend)
	for i := range list {
		printOpenGaps(&b, &list[i], zone)
		printLost(&b, &list[i], zone)
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// maxShown is how many open gaps of a stream the table lists; --json has all.
const maxShown = 20

func printOpenGaps(b *strings.Builder, s *streamCoverage, zone *time.Location) {
	var open []framework.Gap
	for _, state := range []framework.GapState{framework.GapKnown, framework.GapPossible} {
		for _, g := range s.Ledger.Gaps {
			if g.State == state {
				open = append(open, g)
			}
		}
	}
	var old uint64
	for _, t := range s.Ledger.Totals {
		old += t.Gaps[framework.GapKnown].Count + t.Gaps[framework.GapPossible].Count
	}
	if len(open) == 0 && old == 0 {
		return
	}
	fmt.Fprintf(b, "\n%s, open gaps:\n", s.Stream)
	for i := range open[:min(len(open), maxShown)] {
		fmt.Fprintf(b, "  %-8s  %s\n", open[i].State, gapText(&open[i], zone))
	}
	if more := len(open) - maxShown; more > 0 {
		fmt.Fprintf(b, "  and %d more: see --json\n", more)
	}
	if old > 0 {
		fmt.Fprintf(b, "  older, only their number is kept: %d\n", old)
	}
}

// printLost names what of the journal has not reached a sink of the stream.
func printLost(b *strings.Builder, s *streamCoverage, zone *time.Location) {
	lost := s.Ledger.Lost
	if len(lost) == 0 {
		return
	}
	fmt.Fprintf(b, "\n%s, not delivered:\n", s.Stream)
	for _, l := range lost[max(0, len(lost)-maxShown):] {
		fmt.Fprintf(b, "  to %s: chunks %d to %d of the journal, noticed %s: %s\n", l.Sink, l.FromChunk, l.ToChunk, moment(l.At, zone), l.Why)
	}
}

// gapText says what became of a gap.
func gapText(g *framework.Gap, zone *time.Location) string {
	when := "before " + moment(g.To, zone)
	if !g.From.IsZero() {
		when = fmt.Sprintf("%s to %s, %s", moment(g.From, zone), moment(g.To, zone), length(g.To.Sub(g.From)))
	}
	if g.Cause != "" {
		when = fmt.Sprintf("(%s) %s", g.Cause, when)
	}
	switch g.State {
	case framework.GapKnown:
		return fmt.Sprintf("%s missing: %s %s", events(g.Missing, "is", "are"), missingIDs(g), when)
	case framework.GapPossible:
		return "events may be missing " + when
	case framework.GapFilled:
		return events(g.Filled, "was", "were") + " fetched from the history " + when
	default:
		return "nothing is missing " + when
	}
}

// missingIDs names the numbers that a known gap lacks.
func missingIDs(g *framework.Gap) string {
	left := g.Left
	if len(left) == 0 {
		left = []framework.Range{{First: g.FirstID, Last: g.LastID}}
	}
	if len(left) == 1 && left[0].First == left[0].Last {
		return fmt.Sprintf("id %d", left[0].First)
	}
	var parts []string
	for _, r := range left {
		switch {
		case len(parts) == 5:
			return "ids " + strings.Join(append(parts, "…"), ", ")
		case r.First == r.Last:
			parts = append(parts, fmt.Sprint(r.First))
		default:
			parts = append(parts, fmt.Sprintf("%d to %d", r.First, r.Last))
		}
	}
	return "ids " + strings.Join(parts, ", ")
}

func events(n uint64, one, many string) string {
	if n == 1 {
		return "1 event " + one
	}
	return fmt.Sprintf("%d events %s", n, many)
}

func moment(t time.Time, zone *time.Location) string {
	if t.IsZero() {
		return "-"
	}
	return t.In(zone).Format(time.DateTime)
}

// length is a duration as people say it: to the second, or to the millisecond
// where it is short.
func length(d time.Duration) string {
	if d < 10*time.Second {
		return d.Round(time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}

// percent never rounds up to 100.
func percent(share float64) string {
	if share < 1 {
		share = min(share, 0.9999)
	}
	return fmt.Sprintf("%.2f %%", 100*share)
}

// The cells of a bar, the worst of what is in one decides.
const (
	cellNothing  = '·'
	cellHeld     = '█'
	cellSummed   = '▒'
	cellReplayed = '▓'
	cellFilled   = '+'
	cellPossible = '?'
	cellKnown    = '!'

	legend = "█ held  ▓ replayed  + filled  ? possible gap  ! known gap  ▒ only sums kept  · not held"
	cells  = 60
)

// bar draws the time from one end of the ledger to the other.
func bar(l framework.Ledger) string {
	row := []rune(strings.Repeat(string(cellNothing), cells))
	span := l.To.Sub(l.From).Seconds()
	place := func(at time.Time) float64 { return cells * min(max(at.Sub(l.From).Seconds()/span, 0), 1) }
	// paint draws over the cells that from and to are in, or only over those
	// that are covered by half and more.
	paint := func(from, to time.Time, cell rune, half bool) {
		first, last := int(place(from)), int(place(to))
		first = min(first, cells-1) // what happened at the very end
		if half {
			first, last = int(place(from)+0.5), int(place(to)+0.5)-1
		}
		for i := first; i <= min(last, cells-1); i++ {
			row[i] = cell
		}
	}
	for _, t := range l.Totals {
		paint(t.From, t.To, cellSummed, false)
	}
	for _, h := range l.Held {
		paint(h.From, h.To, cellHeld, true)
	}
	for _, layer := range []struct {
		state framework.GapState
		cell  rune
	}{
		{framework.GapReplayed, cellReplayed}, {framework.GapFilled, cellFilled}, {framework.GapPossible, cellPossible}, {framework.GapKnown, cellKnown},
	} {
		for _, g := range l.Gaps {
			if g.State != layer.state {
				continue
			}
			from := g.From
			if from.IsZero() {
				from = g.To
			}
			paint(from, g.To, layer.cell, false)
		}
	}
	return string(row)
}
