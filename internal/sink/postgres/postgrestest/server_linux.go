// Package postgrestest runs a PostgreSQL server for tests: the real one, as a
// child of the test.
//
// The main type is [Server]. It deliberately does not know what is stored.
package postgrestest

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// Password is that of the user "scrape", whom every server knows.
const Password = "s3cret-p%ss/word"

// Server is a server that listens on a Unix socket only.
type Server struct {
	dir     string
	options []string
	server  *exec.Cmd
	ended   chan struct{} // closed when the server has
	log     bytes.Buffer
	made    int // databases
}

// Start makes a server and starts it. It is stopped and removed when t ends.
// Options are settings, as in "fsync=off".
func Start(t testing.TB, options ...string) *Server {
	t.Helper()
	// Not t.TempDir: no other user may pass it, and its path is too long for a
	// socket.
	dir, err := os.MkdirTemp("", "pg")
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{dir: dir, options: options}
	t.Cleanup(func() {
		if s.server != nil {
			s.stop()
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	password := filepath.Join(dir, "password")
	if err := os.WriteFile(password, []byte(Password+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if attr := attributes(t); attr.Credential != nil {
		if err := os.Chown(dir, int(attr.Credential.Uid), int(attr.Credential.Gid)); err != nil {
			t.Fatal(err)
		}
	}
	// Small segments of the log: so a limit on the size of files can be small.
	initdb := exec.Command(program(t, "initdb"), "-D", s.data(), "-U", "scrape", "-E", "UTF8", "--locale=C",
		"-A", "scram-sha-256", "--pwfile="+password, "--wal-segsize=1", "--no-sync")
	initdb.Dir, initdb.SysProcAttr = dir, attributes(t)
	if out, err := initdb.CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	s.Restart(t)
	return s
}

func (s *Server) data() string { return filepath.Join(s.dir, "data") }

// program finds a program of the server: Debian keeps them off the PATH, the
// newest version last.
func program(t testing.TB, name string) string {
	t.Helper()
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/" + name)
	if len(found) > 0 {
		return found[len(found)-1]
	}
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("the PostgreSQL server is missing: run internal/setup/setup.sh test (%v)", err)
	}
	return path
}

// Restart starts the server on what is on its disk, and returns when it can be
// used.
func (s *Server) Restart(t testing.TB) {
	t.Helper()
	args := []string{"-D", s.data(), "-k", s.dir, "-c", "listen_addresses="}
	for _, o := range s.options {
		args = append(args, "-c", o)
	}
	s.server = exec.Command(program(t, "postgres"), args...)
	s.server.Dir, s.server.SysProcAttr = s.dir, attributes(t)
	s.log.Reset()
	s.server.Stderr = &s.log
	if err := s.server.Start(); err != nil {
		t.Fatal(err)
	}
	server, ended := s.server, make(chan struct{})
	s.ended = ended
	go func() {
		_ = server.Wait() // what it has to say is in its log
		close(ended)
	}()
	// After a crash it may be long about it: it syncs all its files first.
	for {
		conn, err := pgx.Connect(context.Background(), s.URL("postgres"))
		if err == nil {
			conn.Close(context.Background())
			return
		}
		select {
		case <-ended:
			s.server = nil
			t.Fatalf("the server does not start: %v\n%s", err, s.log.String())
		case <-time.After(10 * time.Millisecond): // until it can be connected to
		}
	}
}

// Kill kills the server with all its processes at once, as if the machine had
// lost them, and returns when they are gone.
func (s *Server) Kill(t testing.TB) {
	t.Helper()
	server := s.server.Process
	// Stopped first, and really, it cannot start a process that would be missed.
	_ = server.Signal(syscall.SIGSTOP) // it may have ended
	for deadline := time.Now().Add(time.Minute); state(server.Pid) != 'T' && state(server.Pid) != 'Z'; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("process %d of the server does not stop", server.Pid)
		}
	}
	var pids []int // of its children
	children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", server.Pid))
	for _, field := range strings.Fields(string(children)) {
		if pid, err := strconv.Atoi(field); err == nil {
			pids = append(pids, pid)
		}
	}
	_ = server.Kill()
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	<-s.ended
	s.server = nil
	// The children are not ours to wait for.
	for _, pid := range pids {
		for deadline := time.Now().Add(time.Minute); state(pid) != 'Z'; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("process %d of the server does not die", pid)
			}
		}
	}
}

// stop ends the server with all its processes, and returns when they are gone.
// Unlike one that is killed, it leaves no shared memory behind: of that the
// machine has 4096 segments until it is started again.
func (s *Server) stop() {
	_ = s.server.Process.Signal(syscall.SIGQUIT) // it may have ended
	<-s.ended
	s.server = nil
}

// state is how the process is, as /proc has it: T when it is stopped, Z when it
// has ended, whether its parent has noticed or not.
func state(pid int) byte {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if i := bytes.LastIndex(stat, []byte(") ")); err == nil && i >= 0 {
		return stat[i+2]
	}
	return 'Z'
}

// URL names a database of the server.
func (s *Server) URL(database string) string {
	u := url.URL{Scheme: "postgres", User: url.UserPassword("scrape", Password), Path: "/" + database,
		RawQuery: url.Values{"host": {s.dir}}.Encode()}
	return u.String()
}

// Dial connects to the server's socket.
func (s *Server) Dial() (net.Conn, error) {
	return net.Dial("unix", filepath.Join(s.dir, ".s.PGSQL.5432"))
}

// Database makes an empty database and returns its URL.
func (s *Server) Database(t testing.TB) string {
	t.Helper()
	s.made++
	name := fmt.Sprintf("test%d", s.made)
	Exec(t, s.URL("postgres"), "CREATE DATABASE "+name)
	return s.URL(name)
}

// Exec runs statements in a session of their own.
func Exec(t testing.TB, url, statements string) {
	t.Helper()
	conn, err := pgx.Connect(context.Background(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(context.Background(), statements); err != nil {
		t.Fatalf("%s: %v", statements, err)
	}
}

// LimitFiles lets the server's process write no file beyond so many bytes, as
// if there were no room, until lift is called.
func LimitFiles(t testing.TB, process uint32, bytes int) (lift func()) {
	t.Helper()
	limit := func(soft string) {
		t.Helper()
		// By a program, since only the same user may.
		cmd := exec.Command("prlimit", "--pid", fmt.Sprint(process), "--fsize="+soft+":")
		cmd.Dir, cmd.SysProcAttr = os.TempDir(), attributes(t)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", cmd, err, out)
		}
	}
	limit(strconv.Itoa(bytes))
	return func() { t.Helper(); limit("unlimited") }
}
