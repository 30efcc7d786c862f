// Package jsonl delivers records into files of JSON lines, exactly once in
// effect.
//
// The type is [Sink]: one line per record, files that follow each other by size
// or by age, and beside them a small file with the position, which says how
// long the newest file is, too. Files have no transactions, so the position is
// what counts: lines are on the disk before it says so, and what stands beyond
// it after a crash is cut off.
//
// It deliberately does not know the journal, where the records come from, or
// what is in their payloads.
package jsonl

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/gofrs/flock"
	"github.com/holdline/scrape/framework"
	"github.com/klauspost/compress/zstd"
)

const (
	// lockWait is how long Open and Write wait for another process that writes
	// for the same sink.
	lockWait  = 10 * time.Second
	lockRetry = 5 * time.Millisecond

	defaultMaxSize = 256 << 20
)

// Config says where the files lie and when a new one begins.
type Config struct {
	// Dir is the directory. It is made when missing. Any number of sinks may
	// share it: the names of their files begin with the sink's id and the
	// partition, as in demo+prices-0-00000001.jsonl.
	Dir string
	// A file that has MaxSize bytes, or was begun MaxAge ago, is left as it is
	// from then on, and the next batch begins another. 0 means 256 MiB, and
	// any age.
	MaxSize int64
	MaxAge  time.Duration
	// Compress makes each batch a frame of zstd: files end in .jsonl.zst, and
	// what was written can be read up to the last whole frame.
	Compress bool
	// Log is told when a file is begun or cut, and when records are removed.
	// Nil logs nothing.
	Log *slog.Logger
}

// Sink writes the records of one partition.
type Sink struct {
	config Config
	// lockWait is a field so that a test need not wait as long.
	lockWait time.Duration
	now      func() time.Time

	id        string
	partition int
	base      string // what the names of its files begin with; empty when closed
	lock      *flock.Flock
	zstd      *zstd.Encoder
	file      *os.File // the newest one; nil before the first Write
	buf, zbuf []byte   // of the last batch, kept for the next
	common    common
}

// New checks the configuration and touches nothing.
func New(c Config) (*Sink, error) {
	if c.Dir == "" || strings.ContainsRune(c.Dir, 0) {
		return nil, fmt.Errorf("jsonl sink: directory %q: name the directory of the files", c.Dir)
	}
	if c.MaxSize < 0 || c.MaxAge < 0 {
		return nil, fmt.Errorf("jsonl sink: files of %d bytes, begun %v ago, cannot be: neither may be negative", c.MaxSize, c.MaxAge)
	}
	if c.MaxSize == 0 {
		c.MaxSize = defaultMaxSize
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	s := &Sink{config: c, lockWait: lockWait, now: time.Now}
	if c.Compress {
		// One that only encodes whole batches: it starts nothing.
		enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20), zstd.WithLowerEncoderMem(true))
		if err != nil {
			return nil, fmt.Errorf("jsonl sink: zstd: %w", err)
		}
		s.zstd = enc
	}
	return s, nil
}

// Open implements [framework.Sink]. It makes the directory, and cuts off what
// was written without being counted.
func (s *Sink) Open(ctx context.Context, info framework.SinkInfo) (framework.Position, error) {
	if err := s.Close(); err != nil {
		return framework.Position{}, err
	}
	if err := os.MkdirAll(s.config.Dir, 0o755); err != nil {
		return framework.Position{}, fmt.Errorf("jsonl sink: %s cannot be made: make it, or choose another directory: %w", s.config.Dir, err)
	}
	base := escape(info.ID) + "-" + strconv.Itoa(info.Partition)
	s.id, s.partition = info.ID, info.Partition
	s.lock = flock.New(filepath.Join(s.config.Dir, "."+base+".lock"))
	s.base = base
	pos, err := s.open(ctx, info)
	if err != nil {
		_ = s.Close() // the first error is the one that tells
		s.base = ""
		return framework.Position{}, s.explain(err)
	}
	return pos, nil
}

func (s *Sink) open(ctx context.Context, info framework.SinkInfo) (framework.Position, error) {
	start := framework.Position{Journal: info.Journal, Partition: info.Partition}
	if err := s.acquire(ctx); err != nil {
		return start, err
	}
	defer s.release()
	p, err := s.readProgress()
	known := err == nil
	switch {
	case errors.Is(err, fs.ErrNotExist):
		// Files may be there whose position was removed: they stay.
		last, err := s.newest()
		if err != nil {
			return start, err
		}
		first := info.First()
		p = progress{Sink: s.id, Partition: s.partition, Journal: first.Journal, Seq: first.Seq, Event: first.Event, Number: last}
	case err != nil:
		return start, err
	}
	switch pos := p.position(); {
	case info.Restart > 0:
		p.Journal, p.Removing = info.Journal, info.Restart
		return start, s.remove(ctx, &p)
	case !known:
		return pos, s.writeProgress(&p)
	case pos.Journal != info.Journal && !info.Adopt:
		return pos, &framework.PositionError{Sink: info.ID, Want: start, Have: pos,
			Reason: s.config.Dir + " was filled from another journal: adopt it (its files stay, this journal is delivered from its beginning), or choose another directory"}
	}
	if p.Removing > 0 { // it was ended in the middle of that
		if err := s.remove(ctx, &p); err != nil {
			return start, err
		}
	}
	if err := s.cut(&p); err != nil {
		return p.position(), err
	}
	if pos := p.position(); pos.Journal == info.Journal {
		return pos, nil
	}
	p.Journal, p.Seq, p.Event = info.Journal, 0, 0
	return start, s.writeProgress(&p)
}

// Close implements [framework.Sink].
func (s *Sink) Close() error {
	if s.file == nil {
		return nil
	}
	err := s.file.Close()
	s.file = nil
	return s.explain(err)
}

// acquire keeps other writers of the same files away, waiting for them.
func (s *Sink) acquire(ctx context.Context) error {
	waiting, cancel := context.WithTimeoutCause(ctx, s.lockWait, errLocked)
	defer cancel()
	if _, err := s.lock.TryLockContext(waiting, lockRetry); err != nil {
		if ctx.Err() == nil && waiting.Err() != nil {
			return errLocked
		}
		return err
	}
	return nil
}

// release lets others write. It cannot fail in a way that matters: the lock
// goes with its descriptor.
func (s *Sink) release() { _ = s.lock.Unlock() }

// escape makes an id the beginning of a file's name; no two ids become one.
func escape(id string) string {
	var b strings.Builder
	for i := range len(id) {
		switch c := id[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '_', c == '-', c == '.' && i > 0:
			b.WriteByte(c)
		case c == '/':
			b.WriteByte('+')
		default:
			fmt.Fprintf(&b, "%%%02x", c)
		}
	}
	return b.String()
}

var (
	errClosed = errors.New("the sink is not open")
	errLocked = errors.New("another process writes for the same sink: end it")
)

// explain names the directory.
func (s *Sink) explain(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*framework.PositionError](err); ok {
		return err
	}
	if _, ok := errors.AsType[*framework.RecordError](err); ok {
		return err
	}
	if full(err) {
		return fmt.Errorf("jsonl sink: %s: there is no room for more: make room: %w", s.config.Dir, err)
	}
	return fmt.Errorf("jsonl sink: %s: %w", s.config.Dir, err)
}
