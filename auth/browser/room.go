package browser

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/gofrs/flock"
)

const (
	roomPrefix = "holdline-browser-"
	// marker is in the environment of every process of a room; its value is
	// the room's directory.
	marker = "HOLDLINE_BROWSER_ROOM"
	// longestBase is the length from which a room below it could not hold
	// Chromium's socket: "/holdline-browser-1234567890" and
	// "/org.chromium.Chromium.123456/SingletonSocket" come after it, and a
	// socket's path ends at 107 bytes (unix(7)), 103 on other systems.
	longestBase = 103 - 28 - 45
	// killTime bounds the wait for killed processes to be gone.
	killTime = 5 * time.Second
)

// room is the private directory that one driver and its browser live in: their
// profiles and temporary files, nothing outside of it. As long as its owner
// lives the room's lock is held, so that a later program knows which rooms are
// left behind.
type room struct {
	dir  string
	lock *flock.Flock
}

// openRoom makes a room below base.
func openRoom(base string) (*room, error) {
	if len(base) > longestBase {
		return nil, fmt.Errorf("the temporary directory %s is too long for the browser's sockets; name one of at most %d characters", base, longestBase)
	}
	// Under a name that no sweep looks at until the lock is held.
	dir, err := os.MkdirTemp(base, "."+roomPrefix)
	if err != nil {
		return nil, fmt.Errorf("private directory for the browser: %w", err)
	}
	lock := flock.New(filepath.Join(dir, "lock"), flock.SetPermissions(0o600))
	locked, err := lock.TryLock()
	if err == nil && !locked {
		err = errors.New("its lock is held by another")
	}
	final := filepath.Join(base, strings.TrimPrefix(filepath.Base(dir), "."))
	if err == nil {
		err = os.Rename(dir, final)
	}
	if err != nil {
		lock.Close()
		os.RemoveAll(dir)
		return nil, fmt.Errorf("private directory for the browser: %w", err)
	}
	r := &room{dir: final, lock: lock}
	for _, name := range []string{"config", "cache"} {
		if err := os.Mkdir(filepath.Join(final, name), 0o700); err != nil {
			r.remove()
			return nil, fmt.Errorf("private directory for the browser: %w", err)
		}
	}
	return r, nil
}

// furnish writes what playwright-go takes for a driver directory, and a
// browser: small scripts that start the real ones marked, with the room as the
// place for all their files, and such that they die with whoever started them.
func (r *room) furnish(node, chromium, driver string) (chromiumScript string, err error) {
	die := ""
	if setpriv, err := exec.LookPath("setpriv"); err == nil && exec.Command(setpriv, "--pdeathsig", "KILL", "true").Run() == nil {
		die = quote(setpriv) + " --pdeathsig KILL "
	}
	environment := fmt.Sprintf("export %s=%s TMPDIR=%s XDG_CONFIG_HOME=%s XDG_CACHE_HOME=%s\n",
		marker, quote(r.dir), quote(r.dir), quote(r.path("config")), quote(r.path("cache")))
	chromiumScript = r.path("chromium")
	return chromiumScript, errors.Join(
		writeScript(r.path("node"), environment+"exec "+die+quote(node)+` "$@"`),
		writeScript(chromiumScript, moreFeaturesOff+"exec "+die+quote(chromium)+` "$@"`),
		os.Symlink(filepath.Join(driver, "package"), r.path("package")),
	)
}

// moreFeaturesOff adds to the features that Playwright switches off, because of
// that flag only the last one counts: Chromium asks a server of its maker's
// about every form that it sees, through the exit.
const moreFeaturesOff = `for flag do
	shift
	case $flag in --disable-features=*) flag=$flag,AutofillServerCommunication ;; esac
	set -- "$@" "$flag"
done
`

func (r *room) path(name string) string { return filepath.Join(r.dir, name) }

// clear ends every process of the room, for certain where the system lets us
// know them.
func (r *room) clear() error {
	return killMarked(r.dir, time.Now().Add(killTime))
}

// remove deletes the room; the owner has cleared it before.
func (r *room) remove() error {
	err := removeAll(r.dir)
	return errors.Join(err, r.lock.Close())
}

// Sweep removes what programs that are no longer alive left below the
// temporary directory of config: their browsers' processes and private
// directories, which may hold cookies. It leaves alone what belongs to a living
// program or to another user. A Runtime sweeps by itself before it starts a
// browser; a program may call it earlier.
func Sweep(config Config) error {
	base := config.tempDir()
	entries, err := os.ReadDir(base)
	if err != nil {
		return fmt.Errorf("sweeping: %w", err)
	}
	var errs []error
	for _, entry := range entries {
		if !strings.HasPrefix(entry.Name(), roomPrefix) {
			continue
		}
		if err := sweepRoom(filepath.Join(base, entry.Name())); err != nil {
			errs = append(errs, fmt.Errorf("sweeping %s: %w", entry.Name(), err))
		}
	}
	return errors.Join(errs...)
}

func sweepRoom(dir string) error {
	info, err := os.Lstat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !info.IsDir() || !ownedByUs(info) {
		return nil
	}
	lock := flock.New(filepath.Join(dir, "lock"), flock.SetPermissions(0o600))
	locked, err := lock.TryLock()
	if errors.Is(err, fs.ErrNotExist) {
		return nil // removed by its owner meanwhile
	}
	if err != nil || !locked {
		return err
	}
	r := &room{dir: dir, lock: lock}
	return errors.Join(r.clear(), r.remove())
}

// removeAll tries again when a dying process wrote something meanwhile.
func removeAll(dir string) error {
	var err error
	for range 5 {
		if err = os.RemoveAll(dir); err == nil {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return err
}

// writeScript writes a shell script that may be executed.
func writeScript(path, body string) error {
	// A process forked while the file is open for writing would hold it open
	// for a moment, and starting it would fail with "text file busy".
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	return os.WriteFile(path, []byte("#!/bin/sh\n"+body+"\n"), 0o700)
}

// quote quotes for the shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
