// Package journal is the durable ordered log that every event passes through,
// on NATS JetStream inside the process.
//
// [Journal] gathers what all streams of a partition receive into chunks and
// commits one chunk at a time, so that a chunk grows with the load; readers
// that keep up get it from memory. Each chunk carries its number, a checksum
// and the cursors of its streams, in the format that chunk.go describes.
//
// The package knows nothing of targets, records or sinks: a stream is a name,
// a cursor a string, a note bytes, and a sink a name that holds chunks back
// from retention.
package journal

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/gofrs/flock"

	"github.com/holdline/scrape/framework"
	"github.com/holdline/scrape/internal/disk"
)

// Durability says when a commit counts.
type Durability int

const (
	// SyncAlways syncs every chunk to disk before it counts: a power cut loses
	// nothing that was committed.
	SyncAlways Durability = iota
	// SyncEverySecond lets a chunk count once the operating system has it. A
	// crash of the program loses nothing; a power cut or a crash of the machine
	// loses up to the last second or so, with the cursors: a site that replays
	// is asked again from the older cursor. But a sink may by then hold records
	// that the journal has lost, and refuses to go on until it is told how.
	SyncEverySecond
)

// Defaults of [Config].
const (
	DefaultRetain      = 24 * time.Hour
	DefaultRetainBytes = 10 << 30
	DefaultChunkEvents = 4096
	DefaultChunkBytes  = 768 << 10
	DefaultLinger      = 5 * time.Millisecond
)

// Config says where the journal is and how it behaves. Zero fields mean the
// defaults.
type Config struct {
	// Dir is the journal's own directory; it is made when it is missing.
	Dir string
	// Partitions is the number of partitions of a new journal (default 1). A
	// journal that exists keeps its own.
	Partitions int
	// Retain and RetainBytes say how much is kept beyond what every sink has:
	// a chunk goes when it is older, or when there are more bytes.
	Retain      time.Duration
	RetainBytes int64
	// MaxBytes is what each partition is to take at most: it bounds RetainBytes.
	// Chunks that a sink holds are kept all the same: the engine decides about
	// them. 0 means three quarters of the space that the journal and what is
	// free on its disk take together.
	MaxBytes int64
	// KeepAll drops nothing: for commands that append without the sinks, whose
	// positions nobody knows then.
	KeepAll bool
	// Durability says when a commit counts.
	Durability Durability
	// ChunkEvents and ChunkBytes bound a chunk (a single larger event makes a
	// larger chunk, which is stored in parts).
	ChunkEvents, ChunkBytes int
	// Linger is the least time between the beginnings of two commits while
	// chunks are less than half full. The first entry after a quiet time is
	// committed at once.
	Linger time.Duration
	// Log receives what an operator should know; nil discards it.
	Log *slog.Logger
}

// messageBody is the most of a body that goes into one message. With what the
// header of a chunk takes, a message stays below 1 MiB, the limit of a NATS
// server that nobody has configured.
func (c *Config) messageBody() int { return c.ChunkBytes + 64<<10 }

const (
	// ackTimeout bounds one attempt to write a chunk.
	ackTimeout = 30 * time.Second
	// closeTimeout bounds how long Close tries to write what was gathered.
	closeTimeout = 10 * time.Second
	// spaceReserve is the free space below which nothing is written: the
	// server, once it has met a full disk, has to be started anew.
	spaceReserve = 64 << 20
)

// ErrClosed says that the journal was closed.
var ErrClosed = errors.New("journal: closed")

// Journal implements [framework.Journal].
type Journal struct {
	cfg   Config
	log   *slog.Logger
	lock  *flock.Flock
	id    framework.JournalID
	parts []*partition
	wg    sync.WaitGroup

	mu       sync.Mutex
	store    *store // nil while the server is down
	shut     bool   // Close was called
	ended    bool   // the server may not be started again
	closeErr error

	// closing ends normal work, abort the attempts to write.
	closing, abort chan struct{}

	// Seams for tests: what is sent, what is free, how far Resume looks back.
	send func(ctx context.Context, s *store, p int, last uint64, msg []byte) (uint64, error)
	free func(dir string) (uint64, error)

	tailBytes int
}

var _ framework.Journal = (*Journal)(nil)

// Open opens the journal in c.Dir, or makes one, and starts to serve it. The
// context governs opening only; the journal is in use until Close. A directory
// that another process holds is refused with *InUseError.
func Open(ctx context.Context, c Config) (*Journal, error) {
	if c.Dir == "" {
		return nil, errors.New("journal: no directory given")
	}
	setDefault(&c.Partitions, 1)
	setDefault(&c.Retain, DefaultRetain)
	setDefault(&c.RetainBytes, DefaultRetainBytes)
	setDefault(&c.ChunkEvents, DefaultChunkEvents)
	setDefault(&c.ChunkBytes, DefaultChunkBytes)
	setDefault(&c.Linger, DefaultLinger)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	j := &Journal{
		cfg:     c,
		log:     c.Log,
		closing: make(chan struct{}),
		abort:   make(chan struct{}),
		free:    disk.Free,

		tailBytes: tailBytes,
		send: func(ctx context.Context, s *store, p int, last uint64, msg []byte) (uint64, error) {
			return s.publish(ctx, chunkSubject(p), true, last, msg)
		},
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	var err error
	if j.lock, err = lockDir(c.Dir); err != nil {
		return nil, err
	}
	if err := j.open(ctx); err != nil {
		if j.store != nil {
			j.store.close()
		}
		return nil, errors.Join(err, j.lock.Close())
	}
	for _, p := range j.parts {
		j.wg.Go(p.run)
	}
	j.wg.Go(j.keep)
	return j, nil
}

// Exists tells whether there is a journal in the directory.
func Exists(dir string) bool {
	info, err := os.Stat(filepath.Join(dir, "nats"))
	return err == nil && info.IsDir()
}

func setDefault[T ~int | ~int64](v *T, d T) {
	if *v <= 0 {
		*v = d
	}
}

func (j *Journal) open(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	s, err := openStore(j.cfg.Dir, j.cfg.Durability, j.log)
	if err != nil {
		return err
	}
	j.store = s
	id, n, err := s.identify(ctx, j.cfg.Partitions)
	if err != nil {
		return err
	}
	j.id = id
	for i := range n {
		p := newPartition(j, i)
		if err := p.load(ctx, s); err != nil {
			return fmt.Errorf("journal: partition %d: %w", i, err)
		}
		j.parts = append(j.parts, p)
	}
	return nil
}

// Close commits what was gathered, ends all reading and stops the server. It
// returns an error when something that was appended could not be made durable
// within a few seconds. Nothing is left running. Further calls return the same.
func (j *Journal) Close() error {
	j.mu.Lock()
	if j.shut {
		j.mu.Unlock()
		j.wg.Wait()
		return j.closeErr
	}
	j.shut = true
	j.mu.Unlock()
	for _, p := range j.parts {
		p.mu.Lock()
		p.closing = true
		p.broadcast()
		p.mu.Unlock()
	}
	close(j.closing)
	t := time.AfterFunc(closeTimeout, func() { close(j.abort) })
	j.wg.Wait()
	t.Stop()

	j.mu.Lock()
	defer j.mu.Unlock()
	var errs []error
	for _, p := range j.parts {
		errs = append(errs, p.err) // the committer has ended: nobody writes it
	}
	if j.store != nil {
		j.store.close()
		j.store = nil
	}
	j.ended = true
	j.closeErr = errors.Join(append(errs, j.lock.Close())...)
	return j.closeErr
}

// ID implements [framework.Journal].
func (j *Journal) ID() framework.JournalID { return j.id }

// Partitions returns the number of partitions.
func (j *Journal) Partitions() int { return len(j.parts) }

// Partition implements [framework.Journal]: the FNV-1a 64-bit hash of the name
// modulo the number of partitions.
func (j *Journal) Partition(stream string) int {
	h := fnv.New64a()
	_, _ = h.Write([]byte(stream)) // never fails
	return int(h.Sum64() % uint64(len(j.parts)))
}

// Stream implements [framework.Journal].
func (j *Journal) Stream(_ context.Context, name string) (framework.StreamLog, error) {
	if name == "" {
		return nil, errors.New("journal: a stream needs a name")
	}
	if len(name) > MaxText {
		return nil, &SizeError{Stream: name[:64] + "…", What: "a stream name", Size: len(name), Limit: MaxText}
	}
	p := j.parts[j.Partition(name)]
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closing {
		return nil, ErrClosed
	}
	return &streamLog{p: p, state: p.state(name)}, nil
}

// Bounds implements [framework.Journal].
func (j *Journal) Bounds(partition int) (first, last uint64) {
	p := j.parts[partition]
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.first, p.last
}

// Sync implements [framework.Journal].
func (j *Journal) Sync(ctx context.Context) error {
	for _, p := range j.parts {
		if err := p.sync(ctx); err != nil {
			return err
		}
	}
	return nil
}

// SpaceError says that the disk is too full to write to.
type SpaceError struct {
	Dir        string
	Free, Need uint64
}

func (e *SpaceError) Error() string {
	return fmt.Sprintf("disk of %s is full: %d MiB free, %d MiB needed", e.Dir, e.Free>>20, (e.Need+1<<20-1)>>20)
}

// attempt tries once to make the message durable as number seq, the successor
// on its subject of the one with sequence tip. ErrFenced is
// final, any other error is worth another attempt.
func (j *Journal) attempt(p int, tip, seq uint64, msg []byte) error {
	need := spaceReserve + 2*uint64(len(msg))
	if free, err := j.free(j.cfg.Dir); err == nil && free < need {
		return &SpaceError{Dir: j.cfg.Dir, Free: free, Need: need}
	}
	s, err := j.serving()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(s.ctx, ackTimeout)
	defer cancel()
	got, err := j.send(ctx, s, p, tip, msg)
	switch {
	case errors.Is(err, errWrongLast):
		last, err := s.last(ctx, chunkStream(p), chunkSubject(p))
		switch {
		case err != nil:
			return j.renew(s, err)
		case last.same(seq, msg):
			return nil // an earlier attempt had succeeded, only its answer was lost
		}
		return fmt.Errorf("%w: its newest chunk is %d, and ours was %d", ErrFenced, last.seq, tip)
	case err != nil:
		return j.renew(s, err)
	case got != seq:
		return fmt.Errorf("%w: chunk %d was stored as %d", ErrFenced, seq, got)
	}
	return nil
}

// serving returns the store, starting the server when it is down.
func (j *Journal) serving() (*store, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.ended {
		return nil, ErrClosed
	}
	if j.store != nil {
		return j.store, nil
	}
	s, err := openStore(j.cfg.Dir, j.cfg.Durability, j.log)
	if err != nil {
		return nil, err
	}
	j.store = s
	return s, nil
}

// reading returns the store for a reader; nil while there is none.
func (j *Journal) reading() *store {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.store
}

// renew stops the server after an error that it may not recover from by itself
// (it never writes again after the first failed write). The next attempt
// starts it anew. It returns the error.
func (j *Journal) renew(s *store, err error) error {
	if refused(err) {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.store == s {
		j.store = nil
		s.close()
	}
	return err
}
