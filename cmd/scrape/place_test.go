//go:build unix

package main

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"text/template"
	"time"

	"github.com/holdline/scrape/framework"
	"github.com/holdline/scrape/internal/demo"
)

// freePorts returns the first of four consecutive ports, as a demo exchange
// wants them, that nobody uses on any address, and nobody else is given before
// the test is over. They lie below those that the system gives to connections.
func freePorts(t *testing.T) int {
	t.Helper()
	for range 200 {
		first := 20000 + 4*rand.IntN(3000)
		// The exchange leaves out this address of its second port. Whoever
		// listens there has all four.
		held, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", first+1))
		if err != nil {
			continue
		}
		if allFree(fmt.Sprintf("0.0.0.0:%d", first), fmt.Sprintf("127.0.0.11:%d", first+1), fmt.Sprintf("0.0.0.0:%d", first+2), fmt.Sprintf("0.0.0.0:%d", first+3)) {
			t.Cleanup(func() { held.Close() })
			return first
		}
		held.Close()
	}
	t.Fatal("no four free ports in a row")
	return 0
}

func allFree(addrs ...string) bool {
	for _, addr := range addrs {
		ln, err := net.Listen("tcp", addr)
		if errors.Is(err, syscall.EADDRINUSE) {
			return false
		}
		if err == nil {
			ln.Close()
		}
	}
	return true
}

// What one test was given no other gets while it lasts.
func TestPortsAreGivenOnce(t *testing.T) {
	given := map[int]bool{}
	for range 200 {
		port := freePorts(t)
		if given[port] {
			t.Fatalf("%d is given twice", port)
		}
		given[port] = true
	}
}

// place is where a test runs scrape: a directory, a temporary directory of its
// own, and ports for a demo exchange.
type place struct {
	t    *testing.T
	dir  string // short: the browser's sockets lie below it
	tmp  string
	Port int
	env  []string
}

func newPlace(t *testing.T) *place {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "s")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	p := &place{t: t, dir: dir, tmp: filepath.Join(dir, "t")}
	if err := os.Mkdir(p.tmp, 0o700); err != nil {
		t.Fatal(err)
	}
	p.Port = freePorts(t)
	p.env = append(os.Environ(), "TMPDIR="+p.tmp, "XDG_CONFIG_HOME="+filepath.Join(dir, "config"))
	return p
}

func (p *place) path(name string) string { return filepath.Join(p.dir, name) }

// write fills a template with values, which are found beside the place's port,
// and writes it.
func (p *place) write(name, text string, values map[string]any) {
	p.t.Helper()
	all := map[string]any{"Port": p.Port, "Proxy": p.Port + 1, "Socks": p.Port + 2, "Gateway": p.Port + 3}
	for k, v := range values {
		all[k] = v
	}
	var b bytes.Buffer
	if err := template.Must(template.New(name).Option("missingkey=error").Parse(text)).Execute(&b, all); err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(p.path(name), b.Bytes(), 0o600); err != nil {
		p.t.Fatal(err)
	}
}

// process is a scrape at work, or one that has ended.
type process struct {
	t              *testing.T
	cmd            *exec.Cmd
	stdout, stderr *output
	over           chan struct{}
}

// output collects what a process writes.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// start starts scrape. The test ends it if nobody else does.
func (p *place) start(args ...string) *process {
	p.t.Helper()
	return p.startWith(nil, "scrape", args...)
}

// startWith starts any program, changed in a way of its own.
func (p *place) startWith(change func(*exec.Cmd), name string, args ...string) *process {
	p.t.Helper()
	r := &process{t: p.t, cmd: exec.Command(name, args...), stdout: &output{}, stderr: &output{}, over: make(chan struct{})}
	r.cmd.Dir, r.cmd.Env, r.cmd.Stdout, r.cmd.Stderr = p.dir, p.env, r.stdout, r.stderr
	if change != nil {
		change(r.cmd)
	}
	r.cmd.WaitDelay = 5 * time.Second // what it left behind may hold its output open
	if err := r.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	go func() {
		defer close(r.over)
		r.cmd.Wait()
	}()
	p.t.Cleanup(func() {
		r.cmd.Process.Kill()
		<-r.over
		if p.t.Failed() {
			p.t.Logf("%s %s\nstdout:\n%s\nstderr:\n%s", name, strings.Join(args, " "), clipped(r.stdout.String()), clipped(r.stderr.String()))
		}
	})
	return r
}

// clipped keeps the report of a failed test readable.
func clipped(s string) string {
	const most = 12 << 10
	if len(s) <= most {
		return s
	}
	return s[:most/2] + "\n…\n" + s[len(s)-most/2:]
}

// wait waits for the end and wants an exit code.
func (r *process) wait(want int) {
	r.t.Helper()
	select {
	case <-r.over:
	case <-time.After(2 * time.Minute):
		r.t.Fatal("scrape does not end")
	}
	if got := r.cmd.ProcessState.ExitCode(); got != want {
		r.t.Fatalf("scrape ended with %v, want exit code %d", r.cmd.ProcessState, want)
	}
}

func (r *process) interrupt() {
	r.t.Helper()
	if err := r.cmd.Process.Signal(os.Interrupt); err != nil {
		r.t.Fatal(err)
	}
}

// stop has it stand still until it gets SIGCONT: what it is sent meanwhile it
// finds all at once.
func (r *process) stop() {
	r.t.Helper()
	if err := r.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		r.t.Fatal(err)
	}
	r.until("its standstill", func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", r.cmd.Process.Pid))
		if err != nil {
			r.t.Fatal(err)
		}
		_, state, _ := strings.Cut(string(stat), ") ")
		return strings.HasPrefix(state, "T")
	})
}

// kill is kill -9.
func (r *process) kill() {
	r.t.Helper()
	if err := r.cmd.Process.Kill(); err != nil {
		r.t.Fatal(err)
	}
	<-r.over
	if ws := r.cmd.ProcessState.Sys().(syscall.WaitStatus); !ws.Signaled() {
		r.t.Fatalf("scrape had ended before it was killed: %v", r.cmd.ProcessState)
	}
}

// until waits for ok, as long as scrape runs.
func (r *process) until(what string, ok func() bool) {
	r.t.Helper()
	deadline := time.After(2 * time.Minute)
	for !ok() {
		select {
		case <-r.over:
			if ok() {
				return
			}
			r.t.Fatalf("scrape ended before %s", what)
		case <-deadline:
			r.t.Fatalf("%s does not come", what)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// says wants every text in s.
func says(t *testing.T, s string, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if !strings.Contains(s, text) {
			t.Errorf("%q is missing", text)
		}
	}
}

// saysNot wants none of the texts in s.
func saysNot(t *testing.T, s string, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if strings.Contains(s, text) {
			t.Errorf("%q should not be there", text)
		}
	}
}

// summary reads a summary file with exactly one stream.
func (p *place) summary(name string) (framework.Stats, framework.StreamStats) {
	p.t.Helper()
	b, err := os.ReadFile(p.path(name))
	if err != nil {
		p.t.Fatal(err)
	}
	var s framework.Stats
	if err := json.Unmarshal(b, &s); err != nil {
		p.t.Fatal(err)
	}
	if len(s.Streams) != 1 {
		p.t.Fatalf("%s has %d streams", name, len(s.Streams))
	}
	return s, s.Streams[0]
}

// stored is a row of a sink's table.
type stored struct{ id, kind, data string }

// rows reads a sink's table in the order of delivery. A missing file or table
// has no rows.
func (p *place) rows(file, table string) (all []stored) {
	p.t.Helper()
	if _, err := os.Stat(p.path(file)); err != nil {
		return nil
	}
	db, err := sql.Open("sqlite", "file:"+p.path(file)+"?mode=rw&_pragma=busy_timeout(5000)")
	if err != nil {
		p.t.Fatal(err)
	}
	defer db.Close()
	rows, err := db.Query("SELECT id, type, data FROM " + table + " ORDER BY rowid")
	if err != nil {
		if strings.Contains(err.Error(), "no such table") {
			return nil
		}
		p.t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var r stored
		if err := rows.Scan(&r.id, &r.kind, &r.data); err != nil {
			p.t.Fatal(err)
		}
		all = append(all, r)
	}
	if err := rows.Err(); err != nil {
		p.t.Fatal(err)
	}
	return all
}

// lock holds a SQLite file locked until the function it returns is called.
func (p *place) lock(file string) (unlock func(), err error) {
	db, err := sql.Open("sqlite", "file:"+p.path(file))
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	if _, err := db.Exec("BEGIN EXCLUSIVE"); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return func() { db.Exec("ROLLBACK"); db.Close() }, nil
}

// truth is the market that the demo exchange of a data directory tells.
func (p *place) truth(data string) demo.Feed {
	p.t.Helper()
	site, err := demo.New(demo.Options{Listen: "127.0.0.1:0", Dir: filepath.Join(p.path(data), "demo")})
	if err != nil {
		p.t.Fatal(err)
	}
	if err := site.Listen(); err != nil {
		p.t.Fatal(err)
	}
	feed := site.Feed()
	over, end := context.WithCancel(p.t.Context())
	end()
	if err := site.Run(over); err != nil { // closes what Listen opened
		p.t.Fatal(err)
	}
	return feed
}
