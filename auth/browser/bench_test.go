//go:build linux

package browser_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/holdline/scrape/auth"
	"github.com/holdline/scrape/auth/browser"
)

// memory is what the processes of dir take in MB: the proportional set size,
// which shares out what they share.
func memory(b *testing.B, dir string) (mb float64) {
	for _, process := range processesOf(b, dir) {
		pid, _, _ := strings.Cut(process, " ")
		rollup, _ := os.ReadFile("/proc/" + pid + "/smaps_rollup")
		for line := range strings.Lines(string(rollup)) {
			if fields := strings.Fields(line); len(fields) == 3 && fields[0] == "Pss:" {
				kb, err := strconv.ParseFloat(fields[1], 64)
				if err != nil {
					b.Fatal(err)
				}
				mb += kb / 1024
			}
		}
	}
	return mb
}

// BenchmarkBrowser times logins and counts what is left after each kind of end.
func BenchmarkBrowser(b *testing.B) {
	logIn := func(b *testing.B, source *browser.Source) {
		if _, err := source.Obtain(b.Context(), auth.Via{}, nil); err != nil {
			b.Error(err)
		}
	}
	left := func(b *testing.B, dir, after string) {
		b.ReportMetric(float64(len(processesOf(b, dir))), "processes-left-after-"+after)
	}
	end := func(b *testing.B, runtime *browser.Runtime) {
		ctx, cancel := context.WithTimeout(b.Context(), 10*time.Second)
		defer cancel()
		if err := runtime.Close(ctx); err != nil {
			b.Error(err)
		}
	}
	b.Run("cold", func(b *testing.B) {
		site := newSite(b)
		dir := tempDir(b)
		for b.Loop() {
			runtime := browser.NewRuntime(browser.Config{TempDir: dir})
			logIn(b, newSource(b, browser.SourceConfig{Runtime: runtime, Steps: site.steps(password)}))
			b.StopTimer()
			end(b, runtime)
			left(b, dir, "stop")
			b.StartTimer()
		}
	})
	b.Run("warm", func(b *testing.B) {
		site := newSite(b)
		dir := tempDir(b)
		source := newSource(b, browser.SourceConfig{Runtime: newRuntime(b, browser.Config{TempDir: dir}), Steps: site.steps(password)})
		logIn(b, source)
		for b.Loop() {
			logIn(b, source)
		}
		b.ReportMetric(memory(b, dir), "MB-between-logins")
	})
	b.Run("ten identities at once", func(b *testing.B) {
		for _, slots := range []int{4, 10} {
			b.Run(fmt.Sprint("slots=", slots), func(b *testing.B) {
				site := newSite(b)
				dir := tempDir(b)
				source := newSource(b, browser.SourceConfig{Runtime: newRuntime(b, browser.Config{TempDir: dir, MaxLogins: slots}), Steps: site.steps(password), StepTimeout: time.Minute})
				logIn(b, source)
				most := 0.0
				for b.Loop() {
					over := make(chan struct{})
					var sampling, logins sync.WaitGroup
					sampling.Go(func() {
						for {
							most = max(most, memory(b, dir))
							select {
							case <-over:
								return
							case <-time.After(200 * time.Millisecond):
							}
						}
					})
					for range 10 {
						logins.Go(func() { logIn(b, source) })
					}
					logins.Wait()
					close(over)
					sampling.Wait()
				}
				b.ReportMetric(most, "MB-at-most")
			})
		}
	})
	b.Run("frozen", func(b *testing.B) {
		site := newSite(b)
		dir := tempDir(b)
		for b.Loop() {
			runtime := browser.NewRuntime(browser.Config{TempDir: dir})
			logIn(b, newSource(b, browser.SourceConfig{Runtime: runtime, Steps: site.steps(password)}))
			signalAll(b, dir, syscall.SIGSTOP, "chromium")
			began := time.Now()
			end(b, runtime)
			b.ReportMetric(time.Since(began).Seconds(), "s-to-close")
			left(b, dir, "freeze")
		}
	})
	b.Run("killed", func(b *testing.B) {
		site := newSite(b)
		dir := tempDir(b)
		for b.Loop() {
			program := exec.Command(os.Args[0])
			program.Env = append(os.Environ(), holderVariable+"="+dir, "HOLD_PAGE="+site.URL+"/never")
			stdout, err := program.StdoutPipe()
			if err != nil {
				b.Fatal(err)
			}
			if err := program.Start(); err != nil {
				b.Fatal(err)
			}
			if _, err := stdout.Read(make([]byte, 64)); err != nil {
				b.Fatal(err)
			}
			program.Process.Kill()
			program.Wait()
			began := time.Now()
			eventually(b, "the browser ends with its program", func() bool { return len(processesOf(b, dir)) == 0 })
			b.ReportMetric(time.Since(began).Seconds(), "s-until-gone")
			left(b, dir, "kill-9")
			if err := browser.Sweep(browser.Config{TempDir: dir}); err != nil {
				b.Error(err)
			}
		}
	})
}
