package main

import (
	"syscall"
	"testing"
	"time"
)

// A program that was stopped for longer than any silence, as a machine is that
// is moved, finds what came meanwhile in its socket: it takes no line for dead
// and misses nothing, also where the site cannot send again.
func TestStoppedForAWhile(t *testing.T) {
	t.Parallel()
	feed := ticks(t, "== answer 200 text/event-stream\n== count 1000000 1ms\n")
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
	for range 3 {
		before := feed.sent.Load()
		run.until("events", func() bool { return feed.sent.Load() > before+100 })
		for _, signal := range []syscall.Signal{syscall.SIGSTOP, syscall.SIGCONT} {
			if err := run.cmd.Process.Signal(signal); err != nil {
				t.Fatal(err)
			}
			time.Sleep(700 * time.Millisecond) // stopped, then going on
		}
	}
	run.interrupt()
	run.wait(0)
	if _, s := p.summary("out.json"); s.Silences != 0 || len(s.Gaps) != 0 || s.Events < 300 {
		t.Errorf("%d events, %d silences, gaps %v", s.Events, s.Silences, s.Gaps)
	}
}
