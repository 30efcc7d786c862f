package journal

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdline/scrape/framework"
)

// imageBytes is the size of the disk whose power is cut.
const imageBytes = 112 << 20

// inNamespace gives the child mounts of its own; it is root there.
func inNamespace(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
}

// private keeps what is mounted from now on in the child's own namespace.
func private() error {
	return syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, "")
}

// mountImage mounts a file with an ext4 file system by a loop device, which
// goes with the namespace.
func mountImage(image, dir string) error {
	if err := private(); err != nil {
		return err
	}
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer control.Close()
	file, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	for range 20 { // another process may take the free one first
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return err
		}
		path := "/dev/loop" + strconv.Itoa(n)
		loop, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer loop.Close()
		err = unix.IoctlLoopConfigure(int(loop.Fd()), &unix.LoopConfig{Fd: uint32(file.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR}})
		if errors.Is(err, unix.EBUSY) {
			continue
		}
		if err != nil {
			return err
		}
		// Nothing reaches the disk by itself for minutes: only what is synced.
		return syscall.Mount(path, dir, "ext4", 0, "commit=300")
	}
	return errors.New("no loop device is free")
}

// childMount mounts what the test wants before the journal is opened: true when
// there is nothing to mount or it worked.
func childMount(dir string) bool {
	image := os.Getenv("JOURNAL_TEST_IMAGE")
	if image == "" {
		return true
	}
	if err := mountImage(image, dir); err != nil {
		fmt.Println("no loop:", err)
		return false
	}
	return true
}

// childRead reads the journal, and says how many events of each stream it
// holds; they must be all the first ones.
func childRead(dir string) {
	if !childMount(dir) {
		os.Exit(1)
	}
	ctx := context.Background()
	j, err := Open(ctx, Config{Dir: filepath.Join(dir, "journal")})
	if err != nil {
		die(err)
	}
	_, last := j.Bounds(0)
	if last == 0 {
		die(errors.New("the journal is empty"))
	}
	seen := map[string]int{}
	for c, err := range j.Read(ctx, framework.Position{}, nil) {
		if err == nil {
			err = c.Err
		}
		if err != nil {
			die(err)
		}
		for i := range c.Events {
			name := c.Streams[c.Events[i].Stream]
			if seen[name]++; c.Events[i].ID != strconv.Itoa(seen[name]) {
				die(fmt.Errorf("%s: event %s in the place of %d", name, c.Events[i].ID, seen[name]))
			}
		}
		if c.Seq >= last {
			break
		}
	}
	for name, n := range seen {
		l, err := j.Stream(ctx, name)
		if err != nil {
			die(err)
		}
		r, err := l.Resume(ctx)
		if err != nil {
			die(err)
		}
		if string(r.Cursor) != strconv.Itoa(n) {
			die(fmt.Errorf("%s: cursor %s after %d events", name, r.Cursor, n))
		}
		fmt.Println(strings.TrimPrefix(name, "t/"), n)
	}
	if err := j.Close(); err != nil {
		die(err)
	}
	os.Exit(0)
}

// TestPowerCut stops the program at any moment, takes what is on the disk then,
// and opens that: nothing that was committed may be missing. The disk is a file
// with an ext4 file system that writes nothing by itself, so what was not
// synced is lost. Where loop devices may not be used, it is a copy of the files,
// which shows torn chunks, but no missing ones.
func TestPowerCut(t *testing.T) {
	image := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(image)
	if err == nil {
		err = errors.Join(f.Truncate(imageBytes), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	loop := false
	if mkfs, err := exec.LookPath("mkfs.ext4"); err != nil {
		t.Log("no ext4:", err)
	} else if out, err := exec.Command(mkfs, "-q", "-E", "nodiscard", image).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	} else {
		loop = true
	}
	var reported [childStreams]int
	cuts := 0
	for round := range 4 {
		dir := filepath.Join(t.TempDir(), "mnt")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		start := func(what, image string) (*exec.Cmd, io.Reader) {
			cmd := child(t, what, dir)
			if loop {
				cmd.Env = append(cmd.Env, "JOURNAL_TEST_IMAGE="+image)
				inNamespace(cmd)
			}
			out, err := cmd.StdoutPipe()
			if err == nil {
				err = cmd.Start()
			}
			if err != nil {
				t.Fatal(err)
			}
			return cmd, out
		}
		cmd, out := start("disk", image)
		sc := bufio.NewScanner(out)
		if sc.Scan(); strings.HasPrefix(sc.Text(), "no loop") {
			t.Log(sc.Text())
			_ = cmd.Wait() // it has said why
			loop = false
			cmd, out = start("disk", image)
			sc = bufio.NewScanner(out)
		}
		reported = [childStreams]int{}
		note := func() bool {
			if !sc.Scan() {
				t.Fatalf("it ended by itself: %v", cmd.Wait())
			}
			var s, n int
			if _, err := fmt.Sscan(sc.Text(), &s, &n); err == nil {
				reported[s] = max(reported[s], n)
			}
			return true
		}
		for range 20 + rand.IntN(200) {
			note()
		}
		if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		cut := filepath.Join(t.TempDir(), "cut")
		if loop {
			standsStill(t, cmd.Process.Pid)
			err = snapshot(image, cut)
		} else {
			err = os.CopyFS(cut, os.DirFS(dir))
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // it was killed
		if !loop {
			dir = cut
		}
		got := [childStreams]int{}
		cmd, out = start("read", cut)
		text, err := io.ReadAll(out)
		if err := errors.Join(err, cmd.Wait()); err != nil {
			t.Fatalf("round %d: after the cut: %v\n%s", round, err, text)
		}
		for line := range strings.Lines(string(text)) {
			var s, n int
			if _, err := fmt.Sscan(line, &s, &n); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			got[s] = n
		}
		for s := range got {
			if got[s] < reported[s] {
				t.Errorf("round %d: stream %d: %d events are left, %d were committed", round, s, got[s], reported[s])
			}
			cuts += reported[s]
		}
		t.Logf("round %d: committed %v, left %v, loop %v", round, reported, got, loop)
		if loop { // the next round begins with the cut disk
			image = cut
		}
	}
	if cuts == 0 {
		t.Error("nothing was ever committed")
	}
}

// standsStill waits until the process has really stopped: a thread does so only
// when the kernel has done what it asked for, as syncing a file.
func standsStill(t *testing.T, pid int) {
	t.Helper()
	for moves := true; moves; time.Sleep(time.Millisecond) {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		if err != nil || len(threads) == 0 {
			t.Fatalf("process %d is gone: %v", pid, err)
		}
		moves = false
		for _, thread := range threads {
			stat, err := os.ReadFile(thread)
			moves = moves || err == nil && !bytes.Contains(stat, []byte(") T "))
		}
	}
}

// snapshot copies a disk whose only writer stands still, as it is at one moment:
// what the kernel writes by itself meanwhile has it copied again.
func snapshot(image, to string) error {
	for {
		var before, after unix.Stat_t
		if err := errors.Join(unix.Stat(image, &before), copyFile(image, to), unix.Stat(image, &after)); err != nil {
			return err
		}
		if before.Mtim == after.Mtim && before.Blocks == after.Blocks {
			return nil
		}
	}
}

func copyFile(image, to string) error {
	from, err := os.Open(image)
	if err != nil {
		return err
	}
	defer from.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, from)
	return errors.Join(err, out.Close())
}

// childFull fills its disk and makes room again while it appends.
func childFull(dir string) {
	err := private()
	if err == nil {
		err = syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=128m")
	}
	if err != nil {
		die(err)
	}
	ctx := context.Background()
	log := &countingLog{Handler: slog.NewTextHandler(os.Stdout, nil)}
	j, err := Open(ctx, Config{Dir: filepath.Join(dir, "journal"), ChunkEvents: 100, Log: slog.New(log)})
	if err != nil {
		die(err)
	}
	if err := j.Sync(ctx); err != nil {
		die(err)
	}
	if os.Getenv("JOURNAL_TEST_UNKNOWN") != "" { // what is free, as on windows
		j.free = func(string) (uint64, error) { return 0, errors.ErrUnsupported }
	}
	l, err := j.Stream(ctx, "t/0")
	if err != nil {
		die(err)
	}
	const events = 3000
	still := make(chan struct{})
	j.free = log.failing(3, l.Committed, j.free, func() { close(still) })
	filled, appended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(appended)
		for n := range events {
			ev := event(n + 1)
			ev.Data = append(ev.Data, noise(n+1, 1000)...)
			if err := l.Append(ctx, ev); err != nil {
				die(err)
			}
			if n == 1000 {
				fill(filepath.Join(dir, "filler"))
				close(filled)
			}
		}
	}()
	// Full: it stands still, however often it is tried.
	<-filled
	select {
	case <-still:
	case <-appended:
		die(errors.New("the disk was never full"))
	}
	fmt.Println("stopped at", l.Committed())
	if err := os.Remove(filepath.Join(dir, "filler")); err != nil {
		die(err)
	}
	<-appended
	if err := j.Close(); err != nil {
		die(err)
	}
	os.Unsetenv("JOURNAL_TEST_IMAGE")
	childRead(dir)
}

// fill takes all that is free.
func fill(path string) {
	f, err := os.Create(path)
	if err != nil {
		die(err)
	}
	defer f.Close()
	for size := 1 << 20; size > 0; size /= 16 {
		b := make([]byte, size)
		for err = nil; err == nil; {
			_, err = f.Write(b)
		}
		if !errors.Is(err, syscall.ENOSPC) {
			die(err)
		}
	}
}

// A disk that is really full stops the writing, which says so and goes on by
// itself when there is room.
func TestFullDisk(t *testing.T) {
	for _, unknown := range []string{"", "1"} {
		cmd := child(t, "full", t.TempDir())
		cmd.Env = append(cmd.Env, "JOURNAL_TEST_UNKNOWN="+unknown)
		inNamespace(cmd)
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		for _, want := range []string{"reading pauses", "stopped at", "writing again", "0 3000"} {
			if !strings.Contains(string(out), want) {
				t.Errorf("it never said %q:\n%s", want, out)
			}
		}
	}
}
