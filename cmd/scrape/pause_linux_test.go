package main

import (
	"syscall"
	"testing"
	"time"
)

// A program that was stopped for longer than any silence, as a machine is that
// is moved, finds what came meanwhile in its socket: it takes no line for dead
// and misses nothing. Only where the feed itself was silent may the line be
// taken for dead.
func TestStoppedForAWhile(t *testing.T) {
	t.Parallel()
	feed := ticks(t, "== answer 200 text/event-stream\n== again\n== count 1000000 1ms\n")
	p := newPlace(t)
	p.write("ticks.yaml", `
name: ticks
streams:
  - name: feed
    url: {{.URL}}
    stale_after: 300ms
    quiet_after: 300ms
sinks:
  - sqlite: {table: t}
    batch: {every: 10ms}
`, map[string]any{"URL": feed.URL})
	run := p.start("run", "ticks.yaml", "--progress", "none", "--summary", "out.json")
	signal := func(s syscall.Signal) {
		t.Helper()
		if err := run.cmd.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
	}
	// goesOn waits until so many more events have been delivered.
	goesOn := func(more int) {
		had := len(p.rows("data/ticks.db", "t"))
		run.until("events", func() bool { return len(p.rows("data/ticks.db", "t")) >= had+more })
	}
	for i := range 6 {
		goesOn(100)
		// Once more within what was granted for the last time, or not.
		time.Sleep(time.Duration(i) * 100 * time.Millisecond)
		signal(syscall.SIGSTOP)
		time.Sleep(700 * time.Millisecond) // it is stopped for longer than any silence
		signal(syscall.SIGCONT)
	}
	goesOn(500) // what came meanwhile, and more
	run.interrupt()
	run.wait(0)
	if _, s := p.summary("out.json"); int64(s.Silences) > feed.late.Load() || len(s.Gaps) != 0 || s.Events < 300 {
		t.Errorf("%d events, %d silences where the feed had %d, gaps %v", s.Events, s.Silences, feed.late.Load(), s.Gaps)
	}
}
