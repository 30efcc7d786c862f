package faults

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

var (
	inEarnest = flag.Bool("faults.long", false, "with the times and the settings of every day, every row and every source")
	report    = flag.String("faults.table", "", "write the tables to this file, as Markdown")
)

// paceFor is the pace of this run of the tests.
func paceFor(lines int) pace {
	if *inEarnest {
		return long(lines)
	}
	return short(lines)
}

// table gathers rows while they are filled, side by side.
type table struct {
	mu    sync.Mutex
	cells map[string]map[source]row
}

func (tb *table) put(f fault, s source, r row) {
	tb.mu.Lock()
	defer tb.mu.Unlock()
	if tb.cells == nil {
		tb.cells = map[string]map[source]row{}
	}
	if tb.cells[f.name] == nil {
		tb.cells[f.name] = map[source]row{}
	}
	tb.cells[f.name][s] = r
}

// write writes the table, a line for each fault and a column for each source.
func (tb *table) write(t *testing.T, title string) {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n\n| fault |", title)
	for _, s := range sources {
		fmt.Fprintf(&b, " %s |", s.title())
	}
	fmt.Fprintf(&b, " noticed | back |\n|---|%s--:|--:|\n", strings.Repeat("---|", len(sources)))
	total := row{}
	for _, f := range faults {
		cells := tb.cells[f.name]
		if len(cells) == 0 {
			continue
		}
		var noticed, back spread
		fmt.Fprintf(&b, "| %s |", f.name)
		for _, s := range sources {
			r, ok := cells[s]
			if !ok {
				b.WriteString(" |")
				continue
			}
			fmt.Fprintf(&b, " %s |", r.text())
			noticed.add(r.noticed)
			back.add(r.back)
			total.sent += r.sent
			total.once += r.once
			total.doubled += r.doubled
			total.missed += r.missed
			total.silently += r.silently
		}
		fmt.Fprintf(&b, " %s | %s |\n", noticed, back)
	}
	fmt.Fprintf(&b, "\nSent %d, received once %d, doubled %d, missed %d, missed without a word %d.\n", total.sent, total.once, total.doubled, total.missed, total.silently)
	publish(t, b.String())
}

// publish appends to the report.
func publish(t *testing.T, text string) {
	if *report == "" {
		return
	}
	f, err := os.OpenFile(*report, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(text + "\n"); err != nil {
		t.Error(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

func (s source) title() string {
	ids, replay := "no ids", "no replay"
	if s.ids {
		ids = "ids"
	}
	if s.replay {
		replay = "replay"
	}
	return ids + ", " + replay
}

// text is a cell: of how many events how many came once, and what is written
// down of the others.
func (r *row) text() string {
	text := fmt.Sprintf("%d of %d", r.once, r.sent)
	if r.doubled > 0 {
		text += fmt.Sprintf(", %d twice", r.doubled)
	}
	if r.known > 0 {
		text += fmt.Sprintf(", %d known", r.known)
	}
	if r.possible > 0 {
		text += ", possible"
	}
	return text
}

// spread is from the least to the most of durations.
type spread struct {
	least, most time.Duration
}

func (s *spread) add(d time.Duration) {
	if d == 0 {
		return
	}
	if s.most == 0 {
		s.least = d
	}
	s.least, s.most = min(s.least, d), max(s.most, d)
}

func (s spread) String() string {
	switch {
	case s.most == 0:
		return "–"
	case s.most < 150*time.Millisecond:
		return "at once"
	case s.most-s.least < s.most/20:
		return fmt.Sprintf("%d ms", s.most.Milliseconds())
	}
	return fmt.Sprintf("%d–%d ms", s.least.Milliseconds(), s.most.Milliseconds())
}

// TestFaultTable fills the table: every fault, by one line and by two.
func TestFaultTable(t *testing.T) {
	for _, lines := range []int{1, 2} {
		t.Run(fmt.Sprintf("lines=%d", lines), func(t *testing.T) {
			t.Parallel()
			tb := &table{}
			t.Cleanup(func() { tb.write(t, fmt.Sprintf("**`lines: %d`**", lines)) })
			for _, f := range faults {
				for _, s := range sources {
					if lines > 1 && !*inEarnest && (!f.single || s.replay) {
						continue // what takes long, and what another line is not needed for
					}
					t.Run(f.name+"/"+s.String(), func(t *testing.T) {
						t.Parallel()
						r := paceFor(lines).fill(t, s, lines, f, func(p pace) row { return hold(t, f, s, lines, p) })
						t.Logf("%d sent, %d once, %d doubled, %d missed, %d known and %d possible gaps, noticed after %v, back after %v",
							r.sent, r.once, r.doubled, r.missed, r.known, r.possible, r.noticed, r.back)
						tb.put(f, s, r)
					})
				}
			}
		})
	}
}
