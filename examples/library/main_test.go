//go:build unix

package main

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// site is a feed of numbered events. It cuts its first answer in the middle of
// event 3, ends the second one after event 4, and says then that this is all,
// until more is set: then it goes on with event 5 and stays open.
type site struct {
	mu    sync.Mutex
	asked []string // the Last-Event-ID of each request
	more  bool
}

func (s *site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	last := r.Header.Get("Last-Event-ID")
	s.mu.Lock()
	s.asked = append(s.asked, last)
	more := s.more
	s.mu.Unlock()
	if last == "4" && !more {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	switch last {
	case "":
		io.WriteString(w, "id: 1\ndata: one\n\nid: 2\nevent: even\ndata: two\n\nid: 3\ndata: thr")
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	case "2":
		io.WriteString(w, "id: 3\ndata: three\n\nid: 4\nevent: even\ndata: four\n\n")
	case "4":
		io.WriteString(w, "id: 5\ndata: five\n\n")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	default:
		http.Error(w, "no such place", http.StatusBadRequest)
	}
}

// The program is a newcomer's: it is built and run as one would.
func TestGoesOnWhereItStopped(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "library")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	s := &site{}
	server := httptest.NewServer(s)
	defer server.Close()
	cursor := func() string {
		b, err := os.ReadFile(filepath.Join(dir, "cursor.txt"))
		if err != nil {
			t.Error(err)
		}
		return string(b)
	}

	first := exec.CommandContext(t.Context(), program, server.URL)
	first.Dir, first.Stderr = dir, t.Output()
	out, err := first.Output()
	if err != nil {
		t.Fatal(err)
	}
	if want := "1 message one\n2 even two\n3 message three\n4 even four\n"; string(out) != want {
		t.Errorf("printed %q, want %q", out, want)
	}
	if got := cursor(); got != "4" {
		t.Errorf("the cursor kept is %q, want 4", got)
	}

	s.mu.Lock()
	s.more = true
	s.mu.Unlock()
	second := exec.CommandContext(t.Context(), program, server.URL)
	second.Dir, second.Stderr = dir, t.Output()
	pipe, err := second.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(pipe)
	line, err := lines.ReadString('\n')
	if err != nil || line != "5 message five\n" {
		t.Errorf("printed %q (%v) after the restart, want event 5", line, err)
	}
	if err := second.Process.Signal(os.Interrupt); err != nil {
		t.Error(err)
	}
	if rest, err := io.ReadAll(lines); err != nil || len(rest) > 0 {
		t.Errorf("printed %q (%v) after event 5, want nothing", rest, err)
	}
	if err := second.Wait(); err != nil {
		t.Errorf("an interrupt ended it with %v, want exit code 0", err)
	}
	if got := cursor(); got != "5" {
		t.Errorf("the cursor kept is %q, want 5", got)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if want := []string{"", "2", "4", "4"}; !slices.Equal(s.asked, want) {
		t.Errorf("asked for what comes after %q, want %q", s.asked, want)
	}
}

func TestSaysWhatIsWrong(t *testing.T) {
	file := filepath.Join(t.TempDir(), "missing", "cursor.txt")
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		fmt.Fprint(w, "id: 1\ndata: one\n\n")
	}))
	defer server.Close()
	err := follow(t.Context(), server.URL, file)
	if err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("follow with a cursor that cannot be kept: %v, want an error that names %s", err, file)
	}
}
