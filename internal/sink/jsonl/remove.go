package jsonl

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// remove takes the records of the journal out of the files from the chunk
// p.Removing on, and puts the position at the beginning. Files have no
// transactions, so the position says first what is under way, and whoever finds
// it said does it again from the start: what was removed is not there to be
// removed twice. A file that was moved away keeps its records.
func (s *Sink) remove(ctx context.Context, p *progress) error {
	if p.File != "" {
		if err := s.settle(p); err != nil {
			return err
		}
	}
	last, err := s.newest()
	if err != nil {
		return err
	}
	// The next record begins a file.
	p.Number, p.File, p.Size, p.Seq, p.Event = max(last, p.Number), "", 0, 0, 0
	if err := s.writeProgress(p); err != nil {
		return err
	}
	prefix := fmt.Sprintf(`{"key":"%s/%d/`, p.Journal, p.Partition)
	removed := 0
	err = s.each(func(name string, _ int) error {
		n, err := s.rewrite(ctx, name, func(line []byte) bool {
			rest, ours := bytes.CutPrefix(line, []byte(prefix))
			digits, _, _ := bytes.Cut(rest, []byte("/"))
			chunk, err := strconv.ParseUint(string(digits), 10, 64)
			return !ours || err != nil || chunk < p.Removing
		})
		removed += n
		return err
	})
	if err != nil {
		return err
	}
	if err := s.syncDir(); err != nil {
		return err
	}
	s.config.Log.Info("removed records that will be delivered again; files that were moved away keep theirs", "records", removed)
	p.Removing = 0
	return s.writeProgress(p)
}

// settle cuts the newest file to what counts of it, durably. One that is gone or
// too short is taken as it is: whoever asks for a new beginning has given it up.
func (s *Sink) settle(p *progress) error {
	f, err := os.OpenFile(filepath.Join(s.config.Dir, p.File), os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	info, err := f.Stat()
	if err == nil && info.Size() > p.Size {
		err = errors.Join(f.Truncate(p.Size), f.Sync())
	}
	return errors.Join(err, f.Close())
}

// rewrite takes lines out of a file: all but those to keep, and one at its end
// that is torn. It returns how many those were, and leaves the file alone when
// there were none.
func (s *Sink) rewrite(ctx context.Context, name string, keep func(line []byte) bool) (removed int, err error) {
	path := filepath.Join(s.config.Dir, name)
	in, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer in.Close()
	part := filepath.Join(s.config.Dir, "."+s.base+".file.part")
	out, err := os.OpenFile(part, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
	if err != nil {
		return 0, err
	}
	kept, removed, err := filter(ctx, out, in, strings.HasSuffix(name, zstdEnding), keep)
	if err == nil {
		err = out.Sync()
	}
	err = errors.Join(err, out.Close())
	in.Close() // Windows replaces no open file
	switch {
	case err != nil:
		return removed, errors.Join(fmt.Errorf("%s: %w", path, err), os.Remove(part))
	case removed == 0:
		return 0, os.Remove(part)
	case kept == 0:
		return removed, errors.Join(os.Remove(path), os.Remove(part))
	}
	return removed, os.Rename(part, path)
}

// filter copies the lines that are to be kept.
func filter(ctx context.Context, out io.Writer, in io.Reader, compressed bool, keep func(line []byte) bool) (kept, removed int, err error) {
	to := bufio.NewWriterSize(out, 1<<20)
	from, end := in, to.Flush
	if compressed {
		dec, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1))
		if err != nil {
			return 0, 0, err
		}
		defer dec.Close()
		enc, err := zstd.NewWriter(out, zstd.WithEncoderConcurrency(1))
		if err != nil {
			return 0, 0, err
		}
		to.Reset(enc)
		from, end = dec, func() error { return errors.Join(to.Flush(), enc.Close()) }
	}
	defer func() { err = errors.Join(err, end()) }()
	lines := bufio.NewReaderSize(from, 1<<20)
	for {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			if len(line) > 0 || err == io.ErrUnexpectedEOF {
				removed++ // torn
			}
			return kept, removed, nil
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return kept, removed, err
		}
		if !keep(line) {
			removed++
			continue
		}
		kept++
		if _, err := to.Write(line); err != nil {
			return kept, removed, err
		}
	}
}
