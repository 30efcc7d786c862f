package cmd

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/holdline/scrape/auth/browser"
)

const keptFile = `
name: t
streams:
  - name: a
    url: https://one.example/a
    headers: {X-Key: "${file:secret}"}
  - name: b
    url: https://one.example/b
    method: POST
    body_file: body
auth: {bearer: "${file:token}"}
proxies: {pool: shared}
limits: {connects_per_second: 5, streams_per_credential: 7}
records: {map: {price: price}}
sinks:
  - sqlite: {table: t}
`

const keptWorker = `
pools:
  shared: {exits: ["http://u:p@one:1", "http://u:p@two:1"]}
  other: {exits: ["http://u:p@one:1"]}
`

// What the files say as before is not made again, and what cannot be changed
// is told.
func TestWhatAReloadKeeps(t *testing.T) {
	for _, c := range []struct {
		name, from, to string
		file           string // "" for the target file
		want           string // what is another: stream a, stream b, pool, keeper, identities; records
		fixed          string
		sink           string // more of the sink
	}{
		{name: "nothing"},
		{name: "a comment", from: "name: t\n", to: "name: t # the same\n"},
		{name: "a header", from: `{X-Key: "${file:secret}"}`, to: "{X-Key: other}", want: "a"},
		{name: "a secret", file: "secret", from: "s1", to: "s2", want: "a"},
		{name: "a body", file: "body", from: "text", to: "other", want: "b"},
		{name: "an address", from: "example/b", to: "example/c", want: "b"},
		{name: "a host", from: "one.example/b", to: "two.example/b", want: "a b identities"},
		{name: "the cursor to begin at", from: "    body_file", to: "    from: 7\n    body_file"},
		{name: "a credential", file: "token", from: "t1", to: "t2", want: "a b keeper identities"},
		{name: "limits", from: "second: 5", to: "second: 6"},
		{name: "another pool", from: "pool: shared", to: "pool: other", want: "a b pool identities"},
		{name: "a wish", from: "pool: shared", to: "exits: [direct]", want: "a b pool identities"},
		{name: "exits", file: "scrape.yaml", from: `, "http://u:p@two:1"`, to: ""},
		{name: "a password", file: "scrape.yaml", from: "u:p@two", to: "u:q@two"},
		{name: "records", from: "price: price", to: "price: cost", want: "records"},
		{name: "a removed stream", from: "  - name: b\n    url: https://one.example/b\n    method: POST\n    body_file: body\n"},
		{name: "sinks", from: "table: t", to: "table: u", fixed: "sinks of t"},
		{name: "the place of a sink", from: "sqlite: {", to: "postgres: {url: \"postgres://x@localhost/x\", ", fixed: "sinks of t"},
		{name: "the name", from: "name: t\n", to: "name: u\n", fixed: "the name of the target changed from t to u"},
		{name: "a sequence", from: "    body_file", to: "    sequence: n\n    body_file", fixed: "sequence of t/b"},
		{name: "alerts", from: "name: t\n", to: "name: t\nalerts: {command: [x]}\n", fixed: "alerts of t"},
		{name: "the journal", file: "scrape.yaml", from: "pools:", to: "journal: {retain: 1h}\npools:", fixed: "the journal in scrape.yaml"},
		{name: "a cap of the account", file: "scrape.yaml", from: "shared: {", to: "shared: {account_conns: 9, ", fixed: "what is watched of the exits of t"},
		{name: "an echo", file: "scrape.yaml", from: "shared: {", to: "shared: {echo: \"https://echo.example\", ", fixed: "what is watched of the exits of t"},
		{name: "a browser", from: `{bearer: "${file:token}"}`, to: "{browser: {steps: [{open: \"https://one.example\"}, {wait: {cookie: c}}]}}", fixed: "t needs a browser now"},
		{name: "records that a sink chooses of", from: "price: price", to: "price: cost", sink: "\n    where: price != nil", fixed: "records of t/a, of which a sink has where,"},
		{name: "what a sink chooses", from: "price != nil", to: "price == nil", sink: "\n    where: price != nil", fixed: "sinks of t"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			texts := map[string]string{"t.yaml": strings.TrimSpace(keptFile) + c.sink, "scrape.yaml": keptWorker, "secret": "s1", "token": "t1", "body": "text"}
			write := func() {
				for name, text := range texts {
					if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
						t.Fatal(err)
					}
				}
			}
			write()
			a := &app{registry: builtin(), hooks: map[string]browser.Hook{}}
			paths, config := []string{filepath.Join(dir, "t.yaml")}, filepath.Join(dir, "scrape.yaml")
			files, worker, err := a.load(paths, config)
			if err != nil {
				t.Fatal(err)
			}
			w := &wiring{files: files, worker: worker, data: dir, log: slog.New(slog.DiscardHandler)}
			if _, err := w.config(); err != nil {
				t.Fatal(err)
			}
			name := c.file
			if name == "" {
				name = "t.yaml"
			}
			if !strings.Contains(texts[name], c.from) {
				t.Fatalf("%s has no %q", name, c.from)
			}
			texts[name] = strings.Replace(texts[name], c.from, c.to, 1)
			write()
			if files, worker, err = a.load(paths, config); err != nil {
				t.Fatal(err)
			}
			next := w.follow(files, worker)
			fixed := strings.Join(next.fixed(w), "\n")
			if (fixed == "") != (c.fixed == "") || !strings.Contains(fixed, c.fixed) || fixed != "" && !strings.HasSuffix(fixed, "restart to apply") {
				t.Fatalf("what needs a restart: %q, want %q", fixed, c.fixed)
			}
			if fixed != "" {
				return
			}
			streams, err := next.goOn(w)
			if err != nil {
				t.Fatal(err)
			}
			var other []string
			note := func(what string, is bool) {
				if is {
					other = append(other, what)
				}
			}
			was, is := w.wired["t"], next.wired["t"]
			for _, s := range streams {
				name := strings.TrimPrefix(s.Name, "t/")
				held := was.streams[name]
				read := fmt.Sprintf("%p", s.Target) == fmt.Sprintf("%p", held.Target) // by what it was loaded as
				note(name, !read)
				note("records", name == "a" && read && s != held)
			}
			note("pool", is.pool != was.pool)
			note("keeper", is.keeper != was.keeper)
			note("identities", is.identities != was.identities)
			slices.Sort(other)
			want := strings.Fields(c.want)
			slices.Sort(want)
			if !slices.Equal(other, want) {
				t.Errorf("made anew: %v, want %v", other, want)
			}
			limits, exits, err := next.settle(w)
			if err != nil || (len(limits) > 0) != (c.name == "limits") || (len(exits) > 0) != (c.name == "exits" || c.name == "a password") {
				t.Errorf("limits %v, exits %v, %v", limits, exits, err)
			}
			for _, l := range w.limits {
				if c.name == "limits" && l.ConnectsPerSecond != 6 {
					t.Errorf("the limits of a host are %+v", l)
				}
			}
		})
	}
}

// The pools of a reading of the files that is not taken up ask for nothing, and
// those that targets have stay as they are.
func TestAReloadThatFailsAsksForNothing(t *testing.T) {
	dir := t.TempDir()
	path, config := filepath.Join(dir, "t.yaml"), filepath.Join(dir, "scrape.yaml")
	a := &app{registry: builtin(), hooks: map[string]browser.Hook{}}
	read := func(pool string) *wiring {
		t.Helper()
		target := "streams: [{name: a, url: \"https://one.example/a\"}]\nproxies: {pool: " + pool + "}\nsinks: [{sqlite: {}}]\n"
		pools := "pools:\n  shared: {exits: [\"http://one:1\"], max_conns: 5}\n  other: {exits: [\"http://one:1\"], max_conns: 1}\n"
		if err := errors.Join(os.WriteFile(path, []byte(target), 0o600), os.WriteFile(config, []byte(pools), 0o600)); err != nil {
			t.Fatal(err)
		}
		files, worker, err := a.load([]string{path}, config)
		if err != nil {
			t.Fatal(err)
		}
		return &wiring{files: files, worker: worker, data: dir, log: slog.New(slog.DiscardHandler)}
	}
	w := read("shared")
	if _, err := w.config(); err != nil {
		t.Fatal(err)
	}
	limit := func() int { return w.wired["t"].pool.Stats()[0].Cap }
	other := read("other")
	next := w.follow(other.files, other.worker)
	if _, err := next.goOn(w); err != nil || limit() != 1 {
		t.Fatalf("a cap of %d, %v", limit(), err)
	}
	if next.closePools(w); limit() != 5 {
		t.Errorf("a cap of %d when it was not taken up", limit())
	}
	same := read("shared")
	next = w.follow(same.files, same.worker)
	if _, err := next.goOn(w); err != nil {
		t.Fatal(err)
	}
	if next.closePools(w); len(w.wired["t"].pool.Stats()) != 1 {
		t.Error("a pool that is in use was closed")
	}
}
