package journal

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sort"
	"testing"

	"github.com/holdline/scrape/framework"
)

// blocks returns the files that hold the chunks, oldest first.
func blocks(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "nats", "jetstream", "*", "streams", chunkStream(0), "msgs", "*.blk"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no block files: %v", err)
	}
	sort.Slice(files, func(a, b int) bool {
		return len(files[a]) < len(files[b]) || len(files[a]) == len(files[b]) && files[a] < files[b]
	})
	return files
}

// filled makes a journal of several block files with numbered events in dir,
// 100 to a chunk, and closes it. It returns the number of its last chunk.
func filled(t *testing.T, dir string, chunks int) uint64 {
	t.Helper()
	j := open(t, Config{Dir: dir, ChunkEvents: 100})
	l := stream(t, j, "a/s")
	for c := range chunks {
		for n := range 100 {
			ev := event(c*100 + n + 1)
			ev.Data = append(ev.Data, noise(c*100+n, 1000)...)
			if err := l.Append(t.Context(), ev); err != nil {
				t.Fatal(err)
			}
		}
	}
	syncJournal(t, j)
	_, last := j.Bounds(0)
	closeJournal(t, j)
	return last
}

// noise returns bytes that do not compress.
func noise(seed, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)}).Read(b) // never fails
	return b
}

// copied returns a copy of the closed journal in dir.
func copied(t *testing.T, dir string) string {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return to
}

// flip flips one bit of the file.
func flip(t *testing.T, file string, at float64) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	b[int(float64(len(b))*at)] ^= 4
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// account reads everything and returns which events came and which chunks were
// named as damaged; together they must be all.
func account(t *testing.T, j *Journal) (events map[string]bool, damaged map[uint64]error) {
	t.Helper()
	events, damaged = map[string]bool{}, map[uint64]error{}
	next := uint64(1)
	for _, c := range readAll(t, j) {
		if c.Err != nil {
			d := c.Err.(*framework.DamageError)
			t.Logf("%v", d)
			if d.From != next || d.To < d.From || c.Seq != d.To {
				t.Fatalf("chunk %d: %v, expected from %d", c.Seq, d, next)
			}
			for s := d.From; s <= d.To; s++ {
				damaged[s] = d.Err
			}
			next = d.To + 1
			continue
		}
		if c.Seq != next {
			t.Fatalf("chunk %d, want %d: nobody said why", c.Seq, next)
		}
		next++
		for _, ev := range c.Events {
			events[ev.ID] = true
		}
	}
	return events, damaged
}

func TestDamageIsFoundAndNamed(t *testing.T) {
	damages := map[string]func(t *testing.T, file string){
		"flipped bit": func(t *testing.T, file string) { flip(t, file, 0.75) },
		"torn": func(t *testing.T, file string) {
			st, err := os.Stat(file)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(file, st.Size()*2/3); err != nil {
				t.Fatal(err)
			}
		},
		"emptied": func(t *testing.T, file string) {
			if err := os.Truncate(file, 0); err != nil {
				t.Fatal(err)
			}
		},
		"removed": func(t *testing.T, file string) {
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
		},
	}
	const chunks = 200
	whole := t.TempDir()
	last := filled(t, whole, chunks) // ≈ 22 MB: several blocks
	for name, damage := range damages {
		for _, where := range []string{"first", "middle", "last"} {
			for _, crashed := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s %s crashed=%v", name, where, crashed), func(t *testing.T) {
					dir := copied(t, whole)
					files := blocks(t, dir)
					if len(files) < 3 {
						t.Fatalf("%d files", len(files))
					}
					damage(t, map[string]string{"first": files[0], "middle": files[1], "last": files[len(files)-1]}[where])
					if crashed { // what the server writes when it is stopped in order
						if err := os.Remove(filepath.Join(filepath.Dir(files[0]), "index.db")); err != nil {
							t.Fatal(err)
						}
					}
					j := open(t, Config{Dir: dir})
					events, damaged := account(t, j)
					_, now := j.Bounds(0)
					t.Logf("last %d was %d, %d events left, %d chunks damaged", now, last, len(events), len(damaged))
					if now < last {
						t.Errorf("the newest chunk is %d, was %d", now, last)
					}
					if len(damaged) == 0 || len(events) == 0 {
						t.Errorf("%d chunks damaged, %d events left", len(damaged), len(events))
					}
					// It goes on after that, under new numbers.
					appendEvents(t, stream(t, j, "a/s"), 1_000_001, 1_000_001)
					syncJournal(t, j)
					if _, next := j.Bounds(0); next <= last {
						t.Errorf("chunk %d follows %d", next, last)
					}
				})
			}
		}
	}
}

func TestDamageWhileOpen(t *testing.T) {
	whole := t.TempDir()
	filled(t, whole, 200)
	found := 0
	for block := range 3 {
		for _, at := range []float64{0.25, 0.5, 0.75} {
			dir := copied(t, whole)
			j := open(t, Config{Dir: dir})
			flip(t, blocks(t, dir)[block], at)
			events, damaged := account(t, j)
			found += len(damaged)
			// A bit in the server's own framing may cost the rest of its block.
			if lost := 200*100 - len(events); lost > 100*len(damaged) || (lost > 0) != (len(damaged) > 0) {
				t.Errorf("one flipped bit in block %d: %d chunks damaged, %d events lost", block, len(damaged), lost)
			}
			closeJournal(t, j)
		}
	}
	if found == 0 { // one may hide in a cache of the server, not all
		t.Error("no damage was found")
	}
}

func TestFileRemovedWhileOpen(t *testing.T) {
	dir := t.TempDir()
	last := filled(t, dir, 200)
	j := open(t, Config{Dir: dir})
	files := blocks(t, dir)
	if err := os.Remove(files[1]); err != nil {
		t.Fatal(err)
	}
	_, damaged := account(t, j)
	if len(damaged) == 0 || damaged[1] != nil || damaged[last] != nil {
		t.Errorf("of %d chunks %d are damaged, the first: %v, the last: %v", last, len(damaged), damaged[1], damaged[last])
	}
}
