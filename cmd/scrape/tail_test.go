//go:build unix

package main

import (
	"strings"
	"testing"
)

// An event is on standard output as soon as it came, while the feed goes on.
func TestTailFlushesEveryEvent(t *testing.T) {
	t.Parallel()
	feed := ticks(t, "== answer 200 text/event-stream\ndata: first\n\n== wait\ndata: second\n\n== hang\n")
	p := newPlace(t)
	tail := p.start("tail", feed.URL)
	tail.until("the first event", func() bool { return strings.Contains(tail.stdout.String(), "\n") })
	if out := tail.stdout.String(); !strings.Contains(out, "first") || strings.Contains(out, "second") {
		t.Errorf("before the second event was sent the output was %q", out)
	}
	feed.goOn()
	tail.until("the second event", func() bool { return strings.Contains(tail.stdout.String(), "second") })
	tail.interrupt()
	tail.wait(0)
	if s := tail.stderr.String(); s != "" {
		t.Errorf("standard error: %q", s)
	}
}

// A reader that goes away, as head does, ends tail without a word.
func TestTailEndsWithItsReader(t *testing.T) {
	t.Parallel()
	feed := ticks(t, "== answer 200 text/event-stream\n== count 100000 2ms\n")
	p := newPlace(t)
	sh := p.startWith(nil, "sh", "-c", "scrape tail "+feed.URL+" | head -n 2")
	sh.wait(0)
	if n := strings.Count(sh.stdout.String(), "\n"); n != 2 {
		t.Errorf("%d lines", n)
	}
	if s := sh.stderr.String(); s != "" {
		t.Errorf("standard error: %q", s)
	}
}
