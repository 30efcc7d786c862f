package main

import (
	"database/sql"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const twoSinks = `
name: pair
streams:
  - name: feed
    url: {{.URL}}
    reconnect: {min: 10ms, max: 100ms}
limits: {connects_per_second: 100, burst: 100}
sinks:
  - sqlite: {table: strict}
    name: strict
    batch: {every: 10ms}
  - sqlite: {table: loose}
    name: loose
    batch: {every: 10ms}
`

// A record that one sink refuses is kept, seen, sent again once the table is
// mended, by a worker and without one, and is then in each sink once.
func TestDeadLettersAreSentAgain(t *testing.T) {
	t.Parallel()
	feed := ticks(t, `== answer 200 text/event-stream
id: 1
data: one

id: 2
data: poison

id: 3
data: three

== answer 204
`)
	p := newPlace(t)
	p.write("pair.yaml", twoSinks, map[string]any{"URL": feed.URL})
	ids := func(table string) string {
		var all []string
		for _, row := range p.rows("data/pair.db", table) {
			all = append(all, row.id)
		}
		return strings.Join(all, " ")
	}
	say := func(want string, args ...string) string {
		t.Helper()
		r := p.start(args...)
		r.wait(0)
		says(t, r.stdout.String(), want)
		return r.stdout.String()
	}
	p.strict()
	run := p.start("run", "pair.yaml", "--progress", "none")
	run.wait(0)
	if strict, loose := ids("strict"), ids("loose"); strict != "1 3" || loose != "1 2 3" {
		t.Fatalf("strict has %s, loose %s", strict, loose)
	}
	list := say("pair/strict (record 1)", "dead", "list")
	event := regexp.MustCompile(`\w{16}/0/\d+/\d+`).FindString(list)
	if strings.Count(list, "pair/feed") != 1 || event == "" {
		t.Fatalf("dead list says\n%s", list)
	}
	say("\npoison\n", "dead", "show", event)
	say(`"data":"cG9pc29u"`, "dead", "export", "--target", "pair")
	p.start("dead", "show", "nowhere/0/1/1").wait(2)
	p.start("dead", "retry").wait(2)

	// Nobody has mended anything: it is refused again.
	say("1 sent again: the next run delivers them", "dead", "retry", event)
	say("1 are on their way already", "dead", "retry", event)
	p.start("run", "pair.yaml", "--progress", "none").wait(0)
	list = say("pair/strict (record 1)", "dead", "list")
	if second := regexp.MustCompile(`\w{16}/0/\d+/\d+`).FindString(list); strings.Count(list, "pair/feed") != 1 || second == event {
		t.Fatalf("after it was refused again dead list says\n%s", list)
	}
	p.exec("data/pair.db", "DROP TRIGGER no_poison")
	say("1 sent again", "dead", "retry", "--all")
	p.start("run", "pair.yaml", "--progress", "none").wait(0)
	if strict, loose := ids("strict"), ids("loose"); strict != "1 3 2" || loose != "1 2 3" {
		t.Errorf("in the end strict has %s, loose %s", strict, loose)
	}
	say("no dead letters", "dead", "list")
	say("retired", "dead", "list", "--retired")
	say("2 dead letters dropped", "dead", "drop", "--all")
}

// A worker that runs sends dead letters again without a restart.
func TestDeadLettersOfARunningWorker(t *testing.T) {
	t.Parallel()
	feed := ticks(t, "== answer 200 text/event-stream\nid: 1\ndata: poison\n\n== hang\n")
	p := newPlace(t)
	p.write("pair.yaml", twoSinks, map[string]any{"URL": feed.URL})
	p.strict()
	run := p.start("run", "pair.yaml", "--progress", "none")
	run.until("a dead letter", func() bool {
		r := p.start("dead", "list")
		<-r.over
		return strings.Contains(r.stdout.String(), "pair/strict")
	})
	p.exec("data/pair.db", "DROP TRIGGER no_poison")
	r := p.start("dead", "retry", "--target", "pair")
	r.wait(0)
	says(t, r.stdout.String(), "1 sent again, on their way to their sinks")
	run.until("the record", func() bool { return len(p.rows("data/pair.db", "strict")) == 1 })
	run.interrupt()
	run.wait(0)
	if n := len(p.rows("data/pair.db", "loose")); n != 1 {
		t.Errorf("the sink that had it has it %d times", n)
	}
	r = p.start("dead", "list")
	r.wait(0)
	says(t, r.stdout.String(), "no dead letters")
}

// strict makes the table of the sink that refuses poison.
func (p *place) strict() {
	p.t.Helper()
	if err := os.MkdirAll(p.path("data"), 0o700); err != nil {
		p.t.Fatal(err)
	}
	p.exec("data/pair.db", `CREATE TABLE strict (_key TEXT NOT NULL PRIMARY KEY, stream TEXT NOT NULL, id TEXT, type TEXT NOT NULL, time TEXT NOT NULL, data NOT NULL);
		CREATE TRIGGER no_poison BEFORE INSERT ON strict WHEN NEW.data LIKE 'poison%' BEGIN SELECT RAISE(ABORT, 'no poison here'); END`)
}

// exec runs a statement on a SQLite file.
func (p *place) exec(file, statement string) {
	p.t.Helper()
	db, err := sql.Open("sqlite", "file:"+filepath.Join(p.dir, file)+"?_pragma=busy_timeout(10000)")
	if err != nil {
		p.t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(statement); err != nil {
		p.t.Fatalf("%s: %v", statement, err)
	}
}

// The ledger of a worker can be read while it runs.
func TestCoverageOfARunningWorker(t *testing.T) {
	t.Parallel()
	feed := ticks(t, "== answer 200 text/event-stream\n== count 100 1ms\n== cut\n== answer 200 text/event-stream\nid: 104\ndata: a\n\n== hang\n")
	p := newPlace(t)
	p.write("pair.yaml", twoSinks, map[string]any{"URL": feed.URL})
	run := p.start("run", "pair.yaml", "--progress", "none")
	run.until("a gap in the ledger", func() bool {
		r := p.start("coverage", "pair")
		<-r.over
		return r.cmd.ProcessState.ExitCode() == 1 && strings.Contains(r.stdout.String(), "ids 101 to 103")
	})
	r := p.start("coverage", "nothing")
	r.wait(2)
	says(t, r.stderr.String(), "holds no stream of nothing; it holds pair/feed")
	run.interrupt()
	run.wait(0)
}
