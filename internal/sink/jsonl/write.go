package jsonl

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/holdline/scrape/framework"
)

// keptBuffer is how large a buffer is kept for the next batch.
const keptBuffer = 8 << 20

// Write implements [framework.Sink].
func (s *Sink) Write(ctx context.Context, b *framework.Batch) error {
	if s.base == "" {
		return s.explain(errClosed)
	}
	if err := s.acquire(ctx); err != nil {
		return s.explain(err)
	}
	defer s.release()
	return s.explain(s.write(b))
}

// write does everything from the position on the disk: another process may
// have moved it, and an earlier Write may have failed half way.
func (s *Sink) write(b *framework.Batch) error {
	p, err := s.readProgress()
	if errors.Is(err, fs.ErrNotExist) {
		return &framework.PositionError{Sink: s.id, Want: b.From, Have: framework.Position{Journal: b.From.Journal, Partition: s.partition},
			Reason: s.config.Dir + " has lost its position: " + s.progressPath() + " is gone"}
	} else if err != nil {
		return err
	}
	if have := p.position(); have != b.From {
		return &framework.PositionError{Sink: s.id, Want: b.From, Have: have,
			Reason: s.config.Dir + " is not where the batch begins: another writer moved it, or an answer was lost"}
	}
	if len(b.Records) > 0 {
		if err := s.append(&p, b.Records); err != nil {
			return err
		}
	}
	p.Seq, p.Event = b.To.Seq, b.To.Event
	return s.writeProgress(&p)
}

// append writes the records behind what counts, and makes them durable.
func (s *Sink) append(p *progress, records []framework.Record) error {
	lines, err := s.encode(records)
	if err != nil {
		return err
	}
	if now := s.now(); s.due(p, now) {
		err = s.begin(p)
		p.Begun = now.UTC()
	} else {
		err = s.current(p)
	}
	if err != nil {
		return err
	}
	_, err = s.file.WriteAt(lines, p.Size)
	if err == nil {
		err = s.file.Sync()
	}
	if err != nil {
		// Whoever reads along need not see half a batch; what stays is cut
		// before the next one.
		_ = s.file.Truncate(p.Size)
		return err
	}
	p.Size += int64(len(lines))
	return nil
}

func (s *Sink) encode(records []framework.Record) (lines []byte, err error) {
	lines = s.buf[:0]
	for i := range records {
		if lines, err = appendLine(lines, &records[i], &s.common); err != nil {
			return nil, err
		}
	}
	if s.buf = lines; cap(lines) > keptBuffer {
		s.buf = nil
	}
	if s.config.Compress {
		lines = s.zstd.EncodeAll(lines, s.zbuf[:0])
		if s.zbuf = lines; cap(lines) > keptBuffer {
			s.zbuf = nil
		}
	}
	return lines, nil
}

// begin makes the next file.
func (s *Sink) begin(p *progress) error {
	if err := s.Close(); err != nil {
		return err
	}
	p.Number++
	p.File, p.Size = s.name(p.Number), 0
	f, err := os.OpenFile(filepath.Join(s.config.Dir, p.File), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	s.file = f
	s.config.Log.Info("begins a file", "file", f.Name())
	return s.syncDir()
}

// current sees to it that s.file is the newest file, as long as it counts.
func (s *Sink) current(p *progress) error {
	path := filepath.Join(s.config.Dir, p.File)
	if s.file != nil && s.file.Name() == path {
		there, err := os.Stat(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		mine, err := s.file.Stat()
		if err != nil {
			return err
		}
		if there != nil && os.SameFile(there, mine) {
			return s.trim(s.file, p)
		}
	}
	if err := s.Close(); err != nil {
		return err
	}
	f, err := s.reopen(p)
	if err != nil {
		return fmt.Errorf("go on with the newest file: %w", err)
	}
	s.file = f
	return nil
}
