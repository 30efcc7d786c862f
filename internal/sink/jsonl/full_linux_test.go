package jsonl

import (
	"bytes"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"testing"

	"github.com/holdline/scrape/framework"
)

// limited tells a test binary that it may limit the size of its own files. The
// one that go test runs may not: it would lose the log that go test reads.
const limited = "JSONL_TEST_LIMITED"

func init() {
	if os.Getenv(limited) != "" {
		fill = limitFiles
	}
}

// TestFull runs what needs a full disk in a process of its own.
func TestFull(t *testing.T) {
	if os.Getenv(limited) != "" {
		testNoRoom(t)
		return
	}
	binary, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, run := range []string{"^TestFull$", "^TestConformance$/^(plain|zstd)$/^Full$"} {
		child := exec.CommandContext(t.Context(), binary, "-test.v", "-test.run="+run)
		child.Env = append(os.Environ(), limited+"=1")
		out, err := child.CombinedOutput()
		if err != nil || !bytes.Contains(out, []byte("--- PASS")) || run != "^TestFull$" && bytes.Count(out, []byte("/Full (")) != 2 {
			t.Errorf("%s: %v\n%s", run, err, out)
		}
	}
}

// limitFiles lets no file of this process grow beyond some bytes more than the
// newest one has: a write then stores a part and fails, as on a full disk.
func limitFiles(t *testing.T, _ string, s framework.Sink) (free func()) {
	t.Helper()
	signal.Ignore(syscall.SIGXFSZ)
	info, err := s.(*Sink).file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	limit := syscall.Rlimit{Cur: uint64(info.Size()) + 1000, Max: old.Max}
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &old); err != nil {
			t.Error(err)
		}
	}
}

// A batch that fails half way leaves nothing to read, and says why.
func testNoRoom(t *testing.T) {
	s := opened(t, Config{})
	if err := write(s, 0, record(1)); err != nil {
		t.Fatal(err)
	}
	free := fill(t, "", s)
	big := record(2)
	big.Data = make([]byte, 5000)
	err := write(s, 1, record(2), big)
	rows := len(readRows(t, s.config.Dir))
	free()
	says(t, err, s.config.Dir, "there is no room for more: make room")
	if rows != 1 {
		t.Errorf("%d rows can be read, want 1", rows)
	}
}
