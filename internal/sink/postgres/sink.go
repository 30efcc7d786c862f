// Package postgres delivers records into a table of a PostgreSQL database,
// exactly once in effect.
//
// The type is [Sink]: one row per record, sent by COPY, and the position in a
// table beside it, moved by compare-and-swap in the same transaction. So a
// batch costs hardly more than a plain COPY, and whatever happens to an answer,
// to the connection or to the server, no record is lost or doubled.
//
// It deliberately does not know the journal, where the records come from, or
// what is in their payloads.
package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"regexp"
	"strings"
	"time"

	"github.com/holdline/scrape/auth"
	"github.com/holdline/scrape/framework"
	"github.com/jackc/pgx/v5"
)

const (
	// patience is how long the server may take for one Open or one Write. What
	// it did by then is found out by the next Open.
	patience = 2 * time.Minute
	// restartPatience is how long it may take to remove what it has.
	restartPatience = time.Hour
	// lockWait is how long the server waits for locks that others hold.
	lockWait = 10 * time.Second
	// connectWait is how long connecting may take, unless the URL has a
	// connect_timeout.
	connectWait = 10 * time.Second
)

// Config says which table of which database.
type Config struct {
	// URL is a connection string as libpq takes it: a postgres:// URL, or
	// key=value pairs. PGHOST, PGUSER, ~/.pgpass and the like count, too.
	URL auth.Secret
	// Table is the table the records go to, "records" when empty, with a schema
	// in front of it or without: ASCII letters, digits and underscores, upper
	// and lower case being different. It is made when missing, its schema is not.
	Table string
	// Log is told when a table is made or gets a column, when records are
	// removed, and when the server answers before a commit is durable. Nil logs
	// nothing.
	Log *slog.Logger
}

// Sink writes the records of one partition into one table. Two sinks of one
// target need two tables: the rows of both carry the same keys.
type Sink struct {
	config    *pgx.ConnConfig
	name      string // of the table alone, as in Config
	table     string // quoted
	positions string // quoted, in the same schema
	log       *slog.Logger
	// These are fields so that a test need not wait as long.
	patience, lockWait time.Duration
	maxRow             int

	id        string
	partition int
	conn      *pgx.Conn // nil when closed
	own       []framework.Column
	columns   []column // of which are own the last
	names     []string // of the columns
	has       []found  // what the table has, as Open left it
	stamp     string   // and how its columns are
	encoder   encoder
	buf       []byte // of the last COPY, kept for the next
	warned    bool
}

var tableName = regexp.MustCompile(`^([A-Za-z_][A-Za-z0-9_]{0,62}\.)?[A-Za-z_][A-Za-z0-9_]{0,62}$`)

// New checks the configuration and connects to nothing.
func New(c Config) (*Sink, error) {
	if c.Table == "" {
		c.Table = "records"
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	schema, name, qualified := strings.Cut(c.Table, ".")
	if !qualified {
		name = c.Table
	}
	if !tableName.MatchString(c.Table) || strings.HasPrefix(name, "_scrape_") {
		return nil, fmt.Errorf(`postgres sink: table name %q: use up to 63 letters, digits and underscores, not beginning with a digit or "_scrape_", as in prices or market.prices`, c.Table)
	}
	if c.URL.IsZero() {
		return nil, errors.New(`postgres sink: "url" is empty: write it as postgres://user:password@host:5432/database`)
	}
	config, err := pgx.ParseConfig(c.URL.Reveal())
	if err != nil {
		// Its error quotes the URL, and not every password in it can be found.
		return nil, errors.New(`postgres sink: "url" is not understood, or names a file that cannot be read: write it as postgres://user:password@host:5432/database, a password with %XX for what is not a letter or a digit`)
	}
	// Nothing is left prepared in a session, so that PgBouncer may share them.
	config.DefaultQueryExecMode = pgx.QueryExecModeExec
	if config.ConnectTimeout == 0 {
		config.ConnectTimeout = connectWait
	}
	if config.RuntimeParams["application_name"] == "" {
		config.RuntimeParams["application_name"] = "scrape"
	}
	dialer := &net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 4}}
	config.DialFunc = dialer.DialContext
	s := &Sink{
		config: config, name: name, table: quote(name), positions: quote(positionsTable),
		log: c.Log.With("table", c.Table), patience: patience, lockWait: lockWait, maxRow: maxRow,
	}
	if qualified {
		s.table, s.positions = quote(schema)+"."+s.table, quote(schema)+"."+s.positions
	}
	return s, nil
}

// Destination tells tables apart, without a secret.
func (s *Sink) Destination() string {
	return fmt.Sprintf("%s:%d/%s/%s", s.config.Host, s.config.Port, s.config.Database, s.table)
}

// Open implements [framework.Sink]. It makes the tables and the columns that
// are missing.
func (s *Sink) Open(ctx context.Context, info framework.SinkInfo) (framework.Position, error) {
	if err := s.Close(); err != nil {
		return framework.Position{}, err
	}
	patience := s.patience
	if info.Restart > 0 {
		patience = max(patience, restartPatience)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, patience, errPatience)
	defer cancel()
	s.id, s.partition, s.own = info.ID, info.Partition, info.Columns
	pos, err := s.open(ctx, info)
	if err != nil {
		err = s.explain(ctx, err)
		_ = s.Close() // the first error is the one that tells
		return framework.Position{}, err
	}
	return pos, nil
}

func (s *Sink) open(ctx context.Context, info framework.SinkInfo) (pos framework.Position, err error) {
	if s.columns, err = columnsOf(info.Columns); err != nil {
		return pos, err
	}
	if s.conn, err = pgx.ConnectConfig(ctx, s.config); err != nil {
		return pos, err
	}
	if err := s.checkDurable(ctx); err != nil {
		return pos, err
	}
	if err := s.ensureTables(ctx); err != nil {
		return pos, err
	}
	return s.openPosition(ctx, info)
}

// checkDurable warns when a position that Write moved could be lost again.
func (s *Sink) checkDurable(ctx context.Context) error {
	var commit, fsync string
	err := s.conn.QueryRow(ctx, `SELECT current_setting('synchronous_commit'), current_setting('fsync')`).Scan(&commit, &fsync)
	if err != nil || s.warned || commit != "off" && fsync != "off" {
		return err
	}
	s.warned = true
	s.log.Warn("the server answers before a commit is on its disk: records that it had may be missing after it crashes; set synchronous_commit and fsync to on",
		"synchronous_commit", commit, "fsync", fsync)
	return nil
}

// closeWait is how long Close waits for the server to take leave.
const closeWait = 5 * time.Second

// Close implements [framework.Sink]. After a Write that was given up it waits
// for the server to notice, at most some 15 s when that does not answer at all.
func (s *Sink) Close() error {
	if s.conn == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeWait)
	defer cancel()
	// An error tells only that the connection was lost before: nothing that
	// was committed depends on it.
	_ = s.conn.Close(ctx)
	<-s.conn.PgConn().CleanupDone()
	s.conn = nil
	return nil
}

// begin starts a transaction. READ COMMITTED is what the compare-and-swap
// needs: after it has waited for another writer it sees what that one wrote.
func (s *Sink) begin(ctx context.Context) (pgx.Tx, error) {
	return s.conn.BeginTx(ctx, pgx.TxOptions{BeginQuery: fmt.Sprintf(
		"BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = %d", s.lockWait.Milliseconds())})
}

// rollback ends a transaction that was not committed. On a connection that
// broke there is nothing to do: the server ends it itself.
func rollback(tx pgx.Tx) {
	ctx, cancel := context.WithTimeout(context.Background(), closeWait)
	defer cancel()
	_ = tx.Rollback(ctx)
}
