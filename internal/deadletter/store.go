// Package deadletter keeps the events that could not be decoded or delivered,
// with their reasons, until a person has looked after them.
//
// The type is [Store], a SQLite file in the data directory. Two write to it:
// the consumer that [Store.Consumer] makes, which reads the journal with a
// position of its own and keeps every event that the decoder refuses, whether
// or not any sink works; and each sink, by [Store.Keep], before it passes over
// an event. So it is known which sinks have not got an event, and it can be
// appended again for just these.
//
// It deliberately does not know the journal: whoever has it appends again what
// [Store.Send] hands out.
package deadletter

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"modernc.org/sqlite"

	"github.com/holdline/scrape/framework"
)

// Limits of the store. Beyond them the oldest letters go, those that were
// retired first.
const (
	// KeepRetired is how long a letter is kept that every sink has got.
	KeepRetired = 7 * 24 * time.Hour
	// DefaultLimit is how many bytes of events are kept.
	DefaultLimit = 1 << 30
)

// Letter is a dead letter.
type Letter struct {
	// Event is where the event is in the journal: "journal/partition/seq/event".
	Event  string    `json:"event"`
	Stream string    `json:"stream"`
	ID     string    `json:"id"`
	Type   string    `json:"type"`
	Cursor string    `json:"cursor"`
	Time   time.Time `json:"time"` // when it was received
	Data   []byte    `json:"data"` // base64 in JSON: it may not be text
	// Reason is why the decoder or the first sink refused it.
	Reason string    `json:"reason"`
	Seen   time.Time `json:"seen"` // when it became a dead letter
	// Again is the letter that this one was before it was appended again.
	Again string `json:"again,omitempty"`
	// Missing are the sinks that have not got it.
	Missing []Refusal `json:"missing"`
	// Retired is when it was seen to have been appended again for all of them.
	Retired time.Time `json:"retired,omitzero"`
}

// Refusal says that a sink has not got an event, or one of its records.
type Refusal struct {
	Sink   string `json:"sink"`
	Record int    `json:"record,omitempty"` // 0: none of its records
	Reason string `json:"reason"`

	sent int64 // see unsure
}

// The tables can only grow: files out there hold them.
const tables = `
CREATE TABLE IF NOT EXISTS letters (
	event TEXT PRIMARY KEY, target TEXT NOT NULL, stream TEXT NOT NULL, id TEXT NOT NULL, type TEXT NOT NULL,
	cursor TEXT NOT NULL, time INTEGER NOT NULL, data BLOB, reason TEXT NOT NULL, seen INTEGER NOT NULL,
	again TEXT NOT NULL, retired INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS refusals (
	event TEXT NOT NULL, sink TEXT NOT NULL, record INTEGER NOT NULL, reason TEXT NOT NULL,
	retired INTEGER NOT NULL DEFAULT 0, sent INTEGER NOT NULL DEFAULT 0,
	PRIMARY KEY (event, sink, record)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS positions (
	consumer TEXT NOT NULL, partition INTEGER NOT NULL, journal TEXT NOT NULL, seq INTEGER NOT NULL, event INTEGER NOT NULL,
	PRIMARY KEY (consumer, partition)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS letters_seen ON letters (seen);`

// Store is the store of a data directory. It is safe for concurrent use, also
// by several processes.
type Store struct {
	path  string
	limit int64
	log   *slog.Logger

	sending sync.Mutex // one Send at a time

	mu   sync.Mutex // one writer at a time in this process
	db   *sql.DB
	size int64 // bytes of events, as far as this process knows
}

// Exists tells whether there is a store at the path.
func Exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// Open opens the store and makes it when it is missing. It keeps so many bytes
// of events; 0 means DefaultLimit. Nil logs nothing.
func Open(path string, limit int64, log *slog.Logger) (*Store, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if limit <= 0 {
		limit = DefaultLimit
	}
	absolute, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	// Made here, so that nobody else can read it: it holds what feeds brought.
	f, err := os.OpenFile(absolute, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("dead letters: %w", err)
	}
	f.Close()
	connector, err := sqlite.NewConnector(dsn(absolute))
	if err != nil {
		return nil, fmt.Errorf("dead letters: %s: %w", path, err)
	}
	s := &Store{path: path, limit: limit, log: log, db: sql.OpenDB(connector)}
	s.db.SetMaxOpenConns(1)
	if _, err = s.db.Exec(tables); err == nil {
		err = s.db.QueryRow(`SELECT coalesce(sum(length(data)), 0) FROM letters`).Scan(&s.size)
	}
	if err != nil {
		s.db.Close()
		return nil, s.explain(err)
	}
	return s, nil
}

// Close closes the file.
func (s *Store) Close() error { return s.db.Close() }

func dsn(path string) string {
	path = filepath.ToSlash(path)
	if !strings.HasPrefix(path, "/") {
		path = "/" + path // a Windows drive
	}
	options := url.Values{
		"_txlock": {"immediate"},
		"_pragma": {"busy_timeout(10000)", "journal_mode(WAL)", "synchronous(FULL)"},
	}
	return (&url.URL{Scheme: "file", Path: path, RawQuery: options.Encode()}).String()
}

func (s *Store) explain(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("dead letters: %s: %w", s.path, err)
}

// Keep keeps what a sink has refused or could not be made into its records; it
// returns once that is durable. What is kept already is not kept twice. It is
// [framework.Config.DeadLetters].
func (s *Store) Keep(letters []framework.DeadLetter) error {
	return s.explain(s.write(context.Background(), func(tx *sql.Tx) error {
		for i := range letters {
			l := &letters[i]
			event := l.Key.Position.String()
			if err := s.insert(tx, event, l.Stream, &l.Event, l.Reason); err != nil {
				return err
			}
			if _, err := tx.Exec(`INSERT OR IGNORE INTO refusals (event, sink, record, reason) VALUES (?, ?, ?, ?)`,
				event, l.Sink, l.Key.Record, l.Reason); err != nil {
				return err
			}
			// A sink that has been behind may find what was taken for settled.
			if _, err := tx.Exec(`UPDATE letters SET retired = 0 WHERE event = ? AND EXISTS
				(SELECT 1 FROM refusals r WHERE r.event = letters.event AND r.retired = 0)`, event); err != nil {
				return err
			}
		}
		return nil
	}))
}

// write runs f in a transaction, and makes room where it is needed.
func (s *Store) write(ctx context.Context, f func(*sql.Tx) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	size := s.size
	tx, err := s.db.BeginTx(context.WithoutCancel(ctx), nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if err := f(tx); err != nil {
		s.size = size
		return err
	}
	if s.size > s.limit {
		if err := s.makeRoom(tx); err != nil {
			s.size = size
			return err
		}
	}
	if err := tx.Commit(); err != nil {
		s.size = size
		return err
	}
	return nil
}

// insert keeps an event, unless it is kept already.
func (s *Store) insert(tx *sql.Tx, event, stream string, ev *framework.StoredEvent, reason string) error {
	target, _, _ := strings.Cut(stream, "/")
	again := ""
	if ev.Again != nil {
		again = ev.Again.Event
	}
	res, err := tx.Exec(`INSERT OR IGNORE INTO letters (event, target, stream, id, type, cursor, time, data, reason, seen, again)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		event, target, stream, ev.ID, ev.Type, string(ev.Cursor), ev.Time.UnixNano(), ev.Data, reason, time.Now().UnixNano(), again)
	if err != nil {
		return err
	}
	if n, err := res.RowsAffected(); err == nil && n > 0 {
		s.size += int64(len(ev.Data))
	}
	return nil
}

// makeRoom drops letters until a tenth of the room is free.
func (s *Store) makeRoom(tx *sql.Tx) error {
	rows, err := tx.Query(`SELECT event, coalesce(length(data), 0) FROM letters ORDER BY retired = 0, seen`)
	if err != nil {
		return err
	}
	defer rows.Close()
	var gone []string
	for s.size > s.limit-s.limit/10 && rows.Next() {
		var event string
		var n int64
		if err := rows.Scan(&event, &n); err != nil {
			return err
		}
		gone = append(gone, event)
		s.size -= n
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return err
	}
	s.log.Warn("the store of dead letters is full: the oldest ones go", "file", s.path, "limit", s.limit, "dropped", len(gone))
	for _, event := range gone {
		if err := remove(tx, event); err != nil {
			return err
		}
	}
	return nil
}

func remove(tx *sql.Tx, event string) error {
	if _, err := tx.Exec(`DELETE FROM refusals WHERE event = ?`, event); err != nil {
		return err
	}
	_, err := tx.Exec(`DELETE FROM letters WHERE event = ?`, event)
	return err
}
