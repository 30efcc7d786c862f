package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/holdline/scrape/framework"
)

// column is one column of the table and where its value comes from.
type column struct {
	name string
	// decl is how the column is declared when the table is made, add how it is
	// added to a table that has rows ("" when that is not possible).
	decl, add string
	value     func(*framework.Record) (any, error)
}

var columns = []column{
	{"_key", "TEXT NOT NULL PRIMARY KEY", "",
		func(r *framework.Record) (any, error) { return r.Key.String(), nil }},
	{"stream", "TEXT NOT NULL", "TEXT NOT NULL DEFAULT ''",
		func(r *framework.Record) (any, error) { return text(r.Stream), nil }},
	{"id", "TEXT", "TEXT",
		func(r *framework.Record) (any, error) {
			if r.ID == "" {
				return nil, nil
			}
			return text(r.ID), nil
		}},
	{"type", "TEXT NOT NULL", "TEXT NOT NULL DEFAULT ''",
		func(r *framework.Record) (any, error) { return text(r.Type), nil }},
	{"time", "TEXT NOT NULL", "TEXT NOT NULL DEFAULT ''",
		func(r *framework.Record) (any, error) { return timeText(r.Time) }},
	// Without a declared type SQLite converts nothing: "007" stays text.
	{"data", "NOT NULL", "NOT NULL DEFAULT ''",
		func(r *framework.Record) (any, error) { return text(string(r.Data)), nil }},
}

// text is how bytes are stored so that the very same bytes come back: TEXT
// where that is safe, else BLOB. Text with a NUL in it is a BLOB, too: SQLite
// keeps it whole, but its own functions, its shell and many clients end at the
// NUL (https://sqlite.org/nulinstr.html).
func text(s string) any {
	if utf8.ValidString(s) && strings.IndexByte(s, 0) < 0 {
		return s
	}
	return []byte(s)
}

// timeText is RFC 3339 in UTC with nine decimals always, so that the order of
// the texts is the order of the times.
func timeText(t time.Time) (string, error) {
	t = t.UTC()
	if y := t.Year(); y < 0 || y > 9999 {
		return "", fmt.Errorf("its time is in the year %d: RFC 3339 ends at 9999", y)
	}
	return t.Format("2006-01-02T15:04:05.000000000Z"), nil
}

// quote makes an identifier of a name; names that reach it hold no quotes
// except those read back from a database.
func quote(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

func (s *Sink) insertStatement(rows int) string {
	names := make([]string, len(columns))
	for i, c := range columns {
		names[i] = quote(c.name)
	}
	row := "(?" + strings.Repeat(",?", len(columns)-1) + ")"
	// OR ABORT overrides what a table made by hand may say: its ON CONFLICT
	// IGNORE would lose rows, and its ROLLBACK would end the transaction.
	return "INSERT OR ABORT INTO " + quote(s.table) + " (" + strings.Join(names, ", ") + ") VALUES " +
		row + strings.Repeat(","+row, rows-1)
}

// ensureTable makes the table when it is missing, and else checks that the
// columns are there and that no other column needs a value.
func (s *Sink) ensureTable(ctx context.Context, tx *sql.Tx) error {
	rows, err := tx.QueryContext(ctx, `SELECT name, "notnull" AND dflt_value IS NULL AND NOT pk FROM pragma_table_info(?)`, s.table)
	if err != nil {
		return err
	}
	defer rows.Close()
	has, needs := map[string]bool{}, map[string]bool{}
	for rows.Next() {
		var name string
		var needed bool
		if err := rows.Scan(&name, &needed); err != nil {
			return err
		}
		name = strings.ToLower(name) // as SQLite compares them
		has[name], needs[name] = true, needed
	}
	if err := rows.Err(); err != nil {
		return err
	}
	if len(has) == 0 {
		return s.makeTable(ctx, tx)
	}
	var missing, statements []string
	for _, c := range columns {
		delete(needs, c.name)
		if has[c.name] {
			continue
		}
		missing = append(missing, fmt.Sprintf("%q", c.name))
		if c.add == "" {
			// A primary key cannot be added.
			statements = []string{fmt.Sprintf("ALTER TABLE %s RENAME TO %s", quote(s.table), quote(s.table+"_old"))}
			break
		}
		statements = append(statements, fmt.Sprintf("ALTER TABLE %s ADD COLUMN %s %s", quote(s.table), quote(c.name), c.add))
	}
	if len(missing) > 0 {
		return fmt.Errorf("table %q has no column %s: name another table, or run: %s;",
			s.table, strings.Join(missing, ", "), strings.Join(statements, "; "))
	}
	for name, needed := range needs {
		if needed {
			return fmt.Errorf("table %q has a column %q that must not be NULL and has no default, which this sink does not fill: name another table, or run: ALTER TABLE %s DROP COLUMN %s;",
				s.table, name, quote(s.table), quote(name))
		}
	}
	return nil
}

func (s *Sink) makeTable(ctx context.Context, tx *sql.Tx) error {
	decls := make([]string, len(columns))
	for i, c := range columns {
		decls[i] = quote(c.name) + " " + c.decl
	}
	if _, err := tx.ExecContext(ctx, "CREATE TABLE "+quote(s.table)+" ("+strings.Join(decls, ", ")+")"); err != nil {
		return err
	}
	s.log.Info("made the table")
	return nil
}

// The progress table. It can never change: files out there hold it.
const makePositions = `CREATE TABLE IF NOT EXISTS _scrape_positions (
	sink TEXT, partition INTEGER, journal TEXT, seq INTEGER, event INTEGER, moved TEXT,
	PRIMARY KEY (sink, partition))`

// openPosition returns the position of the sink. It is put at the beginning of
// the journal when there is none, or when another journal's is given up.
func (s *Sink) openPosition(ctx context.Context, tx *sql.Tx, info framework.SinkInfo) (framework.Position, error) {
	start := framework.Position{Journal: info.Journal, Partition: info.Partition}
	if _, err := tx.ExecContext(ctx, makePositions); err != nil {
		return start, err
	}
	pos, err := s.readPosition(ctx, tx)
	switch {
	case err == nil && pos.Journal == info.Journal:
		return pos, nil
	case err == nil && !info.Adopt:
		return pos, &framework.PositionError{Sink: info.ID, Want: start, Have: pos,
			Reason: s.file + " was filled from another journal: adopt it (its rows stay, this journal is delivered from its beginning), or choose another file"}
	case err != nil && !errors.Is(err, sql.ErrNoRows):
		return start, err
	}
	_, err = tx.ExecContext(ctx,
		`INSERT OR REPLACE INTO _scrape_positions (sink, partition, journal, seq, event, moved) VALUES (?, ?, ?, 0, 0, ?)`,
		s.id, s.partition, string(info.Journal), now())
	return start, err
}

// readPosition returns sql.ErrNoRows when the sink has no position.
func (s *Sink) readPosition(ctx context.Context, tx *sql.Tx) (framework.Position, error) {
	pos := framework.Position{Partition: s.partition}
	err := tx.QueryRowContext(ctx, `SELECT journal, seq, event FROM _scrape_positions WHERE sink = ? AND partition = ?`,
		s.id, s.partition).Scan(&pos.Journal, &pos.Seq, &pos.Event)
	return pos, err
}

// movePosition moves the position from b.From to b.To.
func (s *Sink) movePosition(ctx context.Context, tx *sql.Tx, b *framework.Batch) error {
	res, err := tx.ExecContext(ctx, `UPDATE _scrape_positions SET seq = ?, event = ?, moved = ?
		WHERE sink = ? AND partition = ? AND journal = ? AND seq = ? AND event = ?`,
		b.To.Seq, b.To.Event, now(),
		s.id, s.partition, string(b.From.Journal), b.From.Seq, b.From.Event)
	if err != nil {
		return err
	}
	if n, err := res.RowsAffected(); err != nil || n == 1 {
		return err
	}
	refusal := &framework.PositionError{Sink: s.id, Want: b.From, Reason: s.file + " is not where the batch begins: another writer moved it, or an answer was lost"}
	refusal.Have, err = s.readPosition(ctx, tx)
	if errors.Is(err, sql.ErrNoRows) {
		refusal.Have = framework.Position{Journal: b.From.Journal, Partition: s.partition}
		refusal.Reason = s.file + " has lost its position: its row in _scrape_positions is gone"
		err = nil
	}
	if err != nil {
		return err
	}
	return refusal
}

func now() string {
	s, _ := timeText(time.Now()) // its year is not past 9999
	return s
}
