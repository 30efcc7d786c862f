package sinktest

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"
)

const kills = 8

// The process is killed in the middle of writing, again and again: what it was
// told is stored is stored, and nothing is lost or doubled.
func testKilled(t *testing.T, h Harness) {
	address := h.Make(t)
	random := rand.New(rand.NewPCG(5, 6))
	n := 0
	for range kills {
		acknowledged := killChild(t, address, 3+random.IntN(5), time.Duration(random.IntN(5000))*time.Microsecond)
		s := h.New(t, address, "records")
		pos, err := s.Open(t.Context(), prices.info())
		if err != nil {
			t.Fatalf("Open after a kill: %v", err)
		}
		closeSink(t, s)
		n = prices.number(pos)
		if n < acknowledged {
			t.Fatalf("after a kill the position is that of record %d, but record %d was acknowledged", n, acknowledged)
		}
		holds(t, h, address, "records", map[feed]int{prices: n})
	}
	s := prices.opened(t, h, address, "records", n)
	prices.write(t, s, n, n+100)
	holds(t, h, address, "records", map[feed]int{prices: n + 100})
}

// killChild runs this test in a process of its own, which writes, and kills it
// a moment after it has told of that many batches. It returns the number of the
// last record the child told of.
func killChild(t *testing.T, address string, batches int, moment time.Duration) (acknowledged int) {
	t.Helper()
	binary, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// The test that called Run; this one runs under it.
	test := t.Name()[:strings.LastIndexByte(t.Name(), '/')]
	pattern := "^" + strings.ReplaceAll(regexp.QuoteMeta(test), "/", "$/^") + "$"
	child := exec.Command(binary, "-test.run="+pattern, "-test.v=false")
	child.Env = append(os.Environ(), childAddress+"="+address)
	var errors strings.Builder
	child.Stderr = &errors
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	var said []string
	for lines.Scan() {
		if _, err := fmt.Sscanf(lines.Text(), "wrote %d", &acknowledged); err != nil {
			said = append(said, lines.Text())
			continue
		}
		if batches--; batches == 0 {
			// The child goes on writing: the moment falls anywhere in a batch.
			time.AfterFunc(moment, func() { _ = child.Process.Kill() })
		}
	}
	_ = child.Wait() // it was killed
	if batches > 0 {
		t.Fatalf("the child ended by itself, %d batches early:\n%s\n%s", batches, strings.Join(said, "\n"), errors.String())
	}
	return acknowledged
}

// writeUntilKilled is the child: it goes on from where the destination is. It
// ends when nobody listens any more, since writing to a broken standard output
// ends a program.
func writeUntilKilled(t *testing.T, h Harness, address string) {
	s := h.New(t, address, "records")
	pos, err := s.Open(t.Context(), prices.info())
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	n := prices.number(pos)
	for size := 1; ; size = size%300 + 37 {
		prices.write(t, s, n, n+size)
		n += size
		fmt.Printf("wrote %d\n", n)
	}
}
