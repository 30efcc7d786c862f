package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdline/scrape/framework"
)

var info = framework.SinkInfo{ID: "demo/prices", Journal: "aaaabbbbccccdddd"}

// at is the position after the n-th event of the first chunk.
func at(n int) framework.Position {
	p := framework.Position{Journal: info.Journal}
	if n > 0 {
		p.Seq, p.Event = 1, n
	}
	return p
}

func record(n int) framework.Record {
	return framework.Record{
		Key:    framework.Key{Position: at(n), Record: 1},
		Stream: "demo/market", ID: "7", Type: "price_update",
		Time: time.Unix(int64(n), 0), Data: []byte("data"),
	}
}

func write(s *Sink, from int, records ...framework.Record) error {
	return s.Write(context.Background(), &framework.Batch{From: at(from), To: at(from + len(records)), Records: records})
}

// opened returns an open sink, on a new file unless c names one.
func opened(t *testing.T, c Config) *Sink {
	t.Helper()
	if c.File == "" {
		c.File = filepath.Join(t.TempDir(), "records.db")
	}
	s := newSink(t, c)
	t.Cleanup(func() { s.Close() })
	if _, err := s.Open(t.Context(), info); err != nil {
		t.Fatal(err)
	}
	return s
}

func queryStrings(t *testing.T, db *sql.DB, query string) []string {
	t.Helper()
	rows, err := db.Query(query)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	defer rows.Close()
	var all []string
	for rows.Next() {
		var v string
		if err := rows.Scan(&v); err != nil {
			t.Fatal(err)
		}
		all = append(all, v)
	}
	return all
}

// says checks that err has all parts in its text, and is meant to be tried again.
func says(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one that says %q", parts)
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error %q does not say %q", err, part)
		}
	}
	if _, ok := errors.AsType[*framework.RecordError](err); ok {
		t.Errorf("error %q is a *RecordError", err)
	}
	if _, ok := errors.AsType[*framework.PositionError](err); ok {
		t.Errorf("error %q is a *PositionError", err)
	}
}

func TestNewTouchesNothing(t *testing.T) {
	dir := t.TempDir()
	s := newSink(t, Config{File: filepath.Join(dir, "sub", "records.db")})
	if entries, _ := os.ReadDir(dir); len(entries) != 0 {
		t.Fatalf("New made %v", entries)
	}
	if _, err := s.Open(t.Context(), info); err != nil { // makes the directory
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestNewRefuses(t *testing.T) {
	for _, c := range []Config{
		{},
		{File: "a\x00b"},
		{File: "x.db", Table: "1st"},
		{File: "x.db", Table: `a"b`},
		{File: "x.db", Table: "a b"},
		{File: "x.db", Table: "preise_€"},
		{File: "x.db", Table: "SQLite_stat1"},
		{File: "x.db", Table: "_scrape_positions"},
		{File: "x.db", Table: strings.Repeat("a", 64)},
	} {
		if _, err := New(c); err == nil {
			t.Errorf("New(%+v) is content", c)
		} else if c.Table != "" && !strings.Contains(err.Error(), "letters, digits and underscores") {
			t.Errorf("New(%+v): %v: no remedy", c, err)
		}
	}
}

// What is in the file can never change: other programs read it.
func TestStoredForm(t *testing.T) {
	s := opened(t, Config{})
	plain, bare, binary := record(1), record(2), record(3)
	plain.Time = time.Date(2026, 1, 2, 3, 4, 5, 60, time.FixedZone("", 3600))
	bare.ID, bare.Data, bare.Time = "", nil, time.Date(2026, 1, 2, 2, 4, 5, 1e8, time.UTC)
	binary.Data, binary.Type, binary.Time = []byte("\xff"), "a\x00b", time.Date(2026, 1, 2, 2, 4, 6, 0, time.UTC)
	if err := write(s, 0, plain, bare, binary); err != nil {
		t.Fatal(err)
	}
	want := []string{
		`aaaabbbbccccdddd/0/1/1/1|'demo/market'|'7'|'price_update'|'2026-01-02T02:04:05.000000060Z'|'data'`,
		`aaaabbbbccccdddd/0/1/2/1|'demo/market'|NULL|'price_update'|'2026-01-02T02:04:05.100000000Z'|''`,
		`aaaabbbbccccdddd/0/1/3/1|'demo/market'|'7'|X'610062'|'2026-01-02T02:04:06.000000000Z'|X'FF'`,
	}
	if got := queryStrings(t, s.db, `SELECT concat_ws('|', _key, quote(stream), quote(id), quote(type), quote(time), quote(data)) FROM records ORDER BY time`); !slices.Equal(got, want) {
		t.Errorf("rows\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	want = []string{"demo/prices|0|aaaabbbbccccdddd|1|3|30"}
	if got := queryStrings(t, s.db, `SELECT concat_ws('|', sink, partition, journal, seq, event, length(moved)) FROM _scrape_positions`); !slices.Equal(got, want) {
		t.Errorf("positions %q, want %q", got, want)
	}
	want = []string{
		`CREATE TABLE "records" ("_key" TEXT NOT NULL PRIMARY KEY, "stream" TEXT NOT NULL, "id" TEXT, "type" TEXT NOT NULL, "time" TEXT NOT NULL, "data" NOT NULL)`,
		strings.Replace(makePositions, "IF NOT EXISTS ", "", 1),
	}
	if got := queryStrings(t, s.db, `SELECT sql FROM sqlite_schema WHERE type = 'table' ORDER BY name DESC`); !slices.Equal(got, want) {
		t.Errorf("tables %q, want %q", got, want)
	}
}

// A position may be purged from the journal once Write has returned, so the
// commit must be on the disk by then.
func TestDurable(t *testing.T) {
	s := opened(t, Config{})
	if got := queryStrings(t, s.db, "PRAGMA synchronous"); !slices.Equal(got, []string{"2"}) {
		t.Errorf("synchronous is %v, want 2 (FULL)", got)
	}
	if got := queryStrings(t, s.db, "PRAGMA journal_mode"); !slices.Equal(got, []string{"wal"}) {
		t.Errorf("journal_mode is %v, want wal", got)
	}
}

func TestOnlyTheFileRemains(t *testing.T) {
	for _, name := range []string{"records.db", "a b?c#d%20e&f=g;h.db", "file:x.db", ":memory:", "ü'\"$`.db"} {
		dir := t.TempDir()
		file := filepath.Join(dir, name)
		a := opened(t, Config{File: file})
		b := opened(t, Config{File: file, Table: "other"})
		if err := write(a, 0, record(1)); err != nil {
			t.Fatal(err)
		}
		if _, err := a.Open(t.Context(), info); err != nil { // leaves no first connection behind
			t.Fatal(err)
		}
		if err := errors.Join(a.Close(), b.Close()); err != nil {
			t.Fatal(err)
		}
		entries, err := os.ReadDir(dir)
		if err != nil || len(entries) != 1 || entries[0].Name() != name {
			t.Errorf("the directory holds %v (%v), want only %s", entries, err, name)
		}
		c := opened(t, Config{File: file})
		if got := queryStrings(t, c.db, "SELECT _key FROM records"); len(got) != 1 {
			t.Errorf("%s holds %v, want one row", name, got)
		}
	}
}

func TestQueryRuns(t *testing.T) {
	s := opened(t, Config{Table: "group"}) // a word of SQL
	if err := write(s, 0, record(1), record(2)); err != nil {
		t.Fatal(err)
	}
	file, statement := s.Query()
	rows, err := openDB(t, file).Query(statement)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var stream, first, last string
	var n, ids int
	if !rows.Next() || rows.Scan(&stream, &n, &ids, &first, &last) != nil || stream != "demo/market" || n != 2 || ids != 1 || first >= last {
		t.Errorf("%s gives %s %d %d %s %s", statement, stream, n, ids, first, last)
	}
}

func TestFilesThatCannotServe(t *testing.T) {
	dir := t.TempDir()
	note := filepath.Join(dir, "note.txt")
	if err := os.WriteFile(note, []byte(strings.Repeat("dear diary\n", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ file, says string }{
		{dir, "cannot be opened: see that it is a file"},
		{filepath.Join(note, "records.db"), "its directory cannot be made: make it"},
		{note, "is not a SQLite database: choose another file"},
	} {
		_, err := newSink(t, Config{File: c.file}).Open(t.Context(), info)
		says(t, err, c.file, c.says)
	}
}

func TestReadOnly(t *testing.T) {
	s := opened(t, Config{})
	exec(t, s.db, "PRAGMA query_only = on")
	says(t, write(s, 0, record(1)), s.file, "read-only for this user: make both writable")
}

func TestDiskFull(t *testing.T) {
	s := opened(t, Config{})
	exec(t, s.db, "PRAGMA max_page_count = 1")
	big := record(1)
	big.Data = make([]byte, 100_000)
	says(t, write(s, 0, big), s.file, "the disk is full: make room")
}

func TestDamaged(t *testing.T) {
	s := opened(t, Config{})
	if err := write(s, 0, record(1)); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(s.file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// All pages but the head of the file.
	if _, err := f.WriteAt(slices.Repeat([]byte{0x5a}, 5*4096-100), 100); err != nil {
		t.Fatal(err)
	}
	_, err = s.Open(t.Context(), info)
	says(t, err, s.file, "is damaged: restore it from a copy")
}

func TestLocked(t *testing.T) {
	s := opened(t, Config{})
	other := openDB(t, s.file)
	exec(t, other, "BEGIN IMMEDIATE")
	s.lockWait = busyTimeout
	says(t, write(s, 0, record(1)), s.file, "another program holds it locked: end that program")
	exec(t, other, "ROLLBACK")
	if err := write(s, 0, record(1)); err != nil {
		t.Fatalf("Write after the lock was released: %v", err)
	}
}

// Sinks of one process wait for each other however long it takes, and none
// passes another: what lockWait bounds is the wait for other programs.
func TestSinksTakeTurns(t *testing.T) {
	file := filepath.Join(t.TempDir(), "records.db")
	first := opened(t, Config{File: file})
	_, end, err := first.begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	second := newSink(t, Config{File: file, Table: "other"})
	t.Cleanup(func() { second.Close() })
	second.lockWait = 0
	answer := make(chan error, 1)
	go func() {
		other := info
		other.ID = "demo/other"
		_, err := second.Open(t.Context(), other)
		answer <- err
	}()
	select {
	case err := <-answer:
		t.Errorf("it did not wait its turn: %v", err)
	case <-time.After(3 * busyTimeout): // so long SQLite does not
	}
	end()
	if err := <-answer; err != nil {
		t.Error(err)
	}
}

func TestTableMadeByHand(t *testing.T) {
	for _, c := range []struct {
		name, schema string
		says         []string // none: it serves
	}{
		{"extra columns", "_KEY TEXT, stream, id, Type, time, data, note, seen DEFAULT 0 NOT NULL, n INTEGER PRIMARY KEY NOT NULL", nil},
		{"one missing", "_key TEXT PRIMARY KEY, stream, id, type, data", []string{`no column "time":`, `run: ALTER TABLE "records" ADD COLUMN "time" TEXT NOT NULL DEFAULT '';`}},
		{"three missing", "_key TEXT PRIMARY KEY, id, type, time", []string{`no column "stream", "data":`, `ADD COLUMN "stream" TEXT NOT NULL DEFAULT ''; ALTER TABLE "records" ADD COLUMN "data" NOT NULL DEFAULT '';`}},
		{"no key", "id, type", []string{`no column "_key":`, `run: ALTER TABLE "records" RENAME TO "records_old";`}},
		{"needs more", "_key TEXT PRIMARY KEY, stream, id, type, time, data, price NUMERIC NOT NULL", []string{`column "price" that must not be NULL`, `run: ALTER TABLE "records" RENAME TO "records_old";`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "records.db")
			db := openDB(t, file)
			exec(t, db, "CREATE TABLE records ("+c.schema+")")
			s := newSink(t, Config{File: file})
			t.Cleanup(func() { s.Close() })
			_, err := s.Open(t.Context(), info)
			if c.says != nil {
				says(t, err, append(c.says, file)...)
				_, statement, _ := strings.Cut(err.Error(), "run: ")
				exec(t, db, statement) // the remedy is one
				_, err = s.Open(t.Context(), info)
			}
			if err != nil {
				t.Fatalf("Open: %v", err)
			}
			if err := write(s, 0, record(1)); err != nil {
				t.Fatalf("Write: %v", err)
			}
		})
	}
}

// A row that is there although the position is before it is never taken for
// the one that is to be delivered.
func TestPositionTampered(t *testing.T) {
	s := opened(t, Config{})
	if err := write(s, 0, record(1), record(2), record(3)); err != nil {
		t.Fatal(err)
	}
	exec(t, s.db, "UPDATE _scrape_positions SET event = 1")
	err := write(s, 1, record(2), record(3), record(4))
	says(t, err, "record aaaabbbbccccdddd/0/1/2/1 is in table \"records\" already", "put it back", "name another table", "--restart-sink demo/prices")
	if stored, ok := errors.AsType[*framework.StoredError](err); !ok || stored.Key != record(2).Key {
		t.Errorf("%v is no *StoredError for the second record", err)
	}
	if got := queryStrings(t, s.db, "SELECT event FROM _scrape_positions"); got[0] != "1" {
		t.Errorf("the position moved to %s", got[0])
	}
}

func TestPositionGone(t *testing.T) {
	s := opened(t, Config{})
	if err := write(s, 0, record(1)); err != nil {
		t.Fatal(err)
	}
	exec(t, s.db, "DELETE FROM _scrape_positions")
	err := write(s, 1, record(2))
	e, ok := errors.AsType[*framework.PositionError](err)
	if !ok || e.Foreign() || e.Have != at(0) || !strings.Contains(e.Reason, "is gone") {
		t.Fatalf("error %v, want a *PositionError that has the beginning and says that the row is gone", err)
	}
}

// A record that this table refuses, or that has no RFC 3339 time, is at fault
// itself: it is named, and nothing of the batch stays, however it was refused.
func TestRecordRefused(t *testing.T) {
	future := record(2)
	future.Time = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)
	odd := record(2)
	odd.Data = []byte("odd")
	const table = "CREATE TABLE records (_key TEXT PRIMARY KEY ON CONFLICT IGNORE, stream, id, type, time, data"
	for _, c := range []struct {
		name, schema string
		bad          framework.Record
	}{
		{"year 10000", table + ")", future},
		{"check", table + ", CHECK (data <> 'odd') ON CONFLICT IGNORE)", odd},
		{"unique", table + " UNIQUE ON CONFLICT ROLLBACK)", odd},
		{"trigger", table + "); CREATE TRIGGER no BEFORE INSERT ON records WHEN new.data = 'odd' BEGIN SELECT raise(ROLLBACK, 'no'); END", odd},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "records.db")
			exec(t, openDB(t, file), c.schema)
			s := opened(t, Config{File: file})
			first, last := record(1), record(3)
			first.Data, last.Data = []byte("1"), []byte("3")
			if c.name == "unique" {
				first.Data = odd.Data
			}
			err := write(s, 0, first, c.bad, last)
			e, ok := errors.AsType[*framework.RecordError](err)
			if !ok || e.Key != c.bad.Key {
				t.Fatalf("error %v, want a *RecordError for %v", err, c.bad.Key)
			}
			if rows := queryStrings(t, s.db, "SELECT _key FROM records"); len(rows) != 0 {
				t.Errorf("rows %q were stored", rows)
			}
			if got := queryStrings(t, s.db, "SELECT seq FROM _scrape_positions"); got[0] != "0" {
				t.Errorf("the position moved to chunk %s", got[0])
			}
		})
	}
}

// A row of a table that ignores conflicts is not lost.
func TestTableThatIgnoresConflicts(t *testing.T) {
	file := filepath.Join(t.TempDir(), "records.db")
	exec(t, openDB(t, file), "CREATE TABLE records (_key TEXT PRIMARY KEY ON CONFLICT IGNORE, stream, id, type, time, data)")
	s := opened(t, Config{File: file})
	says(t, write(s, 0, record(1), record(2), record(2)), "is in table \"records\" already")
}
