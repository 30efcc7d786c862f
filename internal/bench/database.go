package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// database is a PostgreSQL server of our own, with its usual settings.
type database struct {
	dir    string
	url    string
	server *exec.Cmd
}

// startDatabase makes a server in the directory and starts it. Root runs it as
// the user postgres: the server wants no root.
func startDatabase(dir string) (*database, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	d := &database{dir: dir, url: "postgres://bench@/postgres?host=" + dir}
	if os.Geteuid() == 0 {
		u, err := user.Lookup("postgres")
		if err != nil {
			return nil, err
		}
		uid, err := strconv.Atoi(u.Uid)
		if err != nil {
			return nil, err
		}
		if err := os.Chown(dir, uid, -1); err != nil {
			return nil, err
		}
		if err := os.Chmod(filepath.Dir(dir), 0o711); err != nil { // it must get there
			return nil, err
		}
	}
	initdb, err := d.command("initdb", "-D", dir+"/data", "-U", "bench", "-A", "trust", "-E", "UTF8", "--locale=C")
	if err != nil {
		return nil, err
	}
	if out, err := initdb.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w\n%s", err, out)
	}
	return d, d.start()
}

func (d *database) command(name string, args ...string) (*exec.Cmd, error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/" + name)
	if err != nil || len(found) == 0 {
		return nil, fmt.Errorf("%s is missing: run internal/setup/setup.sh test", name)
	}
	c := exec.Command(found[len(found)-1], args...)
	c.Dir = d.dir
	if os.Geteuid() == 0 {
		var st syscall.Stat_t
		if err := syscall.Stat(d.dir, &st); err != nil {
			return nil, err
		}
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: st.Uid, Gid: st.Gid, NoSetGroups: true}}
	}
	return c, nil
}

// start starts the server on what is in its directory.
func (d *database) start() (err error) {
	d.server, err = d.command("postgres", "-D", d.dir+"/data", "-k", d.dir, "-c", "listen_addresses=", "-c", "track_commit_timestamp=on", "-c", "max_wal_size=8GB")
	if err != nil {
		return err
	}
	if err := d.server.Start(); err != nil {
		return err
	}
	for range 600 {
		if err = d.exec("SELECT 1"); err == nil {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return err
}

func (d *database) stop() {
	if d.server != nil && d.server.Process != nil {
		d.server.Process.Signal(syscall.SIGQUIT)
		_ = d.server.Wait() // it was told to
		d.server = nil
	}
}

func (d *database) exec(statement string) error {
	conn, err := pgx.Connect(context.Background(), d.url)
	if err != nil {
		return err
	}
	defer conn.Close(context.Background())
	_, err = conn.Exec(context.Background(), statement)
	return err
}

// query reads one row.
func (d *database) query(statement string, into ...any) error {
	conn, err := pgx.Connect(context.Background(), d.url)
	if err != nil {
		return err
	}
	defer conn.Close(context.Background())
	return conn.QueryRow(context.Background(), statement).Scan(into...)
}
