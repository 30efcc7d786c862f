package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/holdline/scrape/cmd"
	"github.com/holdline/scrape/framework"
	"github.com/holdline/scrape/targets"
)

var update = flag.Bool("update", false, "write what the scripts compare with anew")

// TestMain lets the test binary act as scrape: what the tests start as
// "scrape" is a process of its own, race detector included.
func TestMain(m *testing.M) {
	// Most tests wait for a site most of the time, on few cores too.
	if err := flag.Set("test.parallel", "4"); err != nil {
		panic(err)
	}
	testscript.Main(m, map[string]func(){
		"scrape": func() { cmd.Main() },
		"custom": func() { cmd.Main(cmd.WithTarget("hopeless", hopeless), cmd.WithTarget("halved", halved)) },
	})
}

// hopeless is a plugin whose site can never be read.
func hopeless(*targets.File, func(any) error) (framework.Target, error) { return closed{}, nil }

type closed struct{}

func (closed) Open(context.Context, *framework.Session, framework.Cursor) (framework.Connection, error) {
	return nil, errors.New("the site has been closed for ever")
}

func (closed) Classify(*framework.Outcome) framework.Verdict {
	return framework.Verdict{Remedy: framework.Fail}
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		UpdateScripts:       *update,
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"code":  code,
			"until": until,
			"feed":  serveFeed,
			"proxy": serveProxy,
			"fill":  fill,
			"keys":  keys,
		},
	})
}

// code runs a program and wants its exit code: code 2 scrape check x.yaml.
func code(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: code N program [args...]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	var exit *exec.ExitError
	switch err := ts.Exec(args[1], args[2:]...); {
	case errors.As(err, &exit):
		got = exit.ExitCode()
	case err != nil:
		ts.Fatalf("%s: %v", args[1], err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// until runs a program until what it says matches an expression of grep -E,
// interrupts it then, and wants exit code 0: until REGEXP program [args...].
func until(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: until REGEXP program [args...]")
	}
	// SIGTERM, since a shell has what it starts beside itself ignore SIGINT.
	const run = `said=$1; shift; rm -f until.*
("$@" >until.stdout 2>until.stderr & echo $! >until.pid; wait $!; echo $? >until.code) &
has() { grep -Eq -e "$said" until.stdout until.stderr; }
until [ -s until.code ] || { [ -s until.pid ] && has; }; do sleep 0.05; done
kill -TERM $(cat until.pid) 2>kill.stderr
wait
cat until.stdout; cat until.stderr >&2
has || { echo "it ended before it said $said" >&2; exit 1; }
exit $(cat until.code)`
	ts.Check(ts.Exec("sh", append([]string{"-c", run, "sh"}, args...)...))
}

// serveFeed serves the feed of a file: feed FILE [NAME]. Its URL is in $FEED,
// or in the variable named, and its requests go to the file's name with
// ".requests".
func serveFeed(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 || len(args) > 2 {
		ts.Fatalf("usage: feed FILE [VARIABLE]")
	}
	answers, err := parseFeed(ts.ReadFile(args[0]))
	if err != nil {
		ts.Fatalf("%s: %v", args[0], err)
	}
	requests, err := os.Create(ts.MkAbs(args[0] + ".requests"))
	ts.Check(err)
	f := newFeedServer(answers, requests)
	ts.Defer(func() { f.Close(); requests.Close() })
	name := "FEED"
	if len(args) == 2 {
		name = args[1]
	}
	ts.Setenv(name, f.URL)
}

// serveProxy serves a forward proxy: proxy USER PASSWORD; see newConnectProxy.
// Its host and port are in $PROXY, and what it was asked for goes to the file
// proxy.requests.
func serveProxy(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: proxy USER PASSWORD")
	}
	requests, err := os.Create(ts.MkAbs("proxy.requests"))
	ts.Check(err)
	p := newConnectProxy(args[0], args[1], requests)
	ts.Defer(func() { p.Close(); requests.Close() })
	ts.Setenv("PROXY", strings.TrimPrefix(p.URL, "http://"))
}

// fill puts $FEED and $PROXY into files: fill FILE...
func fill(ts *testscript.TestScript, _ bool, args []string) {
	values := strings.NewReplacer("$FEED", ts.Getenv("FEED"), "$PROXY", ts.Getenv("PROXY"))
	for _, name := range args {
		ts.Check(os.WriteFile(ts.MkAbs(name), []byte(values.Replace(ts.ReadFile(name))), 0o600))
	}
}

// keys prints every key of a JSON file as a path, sorted: keys FILE. Keys below
// "reconnects" are causes and left out.
func keys(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: keys FILE")
	}
	var v any
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[0])), &v))
	paths := map[string]bool{}
	var walk func(at string, v any)
	walk = func(at string, v any) {
		switch v := v.(type) {
		case map[string]any:
			for k, below := range v {
				path := strings.TrimPrefix(at+"."+k, ".")
				paths[path] = true
				if k != "reconnects" {
					walk(path, below)
				}
			}
		case []any:
			for _, below := range v {
				walk(at+"[]", below)
			}
		}
	}
	walk("", v)
	for _, p := range slices.Sorted(maps.Keys(paths)) {
		fmt.Fprintln(ts.Stdout(), p)
	}
}
