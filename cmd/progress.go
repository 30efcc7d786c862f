package cmd

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"golang.org/x/term"

	"github.com/holdline/scrape/framework"
)

// progress shows a run while it lasts: a live table on a terminal, plain lines
// in a pipe.
type progress struct {
	out  io.Writer
	live bool
	none bool
	file *os.File // the terminal, when live
	log  *slog.Logger
	tail *logTail // the last log lines, when live
}

const (
	liveEvery  = 500 * time.Millisecond
	plainEvery = 10 * time.Second
	tailLines  = 8
)

func (a *app) newProgress(o runFlags) (*progress, error) {
	p := &progress{out: a.stderr}
	file, _ := a.stderr.(*os.File)
	terminal := isTerminal(a.stderr)
	switch o.progress {
	case "auto":
		p.live = terminal
	case "live":
		if !terminal {
			return nil, fmt.Errorf("--progress live needs a terminal on standard error: use plain")
		}
		p.live = true
	case "plain":
	case "none":
		p.none = true
	default:
		return nil, fmt.Errorf("--progress %s: use auto, live, plain or none", o.progress)
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(o.logLevel)); err != nil {
		return nil, fmt.Errorf("--log-level %s: use debug, info, warn or error", o.logLevel)
	}
	var to io.Writer = a.stderr
	if p.live {
		p.file, p.tail = file, &logTail{out: file}
		to = p.tail
	}
	options := &slog.HandlerOptions{Level: level, ReplaceAttr: readable}
	switch o.logFormat {
	case "json":
		p.log = slog.New(slog.NewJSONHandler(to, options))
	case "text":
		options.ReplaceAttr = shortText
		p.log = slog.New(slog.NewTextHandler(to, options))
	default:
		return nil, fmt.Errorf("--log-format %s: use text or json", o.logFormat)
	}
	return p, nil
}

func isTerminal(w io.Writer) bool {
	file, _ := w.(*os.File)
	return file != nil && term.IsTerminal(int(file.Fd()))
}

// begin shows the worker's state until the function it returns is called.
func (p *progress) begin(w *framework.Worker) (end func()) {
	if p.none {
		return func() {}
	}
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan struct{})
	every := plainEvery
	if p.live {
		every = liveEvery
		p.tail.hold()
	}
	go func() {
		defer close(over)
		tick := time.NewTicker(every)
		defer tick.Stop()
		rates := &rates{}
		for {
			select {
			case <-tick.C:
				p.draw(w.Stats(), rates)
			case <-ctx.Done():
				if p.live {
					p.draw(w.Stats(), rates)
					p.tail.release()
				}
				return
			}
		}
	}()
	return func() { cancel(); <-over }
}

func (p *progress) draw(s framework.Stats, r *rates) {
	perSecond := r.of(s)
	if !p.live {
		for i := range s.Streams {
			st := &s.Streams[i]
			p.log.Info("state", "stream", st.Name, "state", state(st), "exit", st.Exit, "events", st.Events, "per_second", perSecond[i], "last_id", st.LastID, "gaps", len(st.Gaps))
		}
		for _, k := range s.Sinks {
			if k.Error != "" && k.State == "waiting" {
				p.log.Warn("sink waits", "sink", k.ID, "error", k.Error, "behind", k.Behind)
			}
		}
		return
	}
	width, height, err := term.GetSize(int(p.file.Fd()))
	if err != nil {
		width, height = 100, 30
	}
	p.tail.draw(table(s, perSecond), width, height)
}

// table renders the state as rows.
func table(s framework.Stats, perSecond []string) string {
	var b bytes.Buffer
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "STREAM\tSTATE\tEXIT\tEVENTS\tPER S\tLAST ID\tAGE\tRECONNECTS\tLOGINS\tGAPS\tCOVERAGE\n")
	now := time.Now()
	for i := range s.Streams {
		st := &s.Streams[i]
		age := "-"
		if !st.LastEvent.IsZero() {
			age = now.Sub(st.LastEvent).Round(100 * time.Millisecond).String()
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%s\t%s\t%s\t%d\t%d\t%d\t%s\n", st.Name, state(st), st.Exit, st.Events, perSecond[i], short(st.LastID, 20), age, total(st.Reconnects), st.Logins, len(st.Gaps), covered(st, 2))
	}
	if len(s.Sinks) > 0 {
		fmt.Fprintf(t, "SINK\tSTATE\t\tRECORDS\t\t\t\tRETRIES\tDEAD\tBEHIND\n")
	}
	for _, k := range s.Sinks {
		fmt.Fprintf(t, "%s\t%s\t\t%d\t\t\t\t%d\t%d\t%d\n", k.ID, k.State, k.Records, k.Retries, k.DeadLetters, k.Behind)
	}
	t.Flush()
	for i := range s.Streams {
		if st := &s.Streams[i]; st.State == "waiting" && st.Error != "" {
			fmt.Fprintf(&b, "%s: %s\n", st.Name, st.Error)
		}
	}
	for _, k := range s.Sinks {
		if k.State == "waiting" && k.Error != "" {
			fmt.Fprintf(&b, "%s: %s\n", k.ID, k.Error)
		}
	}
	return b.String()
}

func state(s *framework.StreamStats) string {
	if s.Detail != "" {
		return s.State + " (" + s.Detail + ")"
	}
	return s.State
}

func short(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return s[:n-1] + "…"
}

func total(m map[framework.Cause]uint64) (n uint64) {
	for _, v := range m {
		n += v
	}
	return n
}

// rates turns counters into events per second.
type rates struct {
	at     time.Time
	events map[string]uint64 // by stream: others may come, and old ones begin anew
}

func (r *rates) of(s framework.Stats) []string {
	now := time.Now()
	out, events := make([]string, len(s.Streams)), map[string]uint64{}
	for i, st := range s.Streams {
		events[st.Name], out[i] = st.Events, "-"
		if had, ok := r.events[st.Name]; ok && had <= st.Events && now.After(r.at) {
			out[i] = fmt.Sprintf("%.1f", float64(st.Events-had)/now.Sub(r.at).Seconds())
		}
	}
	r.at, r.events = now, events
	return out
}

// logTail keeps the last log lines below a table that is drawn in place. While
// it is not held, lines go straight to the terminal.
type logTail struct {
	out io.Writer

	mu    sync.Mutex
	held  bool
	lines []string
	drawn int // rows on the screen
}

func (l *logTail) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.held {
		return l.out.Write(p)
	}
	l.lines = append(l.lines, shortLine.Replace(strings.TrimRight(string(p), "\n")))
	if over := len(l.lines) - tailLines; over > 0 {
		l.lines = slices.Delete(l.lines, 0, over)
	}
	return len(p), nil
}

// shortLine takes what goes without saying out of a line below the table.
var shortLine = strings.NewReplacer("time=", "", " level=INFO msg=", "  ", " level=WARN msg=", "  ! ", " level=ERROR msg=", "  !! ")

func (l *logTail) hold() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held = true
}

// release leaves the last picture on the screen.
func (l *logTail) release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held, l.drawn, l.lines = false, 0, nil
}

// draw puts the table and the last lines in the place of the picture before.
func (l *logTail) draw(table string, width, height int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	rows := strings.Split(strings.TrimRight(table, "\n"), "\n")
	rows = append(rows, "")
	rows = append(rows, l.lines...)
	if over := len(rows) - (height - 1); over > 0 && height > 1 {
		rows = rows[:len(rows)-over]
	}
	var b strings.Builder
	if l.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", l.drawn) // up to where the picture begins
	}
	for _, row := range rows {
		b.WriteString("\r") // over a ^C that the terminal has echoed
		b.WriteString(clip(row, width))
		b.WriteString("\x1b[K\n") // clear what stood to the right
	}
	b.WriteString("\x1b[J") // and below
	l.drawn = len(rows)
	_, _ = io.WriteString(l.out, b.String())
}

// clip cuts a row to the terminal's width, so that it stays one row.
func clip(row string, width int) string {
	r := []rune(row)
	if len(r) < width {
		return row
	}
	return string(r[:max(width-1, 0)])
}

// printAccount prints what a run has done.
func printAccount(out io.Writer, s framework.Stats, w *wiring) {
	fmt.Fprintf(out, "\nAfter %v:\n", time.Duration(s.Elapsed*float64(time.Second)).Round(100*time.Millisecond))
	for i := range s.Streams {
		st := &s.Streams[i]
		fmt.Fprintf(out, "%s: %d events (ids %s to %s), %d records, %d delivered, %d duplicates dropped, %d dead letters\n", st.Name, st.Events, orNone(st.FirstID), orNone(st.LastID), st.Records, st.Delivered, st.DuplicatesDropped, st.DeadLetters)
		causes := []string{}
		for _, c := range slices.Sorted(maps.Keys(st.Reconnects)) {
			causes = append(causes, fmt.Sprintf("%s %d", c, st.Reconnects[c]))
		}
		if len(causes) == 0 {
			causes = append(causes, "none")
		}
		fmt.Fprintf(out, "  reconnects: %s; logins %d, renewals %d, expiries %d, silences %d, rotations %d\n", strings.Join(causes, ", "), st.Logins, st.Renewals, st.Expiries, st.Silences, st.Rotations)
		if st.Silences > 0 {
			fmt.Fprintf(out, "  silence noticed after %.0f ms (at most %.0f)\n", st.SilenceDetect.P50, st.SilenceDetect.Max)
		}
		if st.Resume.Max > 0 {
			fmt.Fprintf(out, "  back after %.0f ms (at most %.0f)\n", st.Resume.P50, st.Resume.Max)
		}
		fmt.Fprintf(out, "  coverage %s, gaps: %d\n", covered(st, 3), len(st.Gaps)+int(st.GapsOmitted))
		for _, g := range st.Gaps[:min(len(st.Gaps), 10)] {
			fmt.Fprintf(out, "    %s\n", gapText(&g, time.Local))
		}
		if st.State == "failed" {
			fmt.Fprintf(out, "  given up: %s\n", st.Error)
		}
	}
	for _, k := range s.Sinks {
		fmt.Fprintf(out, "%s: %d records in %d batches, %d chunks behind", k.ID, k.Records, k.Batches, k.Behind)
		if k.State == "waiting" || k.State == "failed" {
			fmt.Fprintf(out, ", %s: %s", k.State, k.Error)
		}
		fmt.Fprintln(out)
	}
	for _, line := range w.queries() {
		fmt.Fprintln(out, line)
	}
}

func orNone(id string) string {
	if id == "" {
		return "-"
	}
	return id
}

// covered is the coverage of a stream, if there is anything to be covered.
func covered(st *framework.StreamStats, digits int) string {
	if st.LastEvent.IsZero() {
		return "unknown (no event has come)"
	}
	return fmt.Sprintf("%.*f %%", digits, 100*st.Coverage)
}
