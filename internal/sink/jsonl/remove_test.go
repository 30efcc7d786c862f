package jsonl

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/holdline/scrape/framework"
)

// chunked is a record of its own chunk.
func chunked(n int) framework.Record {
	r := record(1)
	r.Key.Seq = uint64(n)
	return r
}

// filled returns a directory with ten chunks of ten records, in files of two or
// three batches each.
func filled(t *testing.T, compress bool) Config {
	t.Helper()
	c := Config{Dir: t.TempDir(), MaxSize: 2500, Compress: compress}
	if compress {
		c.MaxSize = 250
	}
	s := opened(t, c)
	from := at(0)
	for n := 1; n <= 10; n++ {
		b := &framework.Batch{From: from, To: framework.Position{Journal: info.Journal, Seq: uint64(n), Event: 10}}
		for i := range 10 {
			r := chunked(n)
			r.Key.Event = i + 1
			b.Records = append(b.Records, r)
		}
		if err := s.Write(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		from = b.To
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if n := len(names(t, c.Dir)); n < 3 || n > 6 {
		t.Fatalf("%d files", n)
	}
	return c
}

func anew(chunk uint64) framework.SinkInfo {
	i := info
	i.Restart = chunk
	return i
}

// chunks are those of which the directory has all ten records.
func chunks(t *testing.T, dir string) (all []uint64) {
	t.Helper()
	counts := map[string]int{}
	for _, row := range readRows(t, dir) {
		counts[row.Key]++
	}
	for n := uint64(1); n <= 12; n++ {
		have := 0
		for i := range 10 {
			r := chunked(int(n))
			r.Key.Event = i + 1
			have += counts[r.Key.String()]
		}
		switch have {
		case 0:
		case 10:
			all = append(all, n)
		default:
			t.Errorf("%d records of chunk %d", have, n)
		}
	}
	return all
}

// endsAfter is a context that ends when it has been asked so often.
type endsAfter struct {
	context.Context
	left *int
}

func (e endsAfter) Err() error {
	if *e.left--; *e.left < 0 {
		return context.Canceled
	}
	return nil
}

// Removing that was ended at any moment is brought to its end by the next Open,
// whether that asks for it or not.
func TestRemovingEndedAnywhere(t *testing.T) {
	for _, compress := range []bool{false, true} {
		ended := 0
		for n := 0; ; n += 13 {
			c := filled(t, compress)
			s := newSink(t, c)
			left := n
			_, err := s.Open(endsAfter{t.Context(), &left}, anew(4))
			if err != nil {
				ended++
			}
			s = newSink(t, c)
			pos, openErr := s.Open(t.Context(), info)
			if openErr != nil {
				t.Fatalf("Open: %v", openErr)
			}
			if pos == at(0) {
				if got := chunks(t, c.Dir); !slices.Equal(got, []uint64{1, 2, 3}) {
					t.Fatalf("ended after %d: chunks %v are left, want 1 to 3", n, got)
				}
			} else if got := chunks(t, c.Dir); pos.Seq != 10 || len(got) != 10 {
				t.Fatalf("ended after %d: chunks %v are left, and the position is %v", n, got, pos)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if err == nil {
				break
			}
		}
		if ended < 5 {
			t.Errorf("it was ended %d times only", ended)
		}
	}
}

// A file with nothing to remove is not touched, one with nothing else is gone,
// and the next record begins a file whose name was never used.
func TestRemovingLeavesFilesAlone(t *testing.T) {
	c := filled(t, false)
	before := names(t, c.Dir)
	old, err := os.Stat(filepath.Join(c.Dir, before[0]))
	if err != nil {
		t.Fatal(err)
	}
	s := newSink(t, c)
	t.Cleanup(func() { s.Close() })
	if _, err := s.Open(t.Context(), anew(5)); err != nil {
		t.Fatal(err)
	}
	left := names(t, c.Dir)
	if now, err := os.Stat(filepath.Join(c.Dir, before[0])); err != nil || !os.SameFile(old, now) {
		t.Errorf("%s was written again (%v)", before[0], err)
	}
	if len(left) >= len(before) || !slices.Equal(left, before[:len(left)]) {
		t.Errorf("files %v, of %v before", left, before)
	}
	r := chunked(11)
	if err := s.Write(t.Context(), &framework.Batch{From: at(0), To: framework.Position{Journal: info.Journal, Seq: 11, Event: 1}, Records: []framework.Record{r}}); err != nil {
		t.Fatal(err)
	}
	if got := names(t, c.Dir); slices.Contains(before, got[len(got)-1]) {
		t.Errorf("the new file %s was there before: %v", got[len(got)-1], before)
	}
	if entries, _ := filepath.Glob(filepath.Join(c.Dir, ".*part")); len(entries) > 0 {
		t.Errorf("%v are left", entries)
	}
}

// To begin anew is the way out when the newest file is gone, cut or torn.
func TestRemovingMendsTheNewestFile(t *testing.T) {
	for _, compress := range []bool{false, true} {
		for name, meddle := range map[string]func(path string) error{
			"gone":  os.Remove,
			"moved": func(path string) error { return os.Rename(path, filepath.Join(filepath.Dir(path), "elsewhere")) },
			"cut":   func(path string) error { return os.Truncate(path, 100) },
			"empty": func(path string) error { return os.Truncate(path, 0) },
		} {
			c := filled(t, compress)
			files := sinkFiles(t, c.Dir)
			if err := meddle(files[len(files)-1]); err != nil {
				t.Fatal(err)
			}
			s := newSink(t, c)
			t.Cleanup(func() { s.Close() })
			_, err := s.Open(t.Context(), info)
			says(t, err, "start with --restart-sink demo/prices to deliver anew")
			if pos, err := s.Open(t.Context(), anew(2)); err != nil || pos != at(0) {
				t.Fatalf("%s: Open: %v, %v", name, pos, err)
			}
			if got := chunks(t, c.Dir); !slices.Equal(got, []uint64{1}) {
				t.Errorf("%s: chunks %v are left, want 1", name, got)
			}
		}
	}
}

// Lines that are not of this journal, or not ours at all, stay.
func TestRemovingKeepsOthersLines(t *testing.T) {
	c := filled(t, false)
	file := sinkFiles(t, c.Dir)[0]
	const foreign = `{"key":"eeeeffffgggghhhh/0/9/1/1","stream":"demo/market","type":"t","time":"2026-01-02T03:04:05.000000000Z","data":1}` + "\n"
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, append([]byte(foreign), b...), 0o644); err != nil {
		t.Fatal(err)
	}
	s := newSink(t, c)
	if _, err := s.Open(t.Context(), anew(1)); err != nil {
		t.Fatal(err)
	}
	if b, err = os.ReadFile(file); err != nil || string(b) != foreign || len(sinkFiles(t, c.Dir)) != 1 {
		t.Errorf("%v holds %q (%v)", names(t, c.Dir), b, err)
	}
}
