package jsonl

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/holdline/scrape/framework"
)

// progress is the content of the position file. It can never change:
// directories out there hold it.
type progress struct {
	Sink      string              `json:"sink"`
	Partition int                 `json:"partition"`
	Journal   framework.JournalID `json:"journal"`
	Seq       uint64              `json:"seq"`
	Event     int                 `json:"event"`
	Moved     time.Time           `json:"moved"`
	// Number counts the files. File is the newest one, empty before the first,
	// Size how much of it counts, Begun when it was made.
	Number int       `json:"number"`
	File   string    `json:"file"`
	Size   int64     `json:"size"`
	Begun  time.Time `json:"begun"`
	// Removing is the chunk from which on records are being removed, while
	// that is under way: see remove.
	Removing uint64 `json:"removing,omitempty"`
}

func (p *progress) position() framework.Position {
	return framework.Position{Journal: p.Journal, Partition: p.Partition, Seq: p.Seq, Event: p.Event}
}

func (s *Sink) progressPath() string { return filepath.Join(s.config.Dir, s.base+".position.json") }

// readProgress returns an fs.ErrNotExist when the sink has no position.
func (s *Sink) readProgress() (progress, error) {
	var p progress
	b, err := os.ReadFile(s.progressPath())
	if err != nil {
		return p, err
	}
	if err := json.Unmarshal(b, &p); err != nil || p.Sink != s.id || p.Partition != s.partition || p.Size < 0 || p.File != filepath.Base(filepath.Clean("/"+p.File)) && p.File != "" {
		return p, fmt.Errorf("%s is not the position of sink %s: restore it from a copy, or choose another directory", s.progressPath(), s.id)
	}
	return p, nil
}

// writeProgress replaces the position, durably and at once: a crash leaves the
// old one or the new one.
func (s *Sink) writeProgress(p *progress) error {
	p.Moved = s.now().UTC()
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	path := s.progressPath()
	part := filepath.Join(s.config.Dir, "."+s.base+".position.part")
	f, err := os.OpenFile(part, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(part, path); err != nil {
		return err
	}
	return s.syncDir()
}

// syncDir makes names in the directory durable. Windows has no way to ask.
func (s *Sink) syncDir() error {
	if runtime.GOOS == "windows" {
		return nil
	}
	d, err := os.Open(s.config.Dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

const (
	plainEnding = ".jsonl"
	zstdEnding  = ".jsonl.zst"
)

func (s *Sink) ending() string {
	if s.config.Compress {
		return zstdEnding
	}
	return plainEnding
}

// number tells which of the sink's files has the name.
func (s *Sink) number(name string) (n int, ok bool) {
	digits, ok := strings.CutPrefix(name, s.base+"-")
	if !ok {
		return 0, false
	}
	if digits, ok = strings.CutSuffix(strings.TrimSuffix(digits, ".zst"), plainEnding); !ok {
		return 0, false
	}
	n, err := strconv.Atoi(digits)
	return n, err == nil && n > 0
}

// each calls do for the sink's files, with their numbers.
func (s *Sink) each(do func(name string, n int) error) error {
	entries, err := os.ReadDir(s.config.Dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if n, ok := s.number(e.Name()); ok {
			if err := do(e.Name(), n); err != nil {
				return err
			}
		}
	}
	return nil
}

// newest is the highest number of the sink's files.
func (s *Sink) newest() (last int, err error) {
	return last, s.each(func(_ string, n int) error { last = max(last, n); return nil })
}

// cut removes what was written and not counted: the end of the newest file, and
// files begun after it.
func (s *Sink) cut(p *progress) error {
	err := s.each(func(name string, n int) error {
		if n <= p.Number {
			return nil
		}
		s.config.Log.Info("a file was begun and not counted: its records are written again", "file", name)
		return os.Remove(filepath.Join(s.config.Dir, name))
	})
	if err != nil || p.File == "" {
		return err
	}
	f, err := s.reopen(p)
	if err != nil {
		return err
	}
	s.file = f
	return nil
}

// reopen opens the newest file as it counts.
func (s *Sink) reopen(p *progress) (*os.File, error) {
	path := filepath.Join(s.config.Dir, p.File)
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s is gone, to which the next records belong: put it back (files before it may be moved away), or start with --restart-sink %s to deliver anew what the journal holds: %w", path, s.id, err)
	} else if err != nil {
		return nil, err
	}
	if err := s.trim(f, p); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// trim cuts the newest file to what counts of it.
func (s *Sink) trim(f *os.File, p *progress) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	switch size := info.Size(); {
	case size < p.Size:
		return fmt.Errorf("%s has %d bytes of the %d that were written to it: something else cut it: restore it from a copy, or start with --restart-sink %s to deliver anew what the journal holds", f.Name(), size, p.Size, s.id)
	case size > p.Size:
		s.config.Log.Info("the end of a file was not counted: its records are written again", "file", f.Name(), "bytes", size-p.Size)
		return f.Truncate(p.Size)
	}
	return nil
}
