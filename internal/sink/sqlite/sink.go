// Package sqlite delivers records into a table of a SQLite file, exactly once
// in effect.
//
// The type is [Sink]: one row per record, and the position in the same file,
// moved in the same transaction as the rows. Any number of sinks, of this
// process and of others, may use one file.
//
// It deliberately does not know the journal, where the records come from, or
// what is in their payloads.
package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/holdline/scrape/framework"
	"modernc.org/sqlite"
)

const (
	// lockWait is how long Open and Write wait for other programs to let go of
	// the file before they report that it is locked. For other sinks of this
	// process they wait as long as it takes.
	lockWait = 10 * time.Second
	// busyTimeout is how long SQLite itself waits. It cannot be interrupted, so
	// it is short and repeated: a context that ends is noticed in between.
	busyTimeout = 100 * time.Millisecond
)

// Config says which table of which file.
type Config struct {
	// File is the path of the database. It and its directory are made when
	// missing. Beside it SQLite keeps File-wal and File-shm while it is open.
	File string
	// Table is the table the records go to, "records" when empty: ASCII
	// letters, digits and underscores, not beginning with a digit, "sqlite_" or
	// "_scrape_". It is made when missing.
	Table string
	// Log is told when a table is made or gets a column, when records are
	// removed, and when another program holds the file.
	// Nil logs nothing.
	Log *slog.Logger
}

// Sink writes the records of one partition into one table. Two sinks of one
// target need two tables: the rows of both carry the same keys.
type Sink struct {
	file  string // as in Config, for messages
	path  string // absolute
	table string
	log   *slog.Logger
	// lockWait is a field so that a test need not wait as long.
	lockWait time.Duration

	id        string
	partition int
	db        *sql.DB // nil when closed; holds a single connection
	columns   []column
	has       []found // the table, as Open left it
	schema    int64   // and the file
	rows      int     // that many takes
	many, one *sql.Stmt
	args      []any // of one INSERT, kept for the next
}

var tableName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,62}$`)

// New checks the configuration and touches nothing.
func New(c Config) (*Sink, error) {
	if c.Table == "" {
		c.Table = "records"
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	lower := strings.ToLower(c.Table)
	if !tableName.MatchString(c.Table) || strings.HasPrefix(lower, "sqlite_") || strings.HasPrefix(lower, "_scrape_") {
		return nil, fmt.Errorf(`sqlite sink: table name %q: use up to 63 letters, digits and underscores, not beginning with a digit, "sqlite_" or "_scrape_"`, c.Table)
	}
	if c.File == "" || strings.ContainsRune(c.File, 0) {
		return nil, fmt.Errorf("sqlite sink: file name %q: name the database file", c.File)
	}
	path, err := filepath.Abs(c.File)
	if err != nil {
		return nil, fmt.Errorf("sqlite sink: file name %q: %w", c.File, err)
	}
	return &Sink{
		file: c.File, path: path, table: c.Table, lockWait: lockWait,
		log: c.Log.With("file", c.File, "table", c.Table),
	}, nil
}

// Query returns the file and a statement that shows what is in the table, for
// a person to run with any SQLite client, also while the sink is open.
func (s *Sink) Query() (file, statement string) {
	return s.file, fmt.Sprintf(
		`SELECT stream, count(*) AS "rows", count(DISTINCT id) AS ids, min(time) AS first, max(time) AS last FROM %s GROUP BY stream`,
		quote(s.table))
}

// Open implements [framework.Sink]. It makes the directory, the file, the
// tables and the optional columns that are missing.
func (s *Sink) Open(ctx context.Context, info framework.SinkInfo) (framework.Position, error) {
	if err := s.Close(); err != nil {
		return framework.Position{}, err
	}
	if err := os.MkdirAll(filepath.Dir(s.path), 0o755); err != nil {
		return framework.Position{}, fmt.Errorf("sqlite sink: %s: its directory cannot be made: make it, or choose another file: %w", s.file, err)
	}
	connector, err := sqlite.NewConnector(dsn(s.path))
	if err != nil {
		return framework.Position{}, s.explain(err)
	}
	if s.columns, err = columnsOf(info.Columns); err != nil {
		return framework.Position{}, s.explain(err)
	}
	s.rows = max(1, maxArguments/len(s.columns))
	s.id, s.partition = info.ID, info.Partition
	s.db = sql.OpenDB(connector)
	s.db.SetMaxOpenConns(1)
	pos, err := s.prepare(ctx, info)
	if err != nil {
		_ = s.Close() // the first error is the one that tells
		return framework.Position{}, s.explain(err)
	}
	return pos, nil
}

// prepare makes the tables ready, reads the position and prepares the inserts.
func (s *Sink) prepare(ctx context.Context, info framework.SinkInfo) (framework.Position, error) {
	tx, end, err := s.begin(ctx)
	if err != nil {
		return framework.Position{}, err
	}
	defer end()
	if err := s.ensureTable(ctx, tx); err != nil {
		return framework.Position{}, err
	}
	pos, err := s.openPosition(ctx, tx, info)
	if err != nil {
		return framework.Position{}, err
	}
	if err := tx.Commit(); err != nil {
		return framework.Position{}, err
	}
	if s.many, err = s.db.PrepareContext(ctx, s.insertStatement(s.rows)); err != nil {
		return framework.Position{}, err
	}
	s.one, err = s.db.PrepareContext(ctx, s.insertStatement(1))
	return pos, err
}

// Close implements [framework.Sink]. When no other connection has the file
// open, everything is in the database file itself afterwards, and the files
// beside it are gone.
func (s *Sink) Close() error {
	if s.db == nil {
		return nil
	}
	err := s.db.Close()
	s.db, s.many, s.one = nil, nil, nil
	return s.explain(err)
}

// turns has the sinks of this process that write to one file, by its path, do
// so one after the other, in the order in which they ask: SQLite gives the file
// to whoever asks at the right moment, which is the one that has just had it.
var turns sync.Map // of chan struct{}

// begin starts a writing transaction, waiting its turn, and for other programs
// that write to the file up to s.lockWait. The caller calls end when it needs
// the transaction no more: it is rolled back unless it was committed.
//
// The transaction itself does not follow ctx, its statements do: so it has
// ended when end returns, and not some time later in a goroutine of
// database/sql.
func (s *Sink) begin(ctx context.Context) (tx *sql.Tx, end func(), err error) {
	start, told := time.Now(), false
	held, _ := turns.LoadOrStore(s.path, make(chan struct{}, 1))
	turn := held.(chan struct{})
	select {
	case turn <- struct{}{}:
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
	defer func() {
		if err != nil {
			<-turn
		}
	}()
	for {
		if err := ctx.Err(); err != nil {
			return nil, nil, err
		}
		tx, err := s.db.BeginTx(context.WithoutCancel(ctx), nil)
		if err == nil {
			return tx, func() { _ = tx.Rollback(); <-turn }, nil
		}
		if code(err) != codeBusy || time.Since(start) > s.lockWait {
			return nil, nil, err
		}
		if !told && time.Since(start) > time.Second {
			s.log.Warn("waiting for another program that writes to the file")
			told = true
		}
		select { // some conflicts are reported without the busy timeout
		case <-ctx.Done():
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// dsn names path so that no character of it is taken for an option.
func dsn(path string) string {
	path = filepath.ToSlash(path)
	if !strings.HasPrefix(path, "/") {
		path = "/" + path // a Windows drive
	}
	options := url.Values{
		"_txlock": {"immediate"},
		"_pragma": {
			fmt.Sprintf("busy_timeout(%d)", busyTimeout.Milliseconds()),
			"journal_mode(WAL)",
			// A position counts only when it is durable: NORMAL would lose
			// the last transactions in a power cut.
			"synchronous(FULL)",
		},
	}
	u := url.URL{Scheme: "file", Path: path, RawQuery: options.Encode()}
	return u.String()
}

var errClosed = errors.New("the sink is not open")
