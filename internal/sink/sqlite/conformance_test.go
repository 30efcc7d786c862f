package sqlite

import (
	"database/sql"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/holdline/scrape/framework"
	"github.com/holdline/scrape/internal/sink/sinktest"
	"modernc.org/sqlite"
	lib "modernc.org/sqlite/lib"
)

func TestConformance(t *testing.T) {
	sinktest.Run(t, sinktest.Harness{
		Make: func(t *testing.T) string { return filepath.Join(t.TempDir(), "records.db") },
		New: func(t *testing.T, address, table string) framework.Sink {
			return newSink(t, Config{File: address, Table: table})
		},
		Rows:   readRows,
		Values: readValues,
		Alter: func(t *testing.T, address, table string) func() {
			db := openDB(t, address)
			exec(t, db, "ALTER TABLE "+table+" RENAME COLUMN data TO payload")
			return func() { exec(t, db, "ALTER TABLE "+table+" RENAME COLUMN payload TO data") }
		},
		Stall: func(t *testing.T, address string) func() {
			db := openDB(t, address)
			exec(t, db, "BEGIN IMMEDIATE")
			return func() { exec(t, db, "ROLLBACK") }
		},
		Fill: func(t *testing.T, address string, s framework.Sink) func() {
			db := s.(*Sink).db
			exec(t, db, "PRAGMA max_page_count = 1") // as small as it is now
			return func() { exec(t, db, "PRAGMA max_page_count = 1000000000") }
		},
		Poison: func(t *testing.T, s framework.Sink) []byte {
			limitLength(t, s.(*Sink), 10_000)
			return make([]byte, 10_000)
		},
	})
}

func newSink(t *testing.T, c Config) *Sink {
	t.Helper()
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// limitLength lowers the largest value that the open sink can store.
func limitLength(t *testing.T, s *Sink, n int) {
	t.Helper()
	conn, err := s.db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := sqlite.Limit(conn, lib.SQLITE_LIMIT_LENGTH, n); err != nil {
		t.Fatal(err)
	}
}

// openDB opens the file as another program would.
func openDB(t *testing.T, file string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+file+"?_pragma=busy_timeout(10000)")
	if err != nil {
		t.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	t.Cleanup(func() { db.Close() })
	return db
}

func exec(t *testing.T, db *sql.DB, statement string, args ...any) {
	t.Helper()
	if _, err := db.Exec(statement, args...); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

func readRows(t *testing.T, file, table string) []sinktest.Row {
	t.Helper()
	if _, err := os.Stat(file); err != nil {
		t.Fatal(err)
	}
	db := openDB(t, file)
	defer db.Close()
	rows, err := db.Query("SELECT _key, stream, coalesce(id, ''), type, time, data FROM " + table + " ORDER BY rowid")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var all []sinktest.Row
	for rows.Next() {
		var r sinktest.Row
		var at string
		if err := rows.Scan(&r.Key, &r.Stream, &r.ID, &r.Type, &at, &r.Data); err != nil {
			t.Fatal(err)
		}
		if r.Time, err = time.Parse(time.RFC3339Nano, at); err != nil {
			t.Fatal(err)
		}
		all = append(all, r)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return all
}

func readValues(t *testing.T, file, table string, columns []framework.Column) map[string][]any {
	t.Helper()
	db := openDB(t, file)
	defer db.Close()
	names := "_key"
	for _, c := range columns {
		names += ", " + quote(c.Name)
	}
	rows, err := db.Query("SELECT " + names + " FROM " + table)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	all := map[string][]any{}
	for rows.Next() {
		var key string
		values, into := make([]any, len(columns)), []any{&key}
		for i := range values {
			into = append(into, &values[i])
		}
		if err := rows.Scan(into...); err != nil {
			t.Fatal(err)
		}
		for i, c := range columns {
			values[i] = plain(t, c, values[i])
		}
		all[key] = values
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return all
}

// plain takes back what valueOf did.
func plain(t *testing.T, c framework.Column, v any) any {
	t.Helper()
	if b, ok := v.([]byte); ok {
		v = string(b)
	}
	switch s, _ := v.(string); {
	case v == nil:
	case c.Type == framework.ColumnNumber:
		if f, ok := v.(float64); ok {
			return json.Number(strconv.FormatFloat(f, 'g', -1, 64))
		}
		return json.Number(fmt.Sprint(v))
	case c.Type == framework.ColumnBoolean:
		return v != int64(0)
	case c.Type == framework.ColumnTime:
		at, err := time.Parse(time.RFC3339Nano, s)
		if err != nil {
			t.Error(err)
		}
		return at
	case c.Type == framework.ColumnJSON:
		return json.RawMessage(s)
	}
	return v
}
