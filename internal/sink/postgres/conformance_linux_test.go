package postgres

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/holdline/scrape/auth"
	"github.com/holdline/scrape/framework"
	"github.com/holdline/scrape/internal/sink/postgres/postgrestest"
	"github.com/holdline/scrape/internal/sink/sinktest"
	"github.com/jackc/pgx/v5"
)

func TestConformance(t *testing.T) {
	var server *postgrestest.Server
	if !sinktest.Child() {
		// A killed process loses nothing that it has written: only a machine
		// that goes down does.
		server = postgrestest.Start(t, "fsync=off")
	}
	sinktest.Run(t, sinktest.Harness{
		Make: func(t *testing.T) string { return server.Database(t) },
		New: func(t *testing.T, address, table string) framework.Sink {
			return newSink(t, Config{URL: auth.NewSecret(address), Table: table})
		},
		Rows:      readRows,
		Values:    readValues,
		Precision: time.Microsecond,
		Alter: func(t *testing.T, address, table string) func() {
			postgrestest.Exec(t, address, "ALTER TABLE "+table+" RENAME COLUMN data TO payload")
			return func() { postgrestest.Exec(t, address, "ALTER TABLE "+table+" RENAME COLUMN payload TO data") }
		},
		Stall: func(t *testing.T, address string) func() { return lock(t, address, positionsTable) },
		Fill:  fill,
		Poison: func(t *testing.T, s framework.Sink) []byte {
			exec(t, s.(*Sink), "ALTER TABLE records ADD CHECK (octet_length(data) <> 10000)")
			return []byte(strings.Repeat("x", 10_000))
		},
		Kill: func(t *testing.T, _ string) func() {
			server.Kill(t)
			return func() { server.Restart(t) }
		},
		Wire: func(t *testing.T, address string) (string, func()) {
			wire := sinktest.NewWire(t, server.Dial, "commit\x00")
			return over(t, address, wire), wire.LoseAnswer
		},
	})
}

// over is the address of the same database over the wire.
func over(t *testing.T, address string, wire *sinktest.Wire) string {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	u.RawQuery = url.Values{"host": {"127.0.0.1"}, "port": {fmt.Sprint(wire.Addr().Port)}, "sslmode": {"disable"}}.Encode()
	return u.String()
}

func newSink(t *testing.T, c Config) *Sink {
	t.Helper()
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func connect(t *testing.T, address string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(context.Background(), address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

// exec runs a statement in the session of the open sink.
func exec(t *testing.T, s *Sink, statement string) {
	t.Helper()
	if _, err := s.conn.Exec(t.Context(), statement); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

// lock keeps everybody else from using the table.
func lock(t *testing.T, address, table string) (release func()) {
	t.Helper()
	conn := connect(t, address)
	if _, err := conn.Exec(t.Context(), "BEGIN; LOCK TABLE "+table); err != nil {
		t.Fatal(err)
	}
	return func() {
		if _, err := conn.Exec(context.Background(), "ROLLBACK"); err != nil {
			t.Error(err)
		}
	}
}

// fill lets no file of the sink's server process grow beyond 1 MiB, the size
// of a segment of the server's log, and has the table take more than that.
func fill(t *testing.T, address string, s framework.Sink) (free func()) {
	t.Helper()
	postgrestest.Exec(t, address, "ALTER TABLE records SET (fillfactor = 10)")
	return postgrestest.LimitFiles(t, s.(*Sink).conn.PgConn().PID(), 1<<20)
}

func readRows(t *testing.T, address, table string) []sinktest.Row {
	t.Helper()
	conn := connect(t, address)
	defer conn.Close(context.Background())
	rows, err := conn.Query(t.Context(), `SELECT _key, stream, coalesce(id, ''), type, time, coalesce(convert_to(data::text, 'UTF8'), raw) FROM `+table+`
		ORDER BY split_part(_key, '/', 1), split_part(_key, '/', 2)::int, split_part(_key, '/', 3)::bigint, split_part(_key, '/', 4)::int, split_part(_key, '/', 5)::int`)
	if err != nil {
		t.Fatal(err)
	}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (r sinktest.Row, err error) {
		err = row.Scan(&r.Key, &r.Stream, &r.ID, &r.Type, &r.Time, &r.Data)
		r.ID, r.Type = plain(t, r.ID), plain(t, r.Type)
		return r, err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func readValues(t *testing.T, address, table string, columns []framework.Column) map[string][]any {
	t.Helper()
	conn := connect(t, address)
	defer conn.Close(context.Background())
	names := "_key"
	for _, c := range columns {
		names += ", " + quote(c.Name)
		if c.Type == framework.ColumnNumber || c.Type == framework.ColumnJSON {
			names += "::text"
		}
	}
	rows, err := conn.Query(t.Context(), "SELECT "+names+" FROM "+table)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string][]any{}
	for rows.Next() {
		values, err := rows.Values()
		if err != nil {
			t.Fatal(err)
		}
		key := values[0].(string)
		all[key] = values[1:]
		for i, c := range columns {
			switch s, ok := all[key][i].(string); {
			case !ok:
			case c.Type == framework.ColumnNumber:
				all[key][i] = json.Number(s)
			case c.Type == framework.ColumnJSON:
				all[key][i] = json.RawMessage(s)
			default:
				all[key][i] = plain(t, s)
			}
		}
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return all
}

// plain takes back what sink.Text did.
func plain(t *testing.T, s string) string {
	t.Helper()
	digits, ok := strings.CutPrefix(s, `\x`)
	if !ok {
		return s
	}
	b, err := hex.DecodeString(digits)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
