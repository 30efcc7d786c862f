package browser

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// killMarked sends SIGKILL to exactly the processes of a room until there are
// none, and fails when there still are some at the deadline.
func killMarked(dir string, deadline time.Time) error {
	for {
		left, err := marked(dir)
		if err != nil || len(left) == 0 {
			return err
		}
		for _, pid := range left {
			if err := killProcess(pid, dir); err != nil {
				return fmt.Errorf("process %d of the browser: %w", pid, err)
			}
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes %v of the browser do not end", left)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// killProcess kills pid if it is still a process of the room: the number may
// have gone to another one meanwhile, which a pidfd cannot.
func killProcess(pid int, dir string) error {
	fd, err := unix.PidfdOpen(pid, 0)
	switch {
	case errors.Is(err, unix.ESRCH):
		return nil
	case err != nil:
		fd = -1 // a kernel before 5.3
	default:
		defer unix.Close(fd)
	}
	if !isMarked(pid, dir) {
		return nil
	}
	if fd >= 0 {
		err = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	} else {
		err = unix.Kill(pid, unix.SIGKILL)
	}
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// marked lists the processes of a room.
func marked(dir string) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("looking for the browser's processes: %w", err)
	}
	var pids []int
	for _, entry := range entries {
		if pid, err := strconv.Atoi(entry.Name()); err == nil && pid != os.Getpid() && isMarked(pid, dir) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// isMarked reports whether the process carries the room's mark: in its
// environment, or, because Chromium's zygote overwrites that, in the profile
// that all its children are told. A zombie has neither.
func isMarked(pid int, dir string) bool {
	proc := filepath.Join("/proc", strconv.Itoa(pid))
	environment, _ := os.ReadFile(filepath.Join(proc, "environ"))
	for entry := range bytes.SplitSeq(environment, []byte{0}) {
		if string(entry) == marker+"="+dir {
			return true
		}
	}
	arguments, _ := os.ReadFile(filepath.Join(proc, "cmdline"))
	return bytes.Contains(arguments, []byte("--user-data-dir="+dir+"/"))
}

// driverAlive reports whether pid is still the room's driver.
func driverAlive(pid int, dir string) bool { return isMarked(pid, dir) }

// awaitDriver waits until playwright-go has reaped the killed driver.
func awaitDriver(pid int) {
	for range 200 {
		if unix.Kill(pid, 0) != nil {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func ownedByUs(info fs.FileInfo) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(stat.Uid) == os.Geteuid()
}
