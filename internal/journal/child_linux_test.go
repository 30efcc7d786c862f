package journal

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// The test binary is also the process that is killed or starved.
func TestMain(m *testing.M) {
	switch dir := os.Getenv("JOURNAL_TEST_DIR"); os.Getenv("JOURNAL_TEST_CHILD") {
	case "append":
		childAppend(dir)
	case "disk":
		if !childMount(dir) {
			os.Exit(1)
		}
		childAppend(filepath.Join(dir, "journal"))
	case "read":
		childRead(dir)
	case "full":
		childFull(dir)
	case "limit":
		childLimit(dir)
	}
	os.Exit(m.Run())
}

func child(t *testing.T, what, dir string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), "JOURNAL_TEST_CHILD="+what, "JOURNAL_TEST_DIR="+dir)
	cmd.Stderr = os.Stderr
	return cmd
}

func die(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

const childStreams = 3

// childAppend appends to each stream the numbers after its cursor, and says
// how many of each are committed, until it is killed.
func childAppend(dir string) {
	ctx := context.Background()
	j, err := Open(ctx, Config{Dir: dir, ChunkEvents: 300})
	if err != nil {
		die(err)
	}
	fmt.Println("ready")
	for s := range childStreams {
		log, err := j.Stream(ctx, "t/"+strconv.Itoa(s))
		if err != nil {
			die(err)
		}
		r, err := log.Resume(ctx)
		if err != nil {
			die(err)
		}
		from, _ := strconv.Atoi(string(r.Cursor)) // empty at first: 0
		if len(r.Tail) > 0 && r.Tail[len(r.Tail)-1].ID != string(r.Cursor) {
			die(fmt.Errorf("cursor %s, last event %s", r.Cursor, r.Tail[len(r.Tail)-1].ID))
		}
		go func() {
			for n := from + 1; ; n++ {
				ev := event(n)
				if n%2000 == 0 {
					ev.Data = noise(n, 1<<20) // in parts
				}
				if err := log.Append(ctx, ev); err != nil {
					die(err)
				}
				if n%50 == 0 {
					fmt.Println(s, from+int(log.Committed()))
				}
			}
		}()
	}
	select {}
}

func TestKilled(t *testing.T) {
	dir := t.TempDir()
	var reported [childStreams]int
	const rounds = 6
	for round := range rounds {
		cmd := child(t, "append", dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines, killed := 0, false
		kill := 20 + rand.IntN(100)
		for sc := bufio.NewScanner(out); sc.Scan(); lines++ {
			var s, n int
			if _, err := fmt.Sscan(sc.Text(), &s, &n); err == nil {
				reported[s] = max(reported[s], n)
			}
			// Not before something of each was committed, in the last round.
			if !killed && lines >= kill && (round < rounds-1 || slices.Min(reported[:]) > 0) {
				killed = true
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := cmd.Wait(); err == nil || !killed {
			t.Fatalf("round %d: it ended by itself after %d lines: %v", round, lines, err)
		}
	}
	j := open(t, Config{Dir: dir})
	chunks := readAll(t, j)
	for s := range childStreams {
		name := "t/" + strconv.Itoa(s)
		events := eventsOf(t, chunks, name)
		if len(events) < reported[s] {
			t.Errorf("%s: %d events, %d were reported as committed", name, len(events), reported[s])
		}
		for i, ev := range events {
			if ev.ID != strconv.Itoa(i+1) {
				t.Fatalf("%s: event %s in the place of %d", name, ev.ID, i+1)
			}
		}
		if r := resume(t, j, name); string(r.Cursor) != strconv.Itoa(len(events)) {
			t.Errorf("%s: cursor %s after %d events", name, r.Cursor, len(events))
		}
		t.Logf("%s: %d events, %d reported", name, len(events), reported[s])
	}
}

// childLimit makes real writes fail, as on a full disk, and no more when they
// have failed again after that was reported.
func childLimit(dir string) {
	signal.Ignore(syscall.SIGXFSZ)
	ctx := context.Background()
	log := &countingLog{Handler: slog.NewTextHandler(os.Stdout, nil)}
	j, err := Open(ctx, Config{Dir: dir, ChunkEvents: 100, Log: slog.New(log)})
	if err != nil {
		die(err)
	}
	if err := j.Sync(ctx); err != nil {
		die(err)
	}
	l, err := j.Stream(ctx, "a/s")
	if err != nil {
		die(err)
	}
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		die(err)
	}
	old := limit.Cur
	limit.Cur = 1 << 20
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		die(err)
	}
	j.free = log.failing(2, l.Committed, j.free, func() {
		limit.Cur = old
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
			die(err)
		}
	})
	for n := 1; n <= 5000; n++ {
		ev := event(n)
		ev.Data = append(ev.Data, noise(n, 1000)...)
		if err := l.Append(ctx, ev); err != nil {
			die(err)
		}
	}
	if err := j.Close(); err != nil {
		die(err)
	}
	os.Exit(0)
}

func TestFailingWrites(t *testing.T) {
	dir := t.TempDir()
	out, err := child(t, "limit", dir).Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if n := strings.Count(string(out), "reading pauses"); n != 1 || !strings.Contains(string(out), "writing again") {
		t.Errorf("the failure was reported %d times:\n%s", n, out)
	}
	j := open(t, Config{Dir: dir})
	events := eventsOf(t, readAll(t, j), "a/s")
	if len(events) != 5000 {
		t.Fatalf("%d events", len(events))
	}
	for i, ev := range events {
		if ev.ID != strconv.Itoa(i+1) {
			t.Fatalf("event %s in the place of %d", ev.ID, i+1)
		}
	}
}
