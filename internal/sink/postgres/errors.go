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

// refusesRow tells whether err may be about the content of a row: data that
// does not fit, a constraint, a value too long for an index or nested too deep,
// a trigger's exception
// (https://www.postgresql.org/docs/current/errcodes-appendix.html).
func refusesRow(err error) bool {
	c := code(err)
	return c == "44000" || slices.ContainsFunc([]string{"21", "22", "23", "54", "P0"}, func(class string) bool { return strings.HasPrefix(c, class) })
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
