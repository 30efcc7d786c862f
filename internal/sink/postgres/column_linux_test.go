package postgres

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdline/scrape/auth"
	"github.com/holdline/scrape/framework"
	"github.com/holdline/scrape/internal/sink/postgres/postgrestest"
)

var everyType = []framework.Column{
	{Name: "symbol", Type: framework.ColumnText, Required: true}, {Name: "volume", Type: framework.ColumnInteger}, {Name: "price", Type: framework.ColumnNumber, Required: true},
	{Name: "open", Type: framework.ColumnBoolean}, {Name: "seen", Type: framework.ColumnTime}, {Name: "rest", Type: framework.ColumnJSON},
}

func openedWith(t *testing.T, address, table string, columns ...framework.Column) (*Sink, error) {
	t.Helper()
	s := newSink(t, Config{URL: auth.NewSecret(address), Table: table})
	t.Cleanup(func() { s.Close() })
	with := info
	with.ID, with.Columns = "demo/"+table, columns
	_, err := s.Open(t.Context(), with)
	return s, err
}

func with(n int, values ...any) framework.Record {
	r := record(n)
	r.Values = values
	return r
}

// values are of everyType, and fit.
func values() []any {
	return []any{"ACME", int64(1), json.Number("1.50"), true, time.Unix(1, 0), json.RawMessage(`{"a": 1.0}`)}
}

// What is in the database can never change: other programs read it.
func testColumnsStored(t *testing.T, server *postgrestest.Server) {
	address := server.Database(t)
	s, err := openedWith(t, address, "records", everyType...)
	if err != nil {
		t.Fatal(err)
	}
	if err := write(s, 0, with(1, values()...), with(2, "a\x00b", nil, json.Number("-0.000100"), false, nil, nil), with(3, `\x`, nil, json.Number("12e3"), nil, nil, nil)); err != nil {
		t.Fatal(err)
	}
	want := []string{`ACME|1|1.50|t|1970-01-01 00:00:01|{"a": 1.0}`, `\x610062|-|-0.000100|f|-|-`, `\x5c78|-|12000|-|-|-`}
	if got := queryStrings(t, address, `SELECT concat_ws('|', symbol, coalesce(volume::text, '-'), price, coalesce(left(open::text, 1), '-'), coalesce((seen AT TIME ZONE 'UTC')::text, '-'), coalesce(rest::text, '-')) FROM records ORDER BY _key`); !slices.Equal(got, want) {
		t.Errorf("rows\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	want = []string{"_key text true", "stream text true", "id text false", "type text true", "time timestamp with time zone true",
		"symbol text true", "volume bigint false", "price numeric true", "open boolean false", "seen timestamp with time zone false", "rest jsonb false"}
	if got := queryStrings(t, address, `SELECT concat_ws(' ', attname, format_type(atttypid, atttypmod), CASE WHEN attnotnull THEN 'true' ELSE 'false' END)
		FROM pg_attribute WHERE attrelid = 'records'::regclass AND attnum > 0 ORDER BY attnum`); !slices.Equal(got, want) {
		t.Errorf("table\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// A table that was made by hand, or for other records, serves or is refused
// with a statement that has it serve.
func testColumnsTable(t *testing.T, server *postgrestest.Server) {
	const std = "_key text PRIMARY KEY, stream text, id text, type text, time timestamptz"
	const row = "; INSERT INTO TABLE (_key) VALUES ('k')"
	address := server.Database(t)
	for i, c := range []struct {
		name, schema string
		says         []string // none: it serves
	}{
		{"other forms of types", std + ", symbol varchar(20), price numeric(10, 2), rest json)", nil},
		{"lacks optional ones", std + ", symbol text, price numeric)" + row, nil},
		{"empty and lacks all", std + ")", nil},
		{"with payload", std + ", data text, raw bytea)", nil},
		{"lacks required ones", std + ", symbol text)" + row, []string{`no column "price":`, `run: ALTER TABLE "TABLE" ADD COLUMN "price" numeric;`}},
		{"double", std + ", symbol text, price double precision)", []string{`column "price" of type double precision`, `run: ALTER TABLE "TABLE" ALTER COLUMN "price" TYPE numeric USING "price"::numeric;`}},
		{"integer", std + ", symbol text, price numeric, volume int)", []string{`column "volume" of type integer`, `TYPE bigint`}},
		{"must not be NULL", std + ", symbol text, price numeric, volume bigint NOT NULL DEFAULT 5)", []string{`column "volume" that must not be NULL, and some records have nothing for it`, `run: ALTER TABLE "TABLE" ALTER COLUMN "volume" DROP NOT NULL;`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			table := fmt.Sprintf("t%d", i)
			named := strings.NewReplacer("TABLE (", table+" (", "TABLE\"", table+"\"")
			postgrestest.Exec(t, address, "CREATE TABLE "+table+" ("+named.Replace(c.schema))
			s, err := openedWith(t, address, table, everyType...)
			if c.says != nil {
				for _, part := range c.says {
					says(t, err, named.Replace(part), `table "`+table+`"`)
				}
				_, statement, _ := strings.Cut(err.Error(), "run: ")
				postgrestest.Exec(t, address, statement)
				s, err = openedWith(t, address, table, everyType...)
			}
			if err != nil {
				t.Fatalf("Open: %v", err)
			}
			if err := write(s, 0, with(1, values()...)); err != nil {
				t.Fatalf("Write: %v", err)
			}
			if got := queryStrings(t, address, "SELECT symbol || price::text || rest::text FROM "+table+" WHERE _key <> 'k'"); !slices.Equal(got, []string{`ACME1.50{"a": 1.0}`}) {
				t.Errorf("the table holds %q", got)
			}
		})
	}
}

// Every way in which the server can refuse a value is the record's fault: it is
// named, and the others pass.
func testColumnsRefused(t *testing.T, server *postgrestest.Server) {
	const table = "CREATE TABLE records (_key text PRIMARY KEY, stream text, id text, type text, time timestamptz, symbol varchar(20), volume bigint, price numeric(5, 2), rest jsonb"
	columns := []framework.Column{everyType[0], everyType[1], everyType[2], everyType[5]}
	good := []any{"ACME", int64(1), json.Number("1"), nil}
	address := server.Database(t)
	for i, c := range []struct {
		name, schema string
		at           int
		value        any
	}{
		{"JSON with a NUL", table + ")", 3, json.RawMessage(`{"a": "\u0000"}`)},
		{"JSON with half a pair", table + ")", 3, json.RawMessage(`"\ud83e"`)},
		{"no JSON", table + ")", 3, json.RawMessage(`{"a": `)},
		{"JSON that is no UTF-8", table + ")", 3, json.RawMessage("\"\xff\"")},
		{"JSON nested too deep", table + ")", 3, json.RawMessage(strings.Repeat("[", 200_000) + strings.Repeat("]", 200_000))},
		{"number out of range", table + ")", 2, json.Number("1000")},
		{"number of too many digits", table + ")", 2, json.Number(strings.Repeat("1", 131_073))},
		{"number of too many digits after the point", table + ")", 2, json.Number("1e-16384")},
		{"number longer than its binary form may be", table + ")", 2, json.Number(strings.Repeat("1", 100_000))},
		{"too long", table + ")", 0, strings.Repeat("x", 21)},
		{"nothing", table + ", CHECK (volume IS NOT NULL))", 1, nil},
		{"check", table + ", CHECK (volume > 0))", 1, int64(0)},
		{"foreign key", "CREATE TABLE names (name text PRIMARY KEY); INSERT INTO names VALUES ('ACME'); " + table + ", FOREIGN KEY (symbol) REFERENCES names)", 0, "OTHER"},
		{"division", table + ", CHECK (10 / volume > 0))", 1, int64(0)},
		{"raise", table + "); CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN ASSERT new.volume <> 0; RETURN new; END $$; CREATE TRIGGER no BEFORE INSERT ON records FOR EACH ROW EXECUTE FUNCTION no()", 1, int64(0)},
	} {
		t.Run(c.name, func(t *testing.T) {
			table := fmt.Sprintf("t%d", i)
			postgrestest.Exec(t, address, strings.ReplaceAll(c.schema, "records", table))
			s, err := openedWith(t, address, table, columns...)
			if err != nil {
				t.Fatal(err)
			}
			bad := with(2, slices.Clone(good)...)
			bad.Values[c.at] = c.value
			err = write(s, 0, with(1, good...), bad, with(3, good...))
			e, ok := errors.AsType[*framework.RecordError](err)
			if !ok || e.Key != bad.Key {
				t.Fatalf("error %v, want a *RecordError for %v", err, bad.Key)
			}
			if err := write(s, 0, with(1, good...), with(3, good...)); err != nil { // without opening again
				t.Errorf("Write without the record: %v", err)
			}
		})
	}
}

// A column that takes the same bytes for something else is noticed before a row
// is written to it.
func testColumnsAltered(t *testing.T, server *postgrestest.Server) {
	address := server.Database(t)
	s, err := openedWith(t, address, "records", everyType...)
	if err != nil {
		t.Fatal(err)
	}
	if err := write(s, 0, with(1, values()...)); err != nil {
		t.Fatal(err)
	}
	postgrestest.Exec(t, address, "ALTER TABLE records ADD COLUMN note text DEFAULT 'none'") // which is nothing to us
	if err := write(s, 1, with(2, values()...)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ alter, says string }{
		{"ALTER COLUMN volume TYPE double precision", `column "volume" of type double precision`},
		{"ALTER COLUMN seen TYPE timestamp", `column "seen" of type timestamp without time zone`},
		{"ALTER COLUMN symbol TYPE bytea USING symbol::bytea", `column "symbol" of type bytea`},
		{"DROP COLUMN price", `no column "price"`},
	} {
		postgrestest.Exec(t, address, "ALTER TABLE records "+c.alter)
		says(t, write(s, 2, with(3, values()...)), "the table's columns were changed: it is looked at again")
		_, err := openedWith(t, address, "records", everyType...)
		says(t, err, c.says)
		_, statement, _ := strings.Cut(err.Error(), "run: ")
		if strings.Contains(c.alter, "bytea") {
			statement = "ALTER TABLE records ALTER COLUMN symbol TYPE text USING encode(symbol, 'escape')"
		}
		postgrestest.Exec(t, address, statement)
	}
	if rows := queryStrings(t, address, "SELECT _key FROM records"); len(rows) != 2 {
		t.Errorf("the table holds %q", rows)
	}
	// A dropped column that may be empty comes back by itself.
	postgrestest.Exec(t, address, "ALTER TABLE records DROP COLUMN rest")
	says(t, write(s, 2, with(3, values()...)), "the table's columns were changed: it is looked at again")
	if s, err = openedWith(t, address, "records", everyType...); err != nil {
		t.Fatal(err)
	}
	if err := write(s, 2, with(3, values()...)); err != nil {
		t.Fatal(err)
	}
}

// A row that is larger than the server could take is the record's fault, and is
// not sent.
func testTooLarge(t *testing.T, server *postgrestest.Server) {
	s := opened(t, server.Database(t), Config{})
	s.maxRow = 10_000
	large := record(2)
	large.Data = make([]byte, 10_000)
	e, ok := errors.AsType[*framework.RecordError](write(s, 0, record(1), large))
	if !ok || e.Key != large.Key || !strings.Contains(e.Error(), "PostgreSQL can store 10000") {
		t.Fatalf("error %v, want a *RecordError for %v", e, large.Key)
	}
	if err := write(s, 0, record(1)); err != nil {
		t.Fatal(err)
	}
}

// Whoever takes long to remove what it has is not given up, and who may not
// remove it is told so.
func testBeginAnew(t *testing.T, server *postgrestest.Server) {
	address := server.Database(t)
	s := opened(t, address, Config{})
	if err := write(s, 0, record(1), record(2)); err != nil {
		t.Fatal(err)
	}
	// Keys made by hand are nobody's.
	postgrestest.Exec(t, address, `INSERT INTO records (_key, stream, type, time) VALUES ('aaaabbbbccccdddd/0/x', 'demo/market', '', now()), ('aaaabbbbccccdddd/0/99999999999999999999/1/1', 'demo_/market', '', now())`)
	postgrestest.Exec(t, address, "CREATE ROLE clerk LOGIN PASSWORD '"+postgrestest.Password+"'; GRANT SELECT, INSERT, UPDATE ON _scrape_positions, records TO clerk")
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword("clerk", postgrestest.Password)
	anew := info
	anew.Restart = 1
	s = newSink(t, Config{URL: auth.NewSecret(u.String())})
	t.Cleanup(func() { s.Close() })
	s.patience = time.Nanosecond // is not what counts now
	_, err = s.Open(t.Context(), anew)
	says(t, err, "grant it the right", "permission denied for table records")
	if got := queryStrings(t, address, "SELECT event::text FROM _scrape_positions"); got[0] != "2" {
		t.Errorf("the position moved to %s", got[0])
	}
	postgrestest.Exec(t, address, "GRANT DELETE ON records TO clerk")
	if pos, err := s.Open(t.Context(), anew); err != nil || pos != at(0) {
		t.Fatalf("Open: %v, %v", pos, err)
	}
	if got := queryStrings(t, address, "SELECT count(*)::text FROM records"); got[0] != "2" {
		t.Errorf("%s rows are left, want the 2 made by hand", got[0])
	}
}
