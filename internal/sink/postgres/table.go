package postgres

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/holdline/scrape/framework"
	"github.com/holdline/scrape/internal/sink"
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
	// mapped tells that it is one of the records' own columns.
	mapped bool
}

var standard = []column{
	{name: "_key", types: []string{"text", "character varying"}, notNull: true},
	{name: "stream", types: []string{"text", "character varying"}, notNull: true},
	{name: "id", types: []string{"text", "character varying"}, optional: true},
	{name: "type", types: []string{"text", "character varying"}, notNull: true},
	{name: "time", types: []string{"timestamp with time zone"}, notNull: true},
}

// payload is there when the records have no columns of their own.
var payload = []column{
	{name: "data", types: []string{"text", "character varying", "json", "jsonb"}},
	{name: "raw", types: []string{"bytea"}, optional: true},
}

var kinds = map[framework.ColumnType][]string{
	framework.ColumnText:    {"text", "character varying"},
	framework.ColumnInteger: {"bigint"},
	framework.ColumnNumber:  {"numeric"},
	framework.ColumnBoolean: {"boolean"},
	framework.ColumnTime:    {"timestamp with time zone"},
	framework.ColumnJSON:    {"jsonb", "json"},
}

// CheckColumns tells whether a table can have columns of these names.
func CheckColumns(columns []framework.Column) error {
	return sink.CheckColumns(columns, "ctid", "xmin", "xmax", "cmin", "cmax", "tableoid")
}

// columnsOf are the columns of a table for records with these of their own.
func columnsOf(own []framework.Column) ([]column, error) {
	if len(own) == 0 {
		return slices.Concat(standard, payload), nil
	}
	if err := CheckColumns(own); err != nil {
		return nil, err
	}
	columns := slices.Clone(standard)
	for _, c := range own {
		types, ok := kinds[c.Type]
		if !ok {
			return nil, fmt.Errorf("the column %q is of an unknown type %q", c.Name, c.Type)
		}
		columns = append(columns, column{name: c.Name, types: types, notNull: c.Required, optional: !c.Required, mapped: true})
	}
	return columns, nil
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

// add is how the column comes into a table that has rows.
func (c *column) add() string {
	d := "ADD COLUMN " + quote(c.name) + " " + c.types[0]
	switch {
	case c.mapped: // what older rows would have there only a person knows
		return d
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
	notNull   bool
	// needs tells whether it must be given a value.
	needs bool
}

// querier is a transaction, or a connection without one.
type querier interface {
	Query(ctx context.Context, statement string, args ...any) (pgx.Rows, error)
}

func (s *Sink) readColumns(ctx context.Context, in querier) ([]found, error) {
	rows, err := in.Query(ctx, `SELECT attname::text, split_part(format_type(atttypid, atttypmod), '(', 1),
			attnotnull, attnotnull AND NOT atthasdef AND attidentity = ''
		FROM pg_attribute WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped`, s.table)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (f found, err error) {
		return f, row.Scan(&f.name, &f.typ, &f.notNull, &f.needs)
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
	if s.has, err = s.readColumns(ctx, tx); err != nil {
		return err
	}
	s.encoder = newEncoder(s.own, s.has)
	s.names = make([]string, len(s.columns))
	for i, c := range s.columns {
		s.names[i] = c.name
	}
	return tx.QueryRow(ctx, "SELECT "+stamp, s.table, s.names).Scan(&s.stamp)
}

// stamp is a text that changes when columns that are written to ($2, of the
// table $1) become others. The binary form of COPY would take a number for a
// time.
const stamp = `(SELECT coalesce(string_agg(concat_ws(' ', attname, atttypid, atttypmod), ',' ORDER BY attnum), '')
	FROM pg_attribute WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped AND attname::text = ANY($2))`

// checkTable adds the optional columns that the table lacks, and checks that
// the others fit and that none else needs a value.
func (s *Sink) checkTable(ctx context.Context, tx pgx.Tx, has []found) error {
	var missing, statements []string
	for i := range s.columns {
		c := &s.columns[i]
		at := slices.IndexFunc(has, func(f found) bool { return f.name == c.name })
		if at >= 0 {
			if err := s.fits(c, has[at]); err != nil {
				return err
			}
			has = slices.Delete(has, at, at+1)
			continue
		}
		added, err := s.addColumn(ctx, tx, c)
		if err != nil {
			return err
		} else if added {
			continue
		}
		missing, statements = append(missing, fmt.Sprintf("%q", c.name)), append(statements, s.alter(c.add()))
		if c.name == "_key" { // no row without its key
			statements = []string{s.alter("RENAME TO " + quote(s.name+"_old"))}
			break
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("table %s has no column %s: name another table, or run: %s;", s.table, strings.Join(missing, ", "), strings.Join(statements, "; "))
	}
	for _, f := range has {
		if f.needs {
			return fmt.Errorf("table %s has a column %q that must not be NULL and has no default, which this sink does not fill: name another table, or run: %s;",
				s.table, f.name, s.alter("ALTER COLUMN "+quote(f.name)+" DROP NOT NULL"))
		}
	}
	return nil
}

// fits checks that the column, which the table has, can take the values.
func (s *Sink) fits(c *column, f found) error {
	if !slices.Contains(c.types, f.typ) {
		return fmt.Errorf("table %s has a column %q of type %s: name another table, or run: %s;",
			s.table, c.name, f.typ, s.alter(fmt.Sprintf("ALTER COLUMN %s TYPE %s USING %s::%s", quote(c.name), c.types[0], quote(c.name), c.types[0])))
	}
	if f.notNull && !c.notNull {
		return fmt.Errorf("table %s has a column %q that must not be NULL, and some records have nothing for it: name another table, or run: %s;",
			s.table, c.name, s.alter("ALTER COLUMN "+quote(c.name)+" DROP NOT NULL"))
	}
	return nil
}

// addColumn adds a column that is optional, or one of the records' own while
// the table has no rows.
func (s *Sink) addColumn(ctx context.Context, tx pgx.Tx, c *column) (bool, error) {
	declared := c.declare()
	if !c.optional {
		if !c.mapped {
			return false, nil
		}
		var rows bool
		if err := tx.QueryRow(ctx, "SELECT EXISTS (SELECT FROM "+s.table+")").Scan(&rows); err != nil || rows {
			return false, err
		}
	}
	add := s.alter("ADD COLUMN " + declared)
	if _, err := tx.Exec(ctx, add); err != nil {
		return false, fmt.Errorf("column %q is missing and cannot be added (the table's owner can: %s;): %w", c.name, add, err)
	}
	s.log.Info("added a column to the table", "column", c.name)
	return true, nil
}

func (s *Sink) alter(how string) string { return "ALTER TABLE " + s.table + " " + how }

func (s *Sink) makeTable(ctx context.Context, tx pgx.Tx) error {
	decls := make([]string, len(s.columns))
	for i := range s.columns {
		decls[i] = s.columns[i].declare()
	}
	if err := s.make(ctx, tx, "CREATE TABLE "+s.table+" ("+strings.Join(decls, ", ")+")"); err != nil {
		return err
	}
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
