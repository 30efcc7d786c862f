package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/holdline/scrape/framework"
	"github.com/holdline/scrape/internal/sink"
)

// quote makes an identifier of a name; names that reach it hold no quotes
// except those read back from a database.
func quote(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

func (s *Sink) insertStatement(rows int) string {
	names := make([]string, len(s.columns))
	for i, c := range s.columns {
		names[i] = quote(c.name)
	}
	row := "(?" + strings.Repeat(",?", len(s.columns)-1) + ")"
	// OR ABORT overrides what a table made by hand may say: its ON CONFLICT
	// IGNORE would lose rows, and its ROLLBACK would end the transaction.
	return "INSERT OR ABORT INTO " + quote(s.table) + " (" + strings.Join(names, ", ") + ") VALUES " +
		row + strings.Repeat(","+row, rows-1)
}

// found is a column as the file describes it.
type found struct {
	name, kind string
	notNull    bool
	// needs tells whether it must be given a value.
	needs bool
}

func (s *Sink) readTable(ctx context.Context, tx *sql.Tx) (has []found, err error) {
	rows, err := tx.QueryContext(ctx, `SELECT name, type, "notnull", "notnull" AND dflt_value IS NULL AND NOT pk FROM pragma_table_info(?)`, s.table)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var f found
		if err := rows.Scan(&f.name, &f.kind, &f.notNull, &f.needs); err != nil {
			return nil, err
		}
		has = append(has, f)
	}
	return has, rows.Err()
}

// ensureTable makes the table when it is missing, and else sees to it that it
// can serve. It remembers how the table is then.
func (s *Sink) ensureTable(ctx context.Context, tx *sql.Tx) error {
	has, err := s.readTable(ctx, tx)
	if err != nil {
		return err
	}
	if len(has) == 0 {
		err = s.makeTable(ctx, tx)
	} else {
		err = s.checkTable(ctx, tx, has)
	}
	if err != nil {
		return err
	}
	if s.has, err = s.readTable(ctx, tx); err != nil {
		return err
	}
	s.schema, err = schemaVersion(ctx, tx)
	return err
}

// schemaVersion is a number that changes with every table of the file.
func schemaVersion(ctx context.Context, tx *sql.Tx) (n int64, err error) {
	return n, tx.QueryRowContext(ctx, "PRAGMA schema_version").Scan(&n)
}

// unchanged checks that the table is as Open left it: SQLite itself would take
// values for columns that have another meaning by now.
func (s *Sink) unchanged(ctx context.Context, tx *sql.Tx) error {
	n, err := schemaVersion(ctx, tx)
	if err != nil || n == s.schema {
		return err
	}
	has, err := s.readTable(ctx, tx)
	if err != nil {
		return err
	}
	if !slices.Equal(has, s.has) {
		return fmt.Errorf("the columns of table %q were changed: it is looked at again", s.table)
	}
	s.schema = n // another table was made
	return nil
}

// checkTable adds the optional columns of the records that the table lacks, and
// checks that the others fit and that none else needs a value.
func (s *Sink) checkTable(ctx context.Context, tx *sql.Tx, has []found) error {
	var missing, statements []string
	for _, c := range s.columns {
		// SQLite compares names of columns without case.
		at := slices.IndexFunc(has, func(f found) bool { return strings.EqualFold(f.name, c.name) })
		if at >= 0 {
			if err := s.fits(c, has[at]); err != nil {
				return err
			}
			has = slices.Delete(has, at, at+1)
			continue
		}
		if c.mapped {
			added, err := s.addColumn(ctx, tx, c)
			if err != nil {
				return err
			} else if added {
				continue
			}
			c.add = c.kind
		}
		missing = append(missing, fmt.Sprintf("%q", c.name))
		if c.name == "_key" {
			// A primary key cannot be added.
			statements = []string{s.setAside()}
			break
		}
		statements = append(statements, s.alter(strings.TrimSpace("ADD COLUMN "+quote(c.name)+" "+c.add)))
	}
	if len(missing) > 0 {
		return fmt.Errorf("table %q has no column %s: name another table, or run: %s;",
			s.table, strings.Join(missing, ", "), strings.Join(statements, "; "))
	}
	for _, f := range has {
		if f.needs {
			return fmt.Errorf("table %q has a column %q that must not be NULL and has no default, which this sink does not fill: name another table, or run: %s;",
				s.table, f.name, s.setAside())
		}
	}
	return nil
}

// fits checks that the column, which the table has, can take the values.
func (s *Sink) fits(c column, f found) error {
	if !c.mapped {
		return nil
	}
	if got := affinity(f.kind); !slices.Contains(c.affinities, got) {
		want := c.kind
		if want == "" {
			want = "none, which keeps all digits"
		}
		return fmt.Errorf("table %q has a column %q of type %q, which would change what is stored (its type would be %s): name another table, or run: %s;",
			s.table, f.name, f.kind, want, s.alter("RENAME COLUMN "+quote(f.name)+" TO "+quote(f.name+"_old")))
	}
	if f.notNull && !c.required {
		return fmt.Errorf("table %q has a column %q that must not be NULL, and some records have nothing for it: name another table, or run: %s;", s.table, f.name, s.setAside())
	}
	return nil
}

// addColumn adds a column of the records, unless it is a required one and the
// table has rows.
func (s *Sink) addColumn(ctx context.Context, tx *sql.Tx, c column) (bool, error) {
	if c.required {
		var rows bool
		if err := tx.QueryRowContext(ctx, "SELECT EXISTS (SELECT 1 FROM "+quote(s.table)+")").Scan(&rows); err != nil || rows {
			return false, err
		}
	}
	if _, err := tx.ExecContext(ctx, s.alter(strings.TrimSpace("ADD COLUMN "+quote(c.name)+" "+c.decl))); err != nil {
		return false, err
	}
	s.log.Info("added a column to the table", "column", c.name)
	return true, nil
}

func (s *Sink) alter(how string) string { return "ALTER TABLE " + quote(s.table) + " " + how }

// setAside is the statement that has the sink begin a table of its own.
func (s *Sink) setAside() string { return s.alter("RENAME TO " + quote(s.table+"_old")) }

func (s *Sink) makeTable(ctx context.Context, tx *sql.Tx) error {
	decls := make([]string, len(s.columns))
	for i, c := range s.columns {
		decls[i] = strings.TrimSpace(quote(c.name) + " " + c.decl)
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
// the journal when another journal's is given up, or when the sink is to begin
// anew, and where info has it when there is none.
func (s *Sink) openPosition(ctx context.Context, tx *sql.Tx, info framework.SinkInfo) (framework.Position, error) {
	start := framework.Position{Journal: info.Journal, Partition: info.Partition}
	if _, err := tx.ExecContext(ctx, makePositions); err != nil {
		return start, err
	}
	pos, err := s.readPosition(ctx, tx)
	switch {
	case info.Restart > 0 && (err == nil || errors.Is(err, sql.ErrNoRows)):
		if err := s.remove(ctx, tx, info); err != nil {
			return start, err
		}
	case err == nil && pos.Journal == info.Journal:
		return pos, nil
	case err == nil && !info.Adopt:
		return pos, &framework.PositionError{Sink: info.ID, Want: start, Have: pos,
			Reason: s.file + " was filled from another journal: adopt it (its rows stay, this journal is delivered from its beginning), or choose another file"}
	case err != nil && !errors.Is(err, sql.ErrNoRows):
		return start, err
	}
	if info.Restart == 0 && err != nil {
		start = info.First()
	}
	_, err = tx.ExecContext(ctx,
		`INSERT OR REPLACE INTO _scrape_positions (sink, partition, journal, seq, event, moved) VALUES (?, ?, ?, ?, ?, ?)`,
		s.id, s.partition, string(start.Journal), int64(start.Seq), start.Event, now())
	return start, err
}

// remove removes the records of the journal's partition from the chunk
// info.Restart on. Other targets may have theirs in the same table.
func (s *Sink) remove(ctx context.Context, tx *sql.Tx, info framework.SinkInfo) error {
	prefix, streams := sink.Belongings(info)
	res, err := tx.ExecContext(ctx, "DELETE FROM "+quote(s.table)+` WHERE _key > ?1 AND _key < ?2
		AND CAST(substr(_key, length(?1) + 1) AS INTEGER) >= ?3 AND substr(stream, 1, length(?4)) = ?4`,
		prefix, prefix+":", int64(info.Restart), streams) // ":" follows the digits
	if err != nil {
		return err
	}
	n, err := res.RowsAffected()
	if err == nil {
		s.log.Info("removed records that will be delivered again", "records", n)
	}
	return err
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
