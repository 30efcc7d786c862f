package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/holdline/scrape/framework"
	"github.com/jackc/pgx/v5"
)

// column is one column of the table. What goes into it: see encoder.
type column struct {
	name string
	// types are those that the column may have, the first when it is made.
	types []string
	// notNull is how the column is declared. optional ones are added to a
	// table that lacks them; for the others a person has to decide.
	notNull, optional bool
}

var columns = []column{
	{"_key", []string{"text", "character varying"}, true, false},
	{"stream", []string{"text", "character varying"}, true, false},
	{"id", []string{"text", "character varying"}, false, true},
	{"type", []string{"text", "character varying"}, true, false},
	{"time", []string{"timestamp with time zone"}, true, false},
	{"data", []string{"text", "character varying", "json", "jsonb"}, false, false},
	{"raw", []string{"bytea"}, false, true},
}

func (c *column) declare() string {
	switch {
	case c.name == "_key":
		return quote(c.name) + " " + c.types[0] + " PRIMARY KEY"
	case c.notNull:
		return quote(c.name) + " " + c.types[0] + " NOT NULL"
	}
	return quote(c.name) + " " + c.types[0]
}

// add is how the column comes into a table that may have rows.
func (c *column) add() string {
	d := "ADD COLUMN " + quote(c.name) + " " + c.types[0]
	switch {
	case c.notNull && c.name == "time":
		return d + " NOT NULL DEFAULT 'epoch'"
	case c.notNull:
		return d + " NOT NULL DEFAULT ''"
	}
	return d
}

// quote makes an identifier of a name.
func quote(name string) string { return pgx.Identifier{name}.Sanitize() }

// ddlLock keeps sinks that open at once from making the same table: CREATE
// TABLE IF NOT EXISTS alone fails when two run at the same moment. It is an
// advisory lock of the database, and its number means nothing.
const ddlLock = 0x7363726170650001

// ensureTables makes what is missing and checks the rest. What it has nothing
// to do for needs no right to make anything.
func (s *Sink) ensureTables(ctx context.Context) error {
	tx, err := s.begin(ctx)
	if err != nil {
		return err
	}
	defer rollback(tx)
	if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1)", int64(ddlLock)); err != nil {
		return err
	}
	if err := s.ensurePositions(ctx, tx); err != nil {
		return err
	}
	if err := s.ensureTable(ctx, tx); err != nil {
		return err
	}
	return tx.Commit(ctx)
}

// found is a column as the server describes it.
type found struct {
	name, typ string
	// needs tells whether it must be given a value.
	needs bool
}

// querier is a transaction, or a connection without one.
type querier interface {
	Query(ctx context.Context, statement string, args ...any) (pgx.Rows, error)
}

func (s *Sink) readColumns(ctx context.Context, in querier) ([]found, error) {
	rows, err := in.Query(ctx, `SELECT attname::text, split_part(format_type(atttypid, atttypmod), '(', 1),
			attnotnull AND NOT atthasdef AND attidentity = ''
		FROM pg_attribute WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped`, s.table)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (f found, err error) {
		return f, row.Scan(&f.name, &f.typ, &f.needs)
	})
}

// ensureTable makes the table when it is missing, and else sees to it that it
// can serve.
func (s *Sink) ensureTable(ctx context.Context, tx pgx.Tx) error {
	has, err := s.readColumns(ctx, tx)
	if err != nil {
		return err
	}
	if len(has) == 0 {
		if err := s.makeTable(ctx, tx); err != nil {
			return err
		}
	} else if err := s.checkTable(ctx, tx, has); err != nil {
		return err
	}
	s.has, err = s.readColumns(ctx, tx)
	return err
}

// checkTable adds the optional columns that the table lacks, and checks that
// the others fit and that none else needs a value.
func (s *Sink) checkTable(ctx context.Context, tx pgx.Tx, has []found) error {
	var missing, statements []string
	for i := range columns {
		c := &columns[i]
		at := slices.IndexFunc(has, func(f found) bool { return f.name == c.name })
		if at < 0 {
			alter := "ALTER TABLE " + s.table + " " + c.add()
			if c.optional {
				if _, err := tx.Exec(ctx, alter); err != nil {
					return fmt.Errorf("column %q is missing and cannot be added (the table's owner can: %s;): %w", c.name, alter, err)
				}
				s.log.Info("added a column to the table", "column", c.name)
				continue
			}
			missing, statements = append(missing, fmt.Sprintf("%q", c.name)), append(statements, alter)
			if c.name == "_key" { // no row without its key
				statements = []string{fmt.Sprintf("ALTER TABLE %s RENAME TO %s", s.table, quote(s.name+"_old"))}
				break
			}
			continue
		}
		f := has[at]
		has = slices.Delete(has, at, at+1)
		if !slices.Contains(c.types, f.typ) {
			return fmt.Errorf("table %s has a column %q of type %s: name another table, or run: ALTER TABLE %s ALTER COLUMN %s TYPE %s USING %s::%s;",
				s.table, c.name, f.typ, s.table, quote(c.name), c.types[0], quote(c.name), c.types[0])
		}
		if c.name == "data" {
			s.data = dataType(f.typ)
		}
		if f.needs && !c.notNull {
			return fmt.Errorf("table %s has a column %q that must not be NULL: name another table, or run: ALTER TABLE %s ALTER COLUMN %s DROP NOT NULL;",
				s.table, c.name, s.table, quote(c.name))
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("table %s has no column %s: name another table, or run: %s;", s.table, strings.Join(missing, ", "), strings.Join(statements, "; "))
	}
	for _, f := range has {
		if f.needs {
			return fmt.Errorf("table %s has a column %q that must not be NULL and has no default, which this sink does not fill: name another table, or run: ALTER TABLE %s ALTER COLUMN %s DROP NOT NULL;",
				s.table, f.name, s.table, quote(f.name))
		}
	}
	return nil
}

func (s *Sink) makeTable(ctx context.Context, tx pgx.Tx) error {
	decls := make([]string, len(columns))
	for i := range columns {
		decls[i] = columns[i].declare()
	}
	if err := s.make(ctx, tx, "CREATE TABLE "+s.table+" ("+strings.Join(decls, ", ")+")"); err != nil {
		return err
	}
	s.data = dataType("text")
	s.log.Info("made the table")
	return nil
}

// make runs a CREATE, and hands it to whoever may run it when this user may not.
func (s *Sink) make(ctx context.Context, tx pgx.Tx, create string) error {
	if _, err := tx.Exec(ctx, create); err != nil {
		return fmt.Errorf("it is missing and cannot be made (a user who may can run: %s;): %w", create, err)
	}
	return nil
}

// The progress table. It can never change: databases out there hold it.
const (
	positionsTable   = "_scrape_positions"
	positionsColumns = ` (sink text, partition integer, journal text, seq bigint, event bigint, moved timestamptz, PRIMARY KEY (sink, partition))`
)

func (s *Sink) ensurePositions(ctx context.Context, tx pgx.Tx) error {
	var there bool
	if err := tx.QueryRow(ctx, "SELECT to_regclass($1) IS NOT NULL", s.positions).Scan(&there); err != nil || there {
		return err
	}
	return s.make(ctx, tx, "CREATE TABLE "+s.positions+positionsColumns)
}

// openPosition returns the position of the sink. It is put at the beginning of
// the journal when there is none, or when another journal's is given up.
func (s *Sink) openPosition(ctx context.Context, info framework.SinkInfo) (framework.Position, error) {
	start := framework.Position{Journal: info.Journal, Partition: info.Partition}
	tx, err := s.begin(ctx)
	if err != nil {
		return start, err
	}
	defer rollback(tx)
	// FOR UPDATE waits for a transaction that an earlier connection of ours
	// left behind: what is read afterwards is how that one ended.
	pos, err := s.readPosition(ctx, tx, " FOR UPDATE")
	switch {
	case err == nil && pos.Journal == info.Journal:
		return pos, nil
	case err == nil && !info.Adopt:
		return pos, &framework.PositionError{Sink: info.ID, Want: start, Have: pos,
			Reason: "table " + s.table + " was filled from another journal: adopt it (its rows stay, this journal is delivered from its beginning), or choose another table"}
	case err == nil:
		_, err = tx.Exec(ctx, "UPDATE "+s.positions+" SET journal = $3, seq = 0, event = 0, moved = now() WHERE sink = $1 AND partition = $2",
			s.id, s.partition, string(info.Journal))
	case errors.Is(err, pgx.ErrNoRows):
		// Somebody else's, made this moment, stays as it is: the first Write
		// finds out.
		_, err = tx.Exec(ctx, "INSERT INTO "+s.positions+" (sink, partition, journal, seq, event, moved) VALUES ($1, $2, $3, 0, 0, now()) ON CONFLICT DO NOTHING",
			s.id, s.partition, string(info.Journal))
	}
	if err != nil {
		return start, err
	}
	return start, tx.Commit(ctx)
}

// readPosition returns pgx.ErrNoRows when the sink has no position.
func (s *Sink) readPosition(ctx context.Context, tx pgx.Tx, lock string) (framework.Position, error) {
	pos := framework.Position{Partition: s.partition}
	var journal string
	var seq int64
	err := tx.QueryRow(ctx, "SELECT journal, seq, event FROM "+s.positions+" WHERE sink = $1 AND partition = $2"+lock,
		s.id, s.partition).Scan(&journal, &seq, &pos.Event)
	pos.Journal, pos.Seq = framework.JournalID(journal), uint64(seq)
	return pos, err
}

// movePosition moves the position from b.From to b.To. Its lock on the row
// makes a second writer wait until the transaction ends.
func (s *Sink) movePosition(ctx context.Context, tx pgx.Tx, b *framework.Batch) error {
	tag, err := tx.Exec(ctx, "UPDATE "+s.positions+` SET seq = $1, event = $2, moved = now()
		WHERE sink = $3 AND partition = $4 AND journal = $5 AND seq = $6 AND event = $7`,
		int64(b.To.Seq), b.To.Event, s.id, s.partition, string(b.From.Journal), int64(b.From.Seq), b.From.Event)
	if err != nil || tag.RowsAffected() == 1 {
		return err
	}
	refusal := &framework.PositionError{Sink: s.id, Want: b.From, Reason: "table " + s.table + " is not where the batch begins: another writer moved it, or an answer was lost"}
	refusal.Have, err = s.readPosition(ctx, tx, "")
	if errors.Is(err, pgx.ErrNoRows) {
		refusal.Have = framework.Position{Journal: b.From.Journal, Partition: s.partition}
		refusal.Reason = "table " + s.table + " has lost its position: its row in " + s.positions + " is gone"
		err = nil
	}
	if err != nil {
		return err
	}
	return refusal
}
