package main

import (
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/holdline/scrape/internal/sink/postgres/postgrestest"
)

const halvedFile = `
name: halved
plugin: halved
{{.Options}}
streams:
  - name: feed
    url: {{.URL}}
    reconnect: {min: 10ms, max: 100ms}
limits: {connects_per_second: 100, burst: 100}
sinks:
  - postgres: {url: "${env:PG_URL}", table: t}
    batch: {every: 10ms}
  - sqlite: {table: t}
    batch: {every: 10ms}
  - jsonl: {}
`

// Columns reach every sink. A table that is altered under a running worker
// stops its sink and nothing else, until what the message says was done; and a
// new column is added to the tables by the next run.
func TestColumnsOfATableAlteredUnderneath(t *testing.T) {
	t.Parallel()
	feed := ticks(t, "== answer 200 text/event-stream\n== again\n== count 100000000 1ms\n")
	server := postgrestest.Start(t)
	address := server.Database(t)
	p := newPlace(t)
	p.env = append(p.env, "PG_URL="+address)
	write := func(options string) {
		p.write("halved.yaml", halvedFile, map[string]any{"URL": feed.URL, "Options": options})
	}

	write("options: {note: Time}")
	r := p.startWith(nil, "custom", "check", "halved.yaml")
	r.wait(2)
	says(t, r.stderr.String(), `halved.yaml:11:5: the sink "postgres" cannot take the records; the column "Time" has the name of one that every table has`,
		`halved.yaml:13:5: the sink "sqlite" cannot take`)

	write("")
	r = p.startWith(nil, "custom", "run", "halved.yaml", "--progress", "none")
	r.until("rows", func() bool {
		return postgresTexts(t, address, "SELECT coalesce(to_regclass('t')::text, '')")[0] != "" && len(postgresIDs(t, address)) > 0
	})
	postgrestest.Exec(t, address, "ALTER TABLE t ALTER COLUMN number TYPE double precision")
	statement := regexp.MustCompile(`run: (ALTER TABLE .*?);`)
	r.until("a remedy", func() bool { return statement.MatchString(r.stderr.String()) })
	says(t, r.stderr.String(), "the table's columns were changed: it is looked at again", `column \"number\" of type double precision`)
	stuck, sent := len(postgresIDs(t, address)), feed.sent.Load()
	r.until("events read meanwhile", func() bool { return feed.sent.Load() > sent+100 })
	if n := len(postgresIDs(t, address)); n != stuck {
		t.Errorf("%d rows came while the table did not fit", n-stuck)
	}
	postgrestest.Exec(t, address, strings.ReplaceAll(statement.FindStringSubmatch(r.stderr.String())[1], `\"`, `"`))
	r.until("rows again", func() bool { return len(postgresIDs(t, address)) > stuck })
	r.interrupt()
	r.wait(0)

	write("options: {note: what else}")
	r = p.startWith(nil, "custom", "run", "halved.yaml", "--progress", "none", "--max-events", "50", "--summary", "out.json")
	r.wait(0)
	says(t, r.stderr.String(), `added a column to the table" table=t column="what else"`, `table=t column="what else"`)
	_, s := p.summary("out.json")
	last, err := strconv.Atoi(s.LastID)
	if err != nil {
		t.Fatal(err)
	}
	wantNumbers(t, "postgres", postgresIDs(t, address), last)
	want := strings.Join([]string{strconv.Itoa(last), strconv.Itoa(last * (last + 1) / 2), strconv.FormatFloat(float64(last*(last+1))/4, 'f', 2, 64), "50"}, " ")
	if got := postgresTexts(t, address, `SELECT concat_ws(' ', count(*), sum(number), sum(half), count("what else")) FROM t`)[0]; got != want {
		t.Errorf("postgres has %s, want %s", got, want)
	}
	r = p.start("query", "data/halved.db", `SELECT concat_ws(' ', count(*), sum(number), printf('%.2f', sum(half)), count("what else")) AS line FROM t`)
	r.wait(0)
	if got := strings.TrimSpace(strings.TrimPrefix(r.stdout.String(), "line")); got != want {
		t.Errorf("sqlite has %s, want %s", got, want)
	}
}
