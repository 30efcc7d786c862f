package jsonl

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gofrs/flock"
	"github.com/holdline/scrape/framework"
	"github.com/holdline/scrape/internal/sink/sinktest"
	"github.com/klauspost/compress/zstd"
)

func TestConformance(t *testing.T) {
	for name, c := range map[string]Config{
		"plain": {MaxSize: 20_000}, // so small that every case has several files
		"zstd":  {MaxSize: 2_000, Compress: true},
	} {
		t.Run(name, func(t *testing.T) {
			sinktest.Run(t, sinktest.Harness{
				Make: func(t *testing.T) string { return t.TempDir() },
				New: func(t *testing.T, address, table string) framework.Sink {
					c.Dir = filepath.Join(address, table)
					return newSink(t, c)
				},
				Rows: func(t *testing.T, address, table string) []sinktest.Row {
					return readRows(t, filepath.Join(address, table))
				},
				Alter: func(t *testing.T, address, table string) func() {
					files := sinkFiles(t, filepath.Join(address, table))
					newest := files[len(files)-1]
					rename(t, newest, newest+".moved")
					return func() { rename(t, newest+".moved", newest) }
				},
				Stall: stall,
				Fill:  fill,
			})
		})
	}
}

// fill makes a full disk, where that can be done: see TestFull.
var fill func(t *testing.T, address string, s framework.Sink) (free func())

func newSink(t testing.TB, c Config) *Sink {
	t.Helper()
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

// stall takes the locks, as a process that has stopped in the middle of writing
// would hold them.
func stall(t *testing.T, address string) (release func()) {
	t.Helper()
	paths, _ := filepath.Glob(filepath.Join(address, "*", ".*.lock"))
	if len(paths) == 0 {
		t.Fatal("there is no lock")
	}
	var locks []*flock.Flock
	release = func() {
		for _, l := range locks {
			if err := l.Unlock(); err != nil {
				t.Error(err)
			}
		}
	}
	for _, path := range paths {
		l := flock.New(path)
		if err := l.Lock(); err != nil {
			t.Fatal(err)
		}
		locks = append(locks, l)
	}
	return release
}

// sinkFiles are the paths of all files of records, in the order of their names.
func sinkFiles(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.jsonl*"))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// readLines reads every line of the file; none may be torn.
func readLines(t *testing.T, path string) [][]byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if strings.HasSuffix(path, zstdEnding) {
		d, err := zstd.NewReader(bytes.NewReader(b), zstd.WithDecoderConcurrency(1))
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		if b, err = io.ReadAll(d); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
	}
	if len(b) == 0 {
		return nil
	}
	if b[len(b)-1] != '\n' {
		t.Fatalf("%s ends with a torn line %q", path, b[max(0, len(b)-50):])
	}
	return bytes.Split(b[:len(b)-1], []byte("\n"))
}

// line is a line as a reader takes it.
type line struct {
	Key    string          `json:"key"`
	Stream string          `json:"stream"`
	ID     string          `json:"id"`
	Type   string          `json:"type"`
	Time   time.Time       `json:"time"`
	Data   json.RawMessage `json:"data"`
	Text   *string         `json:"text"`
	Base64 *string         `json:"base64"`
}

// row is the record that the line tells of.
func (l *line) row() (r sinktest.Row, err error) {
	r = sinktest.Row{Key: l.Key, Stream: l.Stream, Time: l.Time}
	switch {
	case l.Data != nil && l.Text == nil && l.Base64 == nil:
		r.Data = l.Data
	case l.Data == nil && l.Text != nil && l.Base64 == nil:
		r.Data = []byte(*l.Text)
	case l.Data == nil && l.Text == nil && l.Base64 != nil:
		r.Data, err = base64.StdEncoding.DecodeString(*l.Base64)
	default:
		err = errors.New("not one payload")
	}
	var err2, err3 error
	r.ID, err2 = plain(l.ID)
	r.Type, err3 = plain(l.Type)
	return r, errors.Join(err, err2, err3)
}

// plain takes back what sink.Text did.
func plain(s string) (string, error) {
	if digits, ok := strings.CutPrefix(s, `\x`); ok {
		b, err := hex.DecodeString(digits)
		return string(b), err
	}
	return s, nil
}

func readRows(t *testing.T, dir string) (rows []sinktest.Row) {
	t.Helper()
	for _, path := range sinkFiles(t, dir) {
		for _, b := range readLines(t, path) {
			var l line
			d := json.NewDecoder(bytes.NewReader(b))
			d.DisallowUnknownFields()
			if err := d.Decode(&l); err != nil {
				t.Fatalf("%s: %v in %q", path, err, b)
			}
			row, err := l.row()
			if err != nil {
				t.Fatalf("%s: %v in %q", path, err, b)
			}
			rows = append(rows, row)
		}
	}
	return rows
}
