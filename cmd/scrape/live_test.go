//go:build linux

package main

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// terminal is what a process takes for one of that size; what it shows is in
// the output, and all of it is when nobody has the terminal any more and over
// is closed.
func terminal(t *testing.T, columns, rows uint16) (slave *os.File, shown *output, over chan struct{}) {
	t.Helper()
	master, slave := pseudoTerminal(t, columns, rows)
	shown, over = &output{}, make(chan struct{})
	go func() {
		defer close(over)
		b := make([]byte, 4096)
		for {
			n, err := master.Read(b)
			shown.Write(b[:n])
			if err != nil {
				return
			}
		}
	}()
	return slave, shown, over
}

// pseudoTerminal is both ends of a terminal.
func pseudoTerminal(t *testing.T, columns, rows uint16) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	fd := int(master.Fd())
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		err = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Col: columns, Row: rows})
	}
	if err != nil {
		t.Fatal(err)
	}
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { slave.Close() })
	return master, slave
}

// On a terminal the state is a table that is drawn in place; rows are cut to
// the terminal's width, and the account on standard output follows.
func TestLiveTable(t *testing.T) {
	t.Parallel()
	feed := ticks(t, "== answer 200 text/event-stream\n== again\n== count 1000000 5ms\n")
	p := newPlace(t)
	p.write("ticks.yaml", ticksFile, map[string]any{"URL": feed.URL})
	screen, shown, over := terminal(t, 100, 24)
	r := p.startWith(func(c *exec.Cmd) { c.Stderr = screen }, "scrape", "run", "ticks.yaml")
	screen.Close()
	r.until("a second picture with a rate", func() bool {
		s := shown.String()
		return strings.Count(s, "STREAM") > 2 && strings.Contains(s, "ticks/feed") && strings.Contains(s, "live")
	})
	r.interrupt()
	r.wait(0)
	<-over
	s := shown.String()
	says(t, s, "STATE", "LAST ID", "COVERAGE", "SINK", "ticks/sqlite", "\x1b[K", "\x1b[J")
	saysNot(t, s, "level=INFO msg=state")
	for row := range strings.Lines(regexp.MustCompile("\x1b\\[[0-9]*[A-Z]").ReplaceAllString(s, "")) {
		if n := len([]rune(strings.Trim(row, "\r\n"))); n > 99 {
			t.Errorf("a row of %d columns: %q", n, row)
		}
	}
	says(t, r.stdout.String(), "After ", "ticks/feed: ")
	saysNot(t, r.stdout.String(), "\x1b", "STREAM")
}

// When the terminal is closed that it runs in, a worker ends in good order.
func TestTheTerminalIsClosed(t *testing.T) {
	t.Parallel()
	feed := ticks(t, "== answer 200 text/event-stream\n== again\n== count 1000000 5ms\n")
	p := newPlace(t)
	p.write("ticks.yaml", ticksFile, map[string]any{"URL": feed.URL})
	master, slave := pseudoTerminal(t, 100, 24)
	r := p.startWith(func(c *exec.Cmd) {
		c.Stdin, c.Stderr = slave, slave
		c.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	}, "scrape", "run", "ticks.yaml", "--progress", "none")
	slave.Close()
	r.until("events", func() bool { return feed.sent.Load() > 20 })
	master.Close()
	r.wait(0)
	says(t, r.stdout.String(), "ticks/feed: ")
}
