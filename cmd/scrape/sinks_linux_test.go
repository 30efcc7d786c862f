package main

import (
	"bytes"
	"context"
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/holdline/scrape/internal/sink/postgres/postgrestest"
	"github.com/jackc/pgx/v5"
	"github.com/klauspost/compress/zstd"
)

const everySink = `
name: ticks
streams:
  - name: feed
    url: {{.URL}}
    reconnect: {min: 10ms, max: 100ms}
limits: {connects_per_second: 100, burst: 100}
sinks:
  - sqlite: {table: t}
    batch: {every: 10ms}
  - postgres: {url: "${env:PG_URL}", table: t}
    batch: {every: 10ms}
  - jsonl: {rotate: {size: 64KiB}}
    batch: {every: 10ms}
  - jsonl: {rotate: {size: 8KiB}, compress: zstd}
    name: packed
    batch: {every: 10ms}
`

// The whole program is killed 50 times at any moment of a feed of numbered
// events, and the database under it five times: every sink of every kind has
// every number once.
func TestEverySinkSurvivesKills(t *testing.T) {
	t.Parallel()
	const kills = 50
	feed := ticks(t, "== answer 200 text/event-stream\n== again\n== count 100000000 100us\n")
	server := postgrestest.Start(t)
	address := server.Database(t)
	p := newPlace(t)
	p.write("ticks.yaml", everySink, map[string]any{"URL": feed.URL})
	p.env = append(p.env, "PG_URL="+address)
	for n := range kills {
		sent := feed.sent.Load()
		r := p.start("run", "ticks.yaml", "--progress", "none")
		r.until("events", func() bool { return feed.sent.Load() > sent })
		if n%10 == 5 {
			time.Sleep(rand.N(100 * time.Millisecond))
			server.Kill(t)
			time.Sleep(rand.N(100 * time.Millisecond))
			server.Restart(t)
		}
		time.Sleep(rand.N(200 * time.Millisecond)) // any moment, not one we chose
		r.kill()
		saysNot(t, r.stderr.String(), postgrestest.Password, "DATA RACE", "panic")
	}
	p.start("run", "ticks.yaml", "--progress", "none", "--max-events", "1000", "--summary", "out.json").wait(0)
	_, s := p.summary("out.json")
	last, err := strconv.Atoi(s.LastID)
	if err != nil || last < 1000+kills {
		t.Fatalf("the account of the last run: %+v", s)
	}
	var ids []string
	for _, row := range p.rows("data/ticks.db", "t") {
		ids = append(ids, row.id)
	}
	wantNumbers(t, "sqlite", ids, last)
	wantNumbers(t, "postgres", postgresIDs(t, address), last)
	wantNumbers(t, "jsonl", lineIDs(t, p.path("data/jsonl/ticks+jsonl-0-*.jsonl")), last)
	wantNumbers(t, "packed", lineIDs(t, p.path("data/jsonl/ticks+packed-0-*.jsonl.zst")), last)
	t.Logf("%d kills of the program and %d of the database, %d events", kills, kills/10, last)
}

// wantNumbers wants the numbers from 1 to last, each once and in order.
func wantNumbers(t *testing.T, sink string, ids []string, last int) {
	t.Helper()
	for i, id := range ids {
		if id != strconv.Itoa(i+1) {
			t.Errorf("%s: record %d has the id %s", sink, i+1, id)
			return
		}
	}
	if len(ids) != last {
		t.Errorf("%s: %d records, want %d", sink, len(ids), last)
	}
}

func postgresIDs(t *testing.T, address string) []string {
	t.Helper()
	return postgresTexts(t, address, "SELECT id FROM t ORDER BY split_part(_key, '/', 3)::bigint, split_part(_key, '/', 4)::bigint")
}

func postgresTexts(t *testing.T, address, query string) []string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	rows, err := conn.Query(t.Context(), query)
	if err != nil {
		t.Fatal(err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// lineIDs reads files of JSON lines one after the other.
func lineIDs(t *testing.T, pattern string) (ids []string) {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) < 2 {
		t.Fatalf("%s: %d files, want some to follow each other (%v)", pattern, len(files), err)
	}
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err == nil && strings.HasSuffix(f, ".zst") {
			b, err = d.DecodeAll(b, nil)
		}
		if err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		for line := range bytes.Lines(b) {
			var r struct{ ID string }
			if err := json.Unmarshal(line, &r); err != nil {
				t.Fatalf("%s: %v in %q", f, err, line)
			}
			ids = append(ids, r.ID)
		}
	}
	return ids
}
