package postgres

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdline/scrape/auth"
	"github.com/holdline/scrape/framework"
	"github.com/holdline/scrape/internal/sink/postgres/postgrestest"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
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

// opened returns an open sink.
func opened(t *testing.T, address string, c Config) *Sink {
	t.Helper()
	c.URL = auth.NewSecret(address)
	s := newSink(t, c)
	t.Cleanup(func() { s.Close() })
	if _, err := s.Open(t.Context(), info); err != nil {
		t.Fatal(err)
	}
	return s
}

func queryStrings(t *testing.T, address, query string) []string {
	t.Helper()
	conn := connect(t, address)
	defer conn.Close(context.Background())
	rows, err := conn.Query(t.Context(), query)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return all
}

// says checks that err has all parts in its text and no secret, and is meant
// to be tried again.
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
	for _, form := range []string{postgrestest.Password, "s3cret"} {
		if strings.Contains(err.Error(), form) {
			t.Errorf("error %q holds a password", err)
		}
	}
	if _, ok := errors.AsType[*framework.RecordError](err); ok {
		t.Errorf("error %q is a *RecordError", err)
	}
	if _, ok := errors.AsType[*framework.PositionError](err); ok {
		t.Errorf("error %q is a *PositionError", err)
	}
}

func TestNewRefuses(t *testing.T) {
	const good = "postgres://u:s3cret@h/d"
	for _, c := range []struct{ url, table, says string }{
		{"", "", `"url" is empty`},
		{"postgres://u:s3cret@h:port/d", "", `"url" is not understood`},
		{"postgres://u:s3cret%zz@h/d", "", `"url" is not understood`},
		{"host=h password='s3cret", "", `"url" is not understood`},
		{"postgres://u:s3cret@h/d?sslmode=maybe", "", `"url" is not understood`},
		{good, "1st", "letters, digits and underscores"},
		{good, `a"b`, "letters, digits and underscores"},
		{good, "a.b.c", "letters, digits and underscores"},
		{good, "a.", "letters, digits and underscores"},
		{good, ".a", "letters, digits and underscores"},
		{good, "_scrape_positions", "letters, digits and underscores"},
		{good, "a._scrape_positions", "letters, digits and underscores"},
		{good, strings.Repeat("a", 64), "letters, digits and underscores"},
	} {
		_, err := New(Config{URL: auth.NewSecret(c.url), Table: c.table})
		says(t, err, c.says)
	}
}

// The stories share a server, each in a database of its own.
func TestSink(t *testing.T) {
	server := postgrestest.Start(t, "fsync=off")
	for name, story := range map[string]func(*testing.T, *postgrestest.Server){
		"StoredForm": testStoredForm, "JSONColumn": testJSONColumn, "TableMadeByHand": testTableMadeByHand,
		"Schema": testSchema, "FewRights": testFewRights, "CannotConnect": testCannotConnect,
		"RecordRefused": testRecordRefused, "TriggerRefusesAll": testTriggerRefusesAll, "PositionTampered": testPositionTampered, "PositionGone": testPositionGone,
		"Locked": testLocked, "Silent": testSilent, "ReadOnly": testReadOnly, "RowsDropped": testRowsDropped,
		"Durable": testDurable, "LeftBehind": testLeftBehind, "TypesChanged": testTypesChanged,
		"ColumnsStored": testColumnsStored, "ColumnsTable": testColumnsTable, "ColumnsRefused": testColumnsRefused,
		"ColumnsAltered": testColumnsAltered, "TooLarge": testTooLarge, "BeginAnew": testBeginAnew,
	} {
		t.Run(name, func(t *testing.T) { story(t, server) })
	}
}

// What is in the database can never change: other programs read it.
func testStoredForm(t *testing.T, server *postgrestest.Server) {
	address := server.Database(t)
	s := opened(t, address, Config{})
	plain, bare, binary := record(1), record(2), record(3)
	plain.Time = time.Date(2026, 1, 2, 3, 4, 5, 6999, time.FixedZone("", 3600))
	bare.ID, bare.Data, bare.Time = "", nil, time.Date(1969, 12, 31, 23, 59, 59, 999_999_999, time.UTC)
	binary.Data, binary.Type, binary.ID = []byte("a\x00\xff"), "a\x00b", `\x`
	if err := write(s, 0, plain, bare, binary); err != nil {
		t.Fatal(err)
	}
	want := []string{
		`aaaabbbbccccdddd/0/1/1/1|demo/market|7|price_update|2026-01-02 02:04:05.000006+00|data|-`,
		`aaaabbbbccccdddd/0/1/2/1|demo/market|-|price_update|1969-12-31 23:59:59.999999+00||-`,
		`aaaabbbbccccdddd/0/1/3/1|demo/market|\x5c78|\x610062|1970-01-01 00:00:03+00|-|\x6100ff`,
	}
	if got := queryStrings(t, address, `SELECT concat_ws('|', _key, stream, coalesce(id, '-'), type, time AT TIME ZONE 'UTC' || '+00', coalesce(data, '-'), coalesce(raw::text, '-')) FROM records ORDER BY _key`); !slices.Equal(got, want) {
		t.Errorf("rows\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	want = []string{"demo/prices|0|aaaabbbbccccdddd|1|3|t"}
	if got := queryStrings(t, address, `SELECT concat_ws('|', sink, partition, journal, seq, event, moved BETWEEN now() - interval '1 hour' AND now()) FROM _scrape_positions`); !slices.Equal(got, want) {
		t.Errorf("positions %q, want %q", got, want)
	}
	want = []string{
		"_scrape_positions event bigint false", "_scrape_positions journal text false", "_scrape_positions moved timestamp with time zone false",
		"_scrape_positions partition integer true", "_scrape_positions seq bigint false", "_scrape_positions sink text true",
		"records _key text true", "records data text false", "records id text false", "records raw bytea false",
		"records stream text true", "records time timestamp with time zone true", "records type text true",
	}
	if got := queryStrings(t, address, `SELECT concat_ws(' ', c.relname, attname, format_type(atttypid, atttypmod), CASE WHEN attnotnull THEN 'true' ELSE 'false' END)
		FROM pg_attribute JOIN pg_class c ON c.oid = attrelid WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace AND attnum > 0
		ORDER BY c.relname, attname::text COLLATE "C"`); !slices.Equal(got, want) {
		t.Errorf("tables\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// A table whose data is json or jsonb gets what is JSON there, with all its
// digits, and the rest in raw.
func testJSONColumn(t *testing.T, server *postgrestest.Server) {
	for _, typ := range []string{"json", "jsonb"} {
		address := server.Database(t)
		postgrestest.Exec(t, address, "CREATE TABLE records (_key text PRIMARY KEY, stream text, id varchar, type varchar(20), time timestamptz, data "+typ+")")
		s := opened(t, address, Config{}) // which adds raw
		price, ping, smiley := record(1), record(2), record(3)
		price.Data, ping.Data, smiley.Data = []byte(`{"price": 12345678901234567890.1234567890}`), []byte("ping"), []byte(`"\ud83e\uddff"`)
		if err := write(s, 0, price, ping, smiley); err != nil {
			t.Fatal(err)
		}
		want := []string{`{"price": 12345678901234567890.1234567890}|12345678901234567890.1234567890|`, `||\x70696e67`, `smiley||`}
		got := queryStrings(t, address, `SELECT concat(CASE WHEN data::jsonb #>> '{}' = '🧿' THEN 'smiley' ELSE data::text END, '|', data->>'price', '|', raw) FROM records ORDER BY _key`)
		if !slices.Equal(got, want) {
			t.Errorf("%s holds %q, want %q", typ, got, want)
		}
		// JSON that PostgreSQL has no value for is at fault itself.
		if typ == "jsonb" {
			bad := record(5)
			bad.Data = []byte(`"\u0000"`)
			e, ok := errors.AsType[*framework.RecordError](write(s, 3, record(4), bad, record(6)))
			if !ok || e.Key != bad.Key {
				t.Errorf("error %v, want a *RecordError for %v", e, bad.Key)
			}
		}
	}
}

func testTableMadeByHand(t *testing.T, server *postgrestest.Server) {
	const all = "_key text PRIMARY KEY, stream text, id text, type text, time timestamptz, data text"
	for _, c := range []struct {
		name, schema string
		says         []string // none: it serves
	}{
		{"extra columns", all + ", raw bytea, note text, seen int NOT NULL DEFAULT 0, n int GENERATED ALWAYS AS IDENTITY, gone int", nil},
		{"optional ones missing", "_key text PRIMARY KEY, stream text, type text, time timestamptz, data text", nil},
		{"one missing", "_key text PRIMARY KEY, stream text, id text, type text, data text", []string{`no column "time":`, `run: ALTER TABLE "records" ADD COLUMN "time" timestamp with time zone NOT NULL DEFAULT 'epoch';`}},
		{"three missing", "_key text PRIMARY KEY, id text, time timestamptz", []string{`no column "stream", "type", "data":`}},
		{"no key", "id text, type text", []string{`no column "_key":`, `run: ALTER TABLE "records" RENAME TO "records_old";`}},
		{"other type", strings.Replace(all, "time timestamptz", "time date", 1), []string{`column "time" of type date`, `run: ALTER TABLE "records" ALTER COLUMN "time" TYPE timestamp with time zone`}},
		{"data needed", all + " NOT NULL", []string{`column "data" that must not be NULL`, `run: ALTER TABLE "records" ALTER COLUMN "data" DROP NOT NULL;`}},
		{"needs more", all + ", price numeric NOT NULL", []string{`column "price" that must not be NULL`, `run: ALTER TABLE "records" ALTER COLUMN "price" DROP NOT NULL;`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			address := server.Database(t)
			postgrestest.Exec(t, address, "CREATE TABLE records ("+c.schema+"); INSERT INTO records SELECT 'old' WHERE false")
			s := newSink(t, Config{URL: auth.NewSecret(address)})
			t.Cleanup(func() { s.Close() })
			_, err := s.Open(t.Context(), info)
			if c.says != nil {
				says(t, err, append(c.says, `table "records"`)...)
				_, statement, _ := strings.Cut(err.Error(), "run: ")
				postgrestest.Exec(t, address, statement) // the remedy is one
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

// A column gets another type while the sink is open: no record is at fault, and
// the sink goes on as soon as it has looked at the table again.
func testTypesChanged(t *testing.T, server *postgrestest.Server) {
	address := server.Database(t)
	s := opened(t, address, Config{})
	if err := write(s, 0, record(1)); err != nil {
		t.Fatal(err)
	}
	postgrestest.Exec(t, address, "ALTER TABLE records ALTER COLUMN time TYPE date")
	says(t, write(s, 1, record(2)), "columns were changed: it is looked at again")
	_, err := s.Open(t.Context(), info)
	says(t, err, `column "time" of type date`)
	_, statement, _ := strings.Cut(err.Error(), "run: ")
	postgrestest.Exec(t, address, statement)
	if _, err := s.Open(t.Context(), info); err != nil {
		t.Fatal(err)
	}
	postgrestest.Exec(t, address, "ALTER TABLE records ALTER COLUMN data TYPE jsonb USING to_jsonb(data)")
	says(t, write(s, 1, record(2)))
	if _, err := s.Open(t.Context(), info); err != nil {
		t.Fatal(err)
	}
	if err := write(s, 1, record(2)); err != nil {
		t.Fatal(err)
	}
	if got := queryStrings(t, address, "SELECT concat(data, '|', raw) FROM records ORDER BY _key"); !slices.Equal(got, []string{`"data"|`, `|\x64617461`}) {
		t.Errorf("the table holds %q", got)
	}
}

func testSchema(t *testing.T, server *postgrestest.Server) {
	address := server.Database(t)
	s := newSink(t, Config{URL: auth.NewSecret(address), Table: "Market.Group"})
	_, err := s.Open(t.Context(), info)
	says(t, err, `schema does not exist`, `CREATE SCHEMA`, `schema "Market"`)
	postgrestest.Exec(t, address, `CREATE SCHEMA "Market"`)
	s = opened(t, address, Config{Table: "Market.Group"})
	if err := write(s, 0, record(1)); err != nil {
		t.Fatal(err)
	}
	if got := queryStrings(t, address, `SELECT p.sink || g._key FROM "Market"."Group" g, "Market"._scrape_positions p`); !slices.Equal(got, []string{"demo/pricesaaaabbbbccccdddd/0/1/1/1"}) {
		t.Errorf("the schema holds %q", got)
	}
	if other := newSink(t, Config{URL: auth.NewSecret(address), Table: "Group"}); other.Destination() == s.Destination() || strings.Contains(s.Destination(), "s3cret") {
		t.Errorf("destinations are %s and %s", s.Destination(), other.Destination())
	}
}

// A user who may only write to what others made is enough, and one who may not
// is told what is missing.
func testFewRights(t *testing.T, server *postgrestest.Server) {
	address := server.Database(t)
	postgrestest.Exec(t, address, "CREATE ROLE guest LOGIN PASSWORD '"+postgrestest.Password+"'")
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword("guest", postgrestest.Password)
	s := newSink(t, Config{URL: auth.NewSecret(u.String())})
	t.Cleanup(func() { s.Close() })
	_, err = s.Open(t.Context(), info)
	says(t, err, "cannot be made", `can run: CREATE TABLE "_scrape_positions"`, "grant it the right")
	opened(t, address, Config{}).Close() // the owner makes the tables
	_, err = s.Open(t.Context(), info)
	says(t, err, "may not do that", "permission denied for table _scrape_positions")
	postgrestest.Exec(t, address, "GRANT SELECT, INSERT, UPDATE ON _scrape_positions TO guest")
	if _, err := s.Open(t.Context(), info); err != nil {
		t.Fatal(err)
	}
	says(t, write(s, 0, record(1)), "may not do that", "permission denied for table records")
	postgrestest.Exec(t, address, "GRANT INSERT ON records TO guest")
	if err := write(s, 0, record(1)); err != nil {
		t.Fatal(err)
	}
}

func testCannotConnect(t *testing.T, server *postgrestest.Server) {
	change := func(f func(*url.URL)) string {
		u, err := url.Parse(server.URL("postgres"))
		if err != nil {
			t.Fatal(err)
		}
		f(u)
		return u.String()
	}
	for _, c := range []struct{ url, says string }{
		{change(func(u *url.URL) { u.User = url.UserPassword("scrape", "s3cret-wrong") }), `refuses the user name or the password in "url"`},
		{change(func(u *url.URL) { u.User = url.User("scrape") }), `refuses the user name or the password in "url"`},
		{change(func(u *url.URL) { u.User = url.UserPassword("nobody", "s3cret-wrong") }), `refuses the user name or the password in "url"`},
		{change(func(u *url.URL) { u.Path = "/nowhere" }), `the database named in "url" does not exist`},
		// Nobody listens there, not even by chance: the system gives no such port.
		{"postgres://u:s3cret@127.0.0.1:1/d", `cannot be reached at 127.0.0.1: start it, or correct "url"`},
	} {
		s := newSink(t, Config{URL: auth.NewSecret(c.url)})
		_, err := s.Open(t.Context(), info)
		says(t, err, c.says, `table "records"`)
		if strings.Contains(err.Error(), "\n") {
			t.Errorf("error %q has more than one line", err)
		}
	}
}

// trigger ends a statement that makes the table records: it gets a trigger that
// does this with an odd row.
func trigger(what string) string {
	return "); CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF new.data = 'odd' THEN " + what + "; END IF; RETURN new; END $$; CREATE TRIGGER no BEFORE INSERT ON records FOR EACH ROW EXECUTE FUNCTION no()"
}

// A trigger that speaks of the server, of its disk or of locks, or that is wrong
// itself, says nothing of the row: the batch is tried again as it is.
func testTriggerRefusesAll(t *testing.T, server *postgrestest.Server) {
	odd := record(1)
	odd.Data = []byte("odd")
	for _, what := range []string{
		"RAISE 'closed for today' USING ERRCODE = '57P03'", "RAISE 'no room' USING ERRCODE = '53100'", "RAISE 'in use' USING ERRCODE = '55006'",
		"RAISE 'again' USING ERRCODE = '40001'", "RAISE 'no line' USING ERRCODE = '08006'", "INSERT INTO elsewhere VALUES (1)",
	} {
		address := server.Database(t)
		postgrestest.Exec(t, address, "CREATE TABLE records (_key text PRIMARY KEY, stream text, id text, type text, time timestamptz, data text"+trigger(what))
		s := opened(t, address, Config{})
		err := write(s, 0, odd)
		if _, ok := errors.AsType[*framework.RecordError](err); ok || err == nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// A record that the table refuses, or whose time PostgreSQL does not know, is
// at fault itself: it is named, and nothing of the batch stays.
func testRecordRefused(t *testing.T, server *postgrestest.Server) {
	future, odd := record(2), record(2)
	future.Time = time.Date(294276, 1, 1, 0, 0, 0, 0, time.UTC)
	odd.Data = []byte("odd")
	const table = "CREATE TABLE records (_key text PRIMARY KEY, stream text, id text, type varchar(20), time timestamptz, data text"
	long := record(2)
	long.Type = strings.Repeat("x", 21)
	large := record(2) // too large for an index, also when compressed
	for random := rand.New(rand.NewPCG(1, 2)); len(large.Data) < 9000; {
		large.Data = append(large.Data, "0123456789abcdefghijklmnopqrstuvwxyz"[random.IntN(36)])
	}
	for _, c := range []struct {
		name, schema string
		bad          framework.Record
	}{
		{"year 294276", table + ")", future},
		{"too long", table + ")", long},
		{"check", table + ", CHECK (data <> 'odd'))", odd},
		{"unique", table + " UNIQUE)", odd},
		{"unique at commit", table + " UNIQUE DEFERRABLE INITIALLY DEFERRED)", odd},
		{"trigger", table + trigger("RAISE 'no'"), odd},
		{"trigger with a code of its own", table + trigger("RAISE 'no' USING ERRCODE = 'MY001'"), odd},
		{"trigger with a code of the standard for users", table + trigger("RAISE 'no' USING ERRCODE = '45000'"), odd},
		{"trigger that knows no such case", table + trigger("CASE new.data WHEN 'even' THEN NULL; END CASE"), odd},
		{"constraint function with a code of its own", "CREATE FUNCTION is_even(text) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN IF $1 = 'odd' THEN RAISE 'no' USING ERRCODE = 'MY002'; END IF; RETURN true; END $$; " + table + ", CHECK (is_even(data)))", odd},
		{"index", table + "); CREATE INDEX ON records (data)", large},
	} {
		t.Run(c.name, func(t *testing.T) {
			address := server.Database(t)
			postgrestest.Exec(t, address, c.schema)
			s := opened(t, address, Config{})
			first, last := record(1), record(3)
			first.Data, last.Data = []byte("1"), []byte("3")
			if strings.HasPrefix(c.name, "unique") {
				first.Data = odd.Data
			}
			err := write(s, 0, first, c.bad, last)
			e, ok := errors.AsType[*framework.RecordError](err)
			if !ok || e.Key != c.bad.Key {
				t.Fatalf("error %v, want a *RecordError for %v", err, c.bad.Key)
			}
			if rows := queryStrings(t, address, "SELECT _key FROM records"); len(rows) != 0 {
				t.Errorf("rows %q were stored", rows)
			}
			if err := write(s, 0, first, last); err != nil { // without opening again
				t.Errorf("Write without the record: %v", err)
			}
		})
	}
}

// A row that is there although the position is before it is never taken for
// the one that is to be delivered.
func testPositionTampered(t *testing.T, server *postgrestest.Server) {
	address := server.Database(t)
	s := opened(t, address, Config{})
	if err := write(s, 0, record(1), record(2), record(3)); err != nil {
		t.Fatal(err)
	}
	postgrestest.Exec(t, address, "UPDATE _scrape_positions SET event = 1")
	err := write(s, 1, record(2), record(3), record(4))
	says(t, err, "record aaaabbbbccccdddd/0/1/2/1 is in table \"records\" already", "put it back", "name another table", "--restart-sink demo/prices")
	if stored, ok := errors.AsType[*framework.StoredError](err); !ok || stored.Key != record(2).Key {
		t.Errorf("%v is no *StoredError for the second record", err)
	}
	if got := queryStrings(t, address, "SELECT event::text FROM _scrape_positions"); got[0] != "1" {
		t.Errorf("the position moved to %s", got[0])
	}
}

func testPositionGone(t *testing.T, server *postgrestest.Server) {
	address := server.Database(t)
	s := opened(t, address, Config{})
	if err := write(s, 0, record(1)); err != nil {
		t.Fatal(err)
	}
	postgrestest.Exec(t, address, "DELETE FROM _scrape_positions")
	err := write(s, 1, record(2))
	e, ok := errors.AsType[*framework.PositionError](err)
	if !ok || e.Foreign() || e.Have != at(0) || !strings.Contains(e.Reason, "is gone") {
		t.Fatalf("error %v, want a *PositionError that has the beginning and says that the row is gone", err)
	}
	postgrestest.Exec(t, address, "DROP TABLE _scrape_positions")
	says(t, write(s, 1, record(2)), "a table is gone: it is looked for again")
}

func testLocked(t *testing.T, server *postgrestest.Server) {
	address := server.Database(t)
	s := opened(t, address, Config{})
	release := lock(t, address, "records")
	s.lockWait = 10 * time.Millisecond
	says(t, write(s, 0, record(1)), "another session holds the table or the position locked: end that session")
	release()
	if err := write(s, 0, record(1)); err != nil {
		t.Fatalf("Write after the lock was released: %v", err)
	}
}

// A transaction that a lost connection left behind decides where the sink is:
// Open waits for it.
func testLeftBehind(t *testing.T, server *postgrestest.Server) {
	address := server.Database(t)
	s := opened(t, address, Config{})
	if err := write(s, 0, record(1)); err != nil {
		t.Fatal(err)
	}
	left := connect(t, address)
	if _, err := left.Exec(t.Context(), "BEGIN; UPDATE _scrape_positions SET event = 3"); err != nil {
		t.Fatal(err)
	}
	type answer struct {
		pos framework.Position
		err error
	}
	opening := make(chan answer, 1)
	go func() {
		pos, err := s.Open(t.Context(), info)
		opening <- answer{pos, err}
	}()
	for len(queryStrings(t, address, "SELECT query FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()")) == 0 {
		select {
		case a := <-opening:
			t.Fatalf("Open did not wait: %v, %v", a.pos, a.err)
		case <-time.After(time.Millisecond):
		}
	}
	if _, err := left.Exec(t.Context(), "COMMIT"); err != nil {
		t.Fatal(err)
	}
	if a := <-opening; a.err != nil || a.pos != at(3) {
		t.Errorf("Open: %v, %v, want %v", a.pos, a.err, at(3))
	}
}

// A server that says nothing at all does not hold a sink for ever.
func testSilent(t *testing.T, server *postgrestest.Server) {
	address := server.Database(t)
	s := opened(t, address, Config{})
	defer lock(t, address, "records")()
	s.patience = 50 * time.Millisecond
	err := write(s, 0, record(1))
	says(t, err, "the server did not answer in time")
	if !errors.Is(err, errPatience) {
		t.Errorf("error %v is not that of a server that is too slow", err)
	}
	conn := s.conn.PgConn()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	select {
	case <-conn.CleanupDone():
	default:
		t.Error("Close left a connection behind that is still being given up")
	}
}

func testReadOnly(t *testing.T, server *postgrestest.Server) {
	address := server.Database(t)
	s := opened(t, address, Config{})
	exec(t, s, "SET default_transaction_read_only = on")
	says(t, write(s, 0, record(1)), `the server only reads`, `name the primary in "url"`)
}

func testRowsDropped(t *testing.T, server *postgrestest.Server) {
	address := server.Database(t)
	s := opened(t, address, Config{})
	exec(t, s, `CREATE FUNCTION drop() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF new.id = '7' THEN RETURN NULL; END IF; RETURN new; END $$; CREATE TRIGGER drop BEFORE INSERT ON records FOR EACH ROW EXECUTE FUNCTION drop()`)
	other := record(2)
	other.ID = "8"
	says(t, write(s, 0, record(1), other), "the table took 1 of 2 rows", "remove it")
	if got := queryStrings(t, address, "SELECT event::text FROM _scrape_positions"); got[0] != "0" {
		t.Errorf("the position moved to %s", got[0])
	}
}

// What the server would lose with its machine is said once.
func testDurable(t *testing.T, server *postgrestest.Server) {
	warnings := func(address string) string {
		var log bytes.Buffer
		s := opened(t, address, Config{Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn}))})
		if _, err := s.Open(t.Context(), info); err != nil { // a second time
			t.Fatal(err)
		}
		return log.String()
	}
	if got := warnings(server.Database(t)); strings.Count(got, "\n") != 1 || !strings.Contains(got, "fsync=off") {
		t.Errorf("want one warning that names the setting, have %q", got)
	}
	durable := postgrestest.Start(t)
	if got := warnings(durable.Database(t)); got != "" {
		t.Errorf("a server that is durable is warned of: %q", got)
	}
	lazy := durable.Database(t)
	postgrestest.Exec(t, lazy, "ALTER DATABASE "+newSink(t, Config{URL: auth.NewSecret(lazy)}).config.Database+" SET synchronous_commit = off")
	if got := warnings(lazy); strings.Count(got, "\n") != 1 || !strings.Contains(got, "synchronous_commit=off") {
		t.Errorf("want one warning that names the setting, have %q", got)
	}
}

func TestExplainDiskFull(t *testing.T) {
	s := newSink(t, Config{URL: auth.NewSecret("postgres://h/d")})
	says(t, s.explain(t.Context(), &pgconn.PgError{Code: "53100", Message: "could not extend file"}), "the server's disk is full: make room", `table "records"`)
}
