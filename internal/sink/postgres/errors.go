package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/holdline/scrape/framework"
	"github.com/jackc/pgx/v5/pgconn"
)

var (
	errClosed   = errors.New("the sink is not open")
	errChanged  = errors.New("the table's columns were changed: it is looked at again")
	errPatience = errors.New("the server did not answer in time")
)

// code is the server's code for err (SQLSTATE), empty when it is not its own.
func code(err error) string {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return e.Code
	}
	return ""
}

// notOfRows are the classes of the server's own errors that say nothing of a
// row: the connection, rights, transactions, statements that are wrong for every
// row, locks, resources, an operator, a foreign server, the server itself
// (https://www.postgresql.org/docs/current/errcodes-appendix.html). All others
// may be about the content of one: data that does not fit, a constraint, a
// value too long for an index or nested too deep, and what a trigger raises,
// which may have any class that its author has thought of, such as MY001.
var notOfRows = []string{
	"03", "08", "0A", "0B", "0F", "0L", "0P", "0Z", "24", "25", "26", "28", "2B", "2D", "2F", "34", "39", "3B", "3D", "3F",
	"40", "42", "53", "55", "57", "58", "72", "F0", "HV", "XX",
}

// refusesRow tells whether err may be about the content of a row.
func refusesRow(err error) bool {
	c := code(err)
	return len(c) == 5 && !slices.Contains(notOfRows, c[:2])
}

var remedies = map[string]string{
	"28P01": `the server refuses the user name or the password in "url": correct them`,
	"28000": `the server does not let this user in from here: correct "url", or have its pg_hba.conf allow it`,
	"3D000": `the database named in "url" does not exist: make it, or name another`,
	"3F000": "the schema does not exist: make it (CREATE SCHEMA), or name another",
	"42501": "this user may not do that: grant it the right",
	"42P01": "a table is gone: it is looked for again",
	"25006": `the server only reads (it may be a standby): name the primary in "url"`,
	"53100": "the server's disk is full: make room",
	"53200": "the server is out of memory",
	"53300": "the server has no connection left: end some, or raise its max_connections",
	"55P03": "another session holds the table or the position locked: end that session or its transaction",
	"57P01": "the server is being stopped",
	"57P03": "the server is starting or stopping",
}

// explain names the table and, where it is known, the remedy.
func (s *Sink) explain(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*framework.PositionError](err); ok {
		return err
	}
	if _, ok := errors.AsType[*framework.RecordError](err); ok {
		return err
	}
	if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
		err = fmt.Errorf("%w: %w", cause, err) // what ended the connection
	}
	if remedy := remedies[code(err)]; remedy != "" {
		return fmt.Errorf("postgres sink: table %s: %s: %w", s.table, remedy, err)
	}
	if _, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		return fmt.Errorf(`postgres sink: table %s: the server cannot be reached at %s: start it, or correct "url": %w`, s.table, s.config.Host, oneLine{err})
	}
	return fmt.Errorf("postgres sink: table %s: %w", s.table, err)
}

// oneLine is an error whose text is a list with a line for each attempt.
type oneLine struct{ error }

func (e oneLine) Error() string { return strings.Join(strings.Fields(e.error.Error()), " ") }
func (e oneLine) Unwrap() error { return e.error }
