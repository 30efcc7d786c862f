//go:build linux

package browser_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/holdline/scrape/auth"
	"github.com/holdline/scrape/auth/browser"
)

// holderVariable has the test program hold a browser below the directory that
// it names, to be killed.
const holderVariable = "HOLD_A_BROWSER_IN"

// hold logs in, says so, and keeps the browser.
func hold() {
	runtime := browser.NewRuntime(browser.Config{TempDir: os.Getenv(holderVariable), IdleTimeout: time.Hour})
	source, err := browser.NewSource(browser.SourceConfig{
		Runtime: runtime, KeepOpen: true,
		Steps: []browser.Step{{Do: browser.Open, Target: os.Getenv("HOLD_PAGE")}},
	})
	if err == nil {
		_, err = source.Obtain(context.Background(), auth.Via{}, nil)
	}
	fmt.Println("holding", err)
	if err == nil {
		time.Sleep(time.Hour)
	}
}

// eventually waits for something that another process does. Nobody promises
// when: a minute is only for the message to come before the test's own end.
func eventually(t testing.TB, what string, met func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !met(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: it never happened", what)
		}
	}
}

func TestKilledProgramLeavesNothing(t *testing.T) {
	for name, frozen := range map[string]bool{"running": false, "frozen": true} {
		t.Run(name, func(t *testing.T) {
			dir := tempDir(t)
			program := exec.Command(os.Args[0])
			program.Env = append(os.Environ(), holderVariable+"="+dir, "HOLD_PAGE="+newSite(t).URL+"/never")
			program.Stderr = os.Stderr
			stdout, err := program.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := program.Start(); err != nil {
				t.Fatal(err)
			}
			end := sync.OnceFunc(func() { program.Process.Kill(); program.Wait() })
			defer end() // also where this test gives up
			line, err := bufio.NewReader(stdout).ReadString('\n')
			if err != nil || line != "holding <nil>\n" {
				t.Fatalf("%q, %v", line, err)
			}
			// A living program's browser is nobody else's to sweep.
			if err := browser.Sweep(browser.Config{TempDir: dir}); err != nil {
				t.Error(err)
			}
			held := processesOf(t, dir)
			if len(held) < 4 {
				t.Fatalf("the program holds only %q", held)
			}
			if frozen {
				signalAll(t, dir, syscall.SIGSTOP, "")
			}
			end()
			if !frozen {
				eventually(t, "the browser ends with its program", func() bool { return len(processesOf(t, dir)) == 0 })
			}
			if rooms, _ := filepath.Glob(dir + "/*"); len(rooms) != 1 {
				t.Errorf("%v", rooms)
			}
			if err := browser.Sweep(browser.Config{TempDir: dir}); err != nil {
				t.Error(err)
			}
			nothingLeft(t, dir)
		})
	}
}

// signalAll sends a signal to the processes of dir whose command line holds
// part.
func signalAll(t testing.TB, dir string, signal syscall.Signal, part string) {
	t.Helper()
	count := 0
	for _, process := range processesOf(t, dir) {
		number, command, _ := strings.Cut(process, " ")
		pid, err := strconv.Atoi(number)
		if err != nil || pid == os.Getpid() || !strings.Contains(command, part) || command == os.Args[0]+" " {
			continue
		}
		count++
		// One of them may end by itself, or with another that was killed before.
		if err := syscall.Kill(pid, signal); err != nil && !errors.Is(err, syscall.ESRCH) {
			t.Error(err)
		}
	}
	if count == 0 {
		t.Fatalf("no process %q", part)
	}
}

func TestFrozenBrowserEndsWithClose(t *testing.T) {
	site := newSite(t)
	dir := tempDir(t)
	runtime := newRuntime(t, browser.Config{TempDir: dir})
	source := newSource(t, browser.SourceConfig{Runtime: runtime, Steps: site.steps(password)})
	if _, err := source.Obtain(t.Context(), auth.Via{}, nil); err != nil {
		t.Fatal(err)
	}
	signalAll(t, dir, syscall.SIGSTOP, "chromium")
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	closed := make(chan error)
	go func() { closed <- runtime.Close(ctx) }()
	select {
	case err := <-closed:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("Close hangs on a frozen browser")
	}
	nothingLeft(t, dir)
}

func TestFrozenBrowserEndsTheLogin(t *testing.T) {
	site := newSite(t)
	dir := tempDir(t)
	runtime := newRuntime(t, browser.Config{TempDir: dir})
	first := newSource(t, browser.SourceConfig{Runtime: runtime, Steps: site.steps(password)})
	if _, err := first.Obtain(t.Context(), auth.Via{}, nil); err != nil {
		t.Fatal(err)
	}
	signalAll(t, dir, syscall.SIGSTOP, "chromium")
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := first.Obtain(ctx, auth.Via{}, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	// The frozen one is gone, and another serves.
	if _, err := first.Obtain(t.Context(), auth.Via{}, nil); err != nil {
		t.Error(err)
	}
}

func TestBrowserStopsWhenIdle(t *testing.T) {
	for name, idle := range map[string]time.Duration{"at once": -1, "soon": 100 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			site := newSite(t)
			dir := tempDir(t)
			runtime := newRuntime(t, browser.Config{TempDir: dir, IdleTimeout: idle})
			source := newSource(t, browser.SourceConfig{Runtime: runtime, Steps: site.steps(password)})
			for range 2 {
				if _, err := source.Obtain(t.Context(), auth.Via{}, nil); err != nil {
					t.Fatal(err)
				}
				eventually(t, "the browser stops", func() bool { return len(processesOf(t, dir)) == 0 })
			}
		})
	}
}

func TestKilledBrowserIsReplaced(t *testing.T) {
	for name, part := range map[string]string{"browser": "--remote-debugging-pipe", "driver": "run-driver"} {
		t.Run(name, func(t *testing.T) {
			site := newSite(t)
			dir := tempDir(t)
			runtime := newRuntime(t, browser.Config{TempDir: dir})
			source := newSource(t, browser.SourceConfig{Runtime: runtime, Steps: site.steps(password)})
			if _, err := source.Obtain(t.Context(), auth.Via{}, nil); err != nil {
				t.Fatal(err)
			}
			signalAll(t, dir, syscall.SIGKILL, part)
			// Whether the login that comes meanwhile fails is a matter of luck;
			// it must say whose fault it is.
			if _, err := source.Obtain(t.Context(), auth.Via{}, nil); err != nil {
				if failed, ok := errors.AsType[*auth.LoginError](err); !ok || failed.Fault != auth.FaultBrowser {
					t.Errorf("%v", err)
				}
				if _, err := source.Obtain(t.Context(), auth.Via{}, nil); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestCloseEndsLogins(t *testing.T) {
	site := newSite(t)
	runtime := newRuntime(t, browser.Config{})
	source := newSource(t, browser.SourceConfig{Runtime: runtime, Steps: []browser.Step{
		{Do: browser.Open, Target: site.URL + "/never"},
		{Do: browser.WaitCookie, Target: "session", Timeout: time.Hour},
	}})
	out := &exit{}
	ended := make(chan error)
	go func() {
		_, err := source.Obtain(t.Context(), out.via(), nil)
		ended <- err
	}()
	eventually(t, "the page is opened", func() bool { return out.bytes.Load() > 0 })
	if err := runtime.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-ended; !errors.Is(err, browser.ErrClosed) {
		t.Errorf("%v", err)
	}
	if _, err := source.Obtain(t.Context(), out.via(), nil); !errors.Is(err, browser.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

func TestNoBrowserOnTheMachine(t *testing.T) {
	site := newSite(t)
	for name, config := range map[string]browser.Config{
		"no Chromium": {Chromium: "/nonexistent/chromium"},
		"no Node":     {Node: "/nonexistent/node"},
		"no driver":   {DriverDir: t.TempDir()},
	} {
		source := newSource(t, browser.SourceConfig{Runtime: newRuntime(t, config), Steps: site.steps(password)})
		_, err := source.Obtain(t.Context(), auth.Via{}, nil)
		failed, ok := errors.AsType[*auth.LoginError](err)
		if !ok || failed.AuthFault() != auth.FaultSetup || !errors.Is(err, browser.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
