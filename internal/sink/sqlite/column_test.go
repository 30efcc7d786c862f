package sqlite

import (
	"encoding/json"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdline/scrape/framework"
)

var everyType = []framework.Column{
	{Name: "symbol", Type: framework.ColumnText, Required: true}, {Name: "volume", Type: framework.ColumnInteger}, {Name: "price", Type: framework.ColumnNumber, Required: true},
	{Name: "open", Type: framework.ColumnBoolean}, {Name: "seen", Type: framework.ColumnTime}, {Name: "rest", Type: framework.ColumnJSON},
}

func openedWith(t *testing.T, file string, columns ...framework.Column) (*Sink, error) {
	t.Helper()
	s := newSink(t, Config{File: file})
	t.Cleanup(func() { s.Close() })
	with := info
	with.Columns = columns
	_, err := s.Open(t.Context(), with)
	return s, err
}

func with(n int, values ...any) framework.Record {
	r := record(n)
	r.Values = values
	return r
}

// What is in the file can never change: other programs read it.
func TestStoredFormOfColumns(t *testing.T) {
	s, err := openedWith(t, filepath.Join(t.TempDir(), "records.db"), everyType...)
	if err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 1, 2, 3, 4, 5, 60, time.FixedZone("", 3600))
	if err := write(s, 0,
		with(1, "007", int64(1), json.Number("1.50"), true, at, json.RawMessage(`{"a": 1.0}`)),
		with(2, "a\x00b", nil, json.Number("123456789012345"), false, nil, nil),
		with(3, "", int64(-1), json.Number("0.1234567890123456"), nil, nil, nil),
		with(4, "\xff", nil, json.Number("9223372036854775808"), nil, nil, nil),
		with(5, "x", nil, json.Number("1e3"), nil, nil, nil),
	); err != nil {
		t.Fatal(err)
	}
	want := []string{
		`'007'|1|1.5|1|'2026-01-02T02:04:05.000000060Z'|'{"a": 1.0}'`,
		`X'610062'|NULL|123456789012345|0|NULL|NULL`,
		`''|-1|'0.1234567890123456'|NULL|NULL|NULL`,
		`X'FF'|NULL|'9223372036854775808'|NULL|NULL|NULL`,
		`'x'|NULL|1000.0|NULL|NULL|NULL`,
	}
	if got := queryStrings(t, s.db, `SELECT concat_ws('|', quote(symbol), quote(volume), quote(price), quote(open), quote(seen), quote(rest)) FROM records ORDER BY rowid`); !slices.Equal(got, want) {
		t.Errorf("rows\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	want = []string{`CREATE TABLE "records" ("_key" TEXT NOT NULL PRIMARY KEY, "stream" TEXT NOT NULL, "id" TEXT, "type" TEXT NOT NULL, "time" TEXT NOT NULL, ` +
		`"symbol" TEXT NOT NULL, "volume" INTEGER, "price" NOT NULL, "open" BOOLEAN, "seen" TEXT, "rest" TEXT)`}
	if got := queryStrings(t, s.db, `SELECT sql FROM sqlite_schema WHERE name = 'records'`); !slices.Equal(got, want) {
		t.Errorf("table %q, want %q", got, want)
	}
	file, statement := s.Query()
	if got := queryStrings(t, openDB(t, file), "SELECT \"rows\" FROM ("+statement+")"); !slices.Equal(got, []string{"5"}) {
		t.Errorf("%s gives %q", statement, got)
	}
}

// A table that was made by hand, or for other records, serves or is refused
// with a statement that has it serve.
func TestTableForColumns(t *testing.T) {
	const std = "_key TEXT PRIMARY KEY, stream, id, type, time"
	const row = "; INSERT INTO records (_key) VALUES ('k')"
	for _, c := range []struct {
		name, schema string
		says         []string // none: it serves
	}{
		{"other names of types", std + ", Symbol VARCHAR(20), volume BIGINT, price, open TINYINT, seen CLOB, rest)", nil},
		{"lacks optional ones", std + ", symbol, price)" + row, nil},
		{"empty and lacks all", std + ")", nil},
		{"lacks required ones", std + ", symbol TEXT)" + row, []string{`no column "price":`, `run: ALTER TABLE "records" ADD COLUMN "price";`}},
		{"double", std + ", symbol, price REAL)", []string{`column "price" of type "REAL", which would change what is stored`, `run: ALTER TABLE "records" RENAME COLUMN "price" TO "price_old";`}},
		{"decimal", std + ", symbol, price DECIMAL(10,2))", []string{`column "price" of type "DECIMAL(10,2)"`}},
		{"text of digits", std + ", symbol INT, price)", []string{`column "symbol" of type "INT"`, `its type would be TEXT`}},
		{"must not be NULL", std + ", symbol, price, volume INT NOT NULL)", []string{`column "volume" that must not be NULL, and some records have nothing for it`, `run: ALTER TABLE "records" RENAME TO "records_old";`}},
		{"with payload", std + ", data NOT NULL)", []string{`column "data" that must not be NULL and has no default`, `run: ALTER TABLE "records" RENAME TO "records_old";`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "records.db")
			db := openDB(t, file)
			exec(t, db, "CREATE TABLE records ("+c.schema)
			s, err := openedWith(t, file, everyType...)
			if c.says != nil {
				says(t, err, append(c.says, file, `"records"`)...)
				_, statement, _ := strings.Cut(err.Error(), "run: ")
				exec(t, db, statement)
				s, err = openedWith(t, file, everyType...)
			}
			if err != nil {
				t.Fatalf("Open: %v", err)
			}
			if err := write(s, 0, with(1, "007", int64(1), json.Number("1.50"), true, time.Now(), json.RawMessage(`{}`))); err != nil {
				t.Fatalf("Write: %v", err)
			}
			if got := queryStrings(t, s.db, "SELECT symbol || typeof(price) FROM records WHERE _key <> 'k'"); !slices.Equal(got, []string{"007real"}) {
				t.Errorf("the table holds %q", got)
			}
		})
	}
}

// A table that is another one by now is noticed before a row is written to it.
func TestTableMadeAnewUnderneath(t *testing.T) {
	file := filepath.Join(t.TempDir(), "records.db")
	price := framework.Column{Name: "price", Type: framework.ColumnNumber}
	s, err := openedWith(t, file, price)
	if err != nil {
		t.Fatal(err)
	}
	db := openDB(t, file)
	exec(t, db, "CREATE TABLE another (x)") // which is nothing to us
	if err := write(s, 0, with(1, json.Number("1"))); err != nil {
		t.Fatal(err)
	}
	exec(t, db, "DROP TABLE records")
	exec(t, db, "CREATE TABLE records (_key TEXT PRIMARY KEY, stream, id, type, time, price INTEGER)")
	says(t, write(s, 1, with(2, json.Number("1.5"))), file, `the columns of table "records" were changed: it is looked at again`)
	_, err = openedWith(t, file, price)
	says(t, err, `column "price" of type "INTEGER"`)
	if got := queryStrings(t, db, "SELECT _key FROM records"); len(got) != 0 {
		t.Errorf("the table holds %q", got)
	}
}

// What a table cannot compute of a record is the record's fault, also where
// SQLite has no code of its own for it.
func TestRecordThatCannotBeComputed(t *testing.T) {
	for name, schema := range map[string]string{
		"index":   "); CREATE INDEX i ON records (json_extract(data, '$.a'))",
		"check":   ", CHECK (json_extract(data, '$.a') IS NOT 5))",
		"trigger": "); CREATE TRIGGER t AFTER INSERT ON records BEGIN SELECT sum(9223372036854775807) FROM (SELECT 1 UNION ALL SELECT 2) WHERE new.data = 'odd'; END",
		"strict":  ") STRICT",
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "records.db")
			exec(t, openDB(t, file), "CREATE TABLE records (_key TEXT PRIMARY KEY, stream TEXT, id TEXT, type TEXT, time TEXT, data TEXT"+schema)
			s := opened(t, Config{File: file})
			first, odd, last := record(1), record(2), record(3)
			first.Data, odd.Data, last.Data = []byte("1"), []byte("odd"), []byte("3")
			if name == "strict" {
				odd.Data = []byte("\xff")
			}
			e, ok := errors.AsType[*framework.RecordError](write(s, 0, first, odd, last))
			if !ok || e.Key != odd.Key {
				t.Fatalf("error %v, want a *RecordError for %v", e, odd.Key)
			}
			if err := write(s, 0, first, last); err != nil {
				t.Errorf("Write without the record: %v", err)
			}
		})
	}
}
