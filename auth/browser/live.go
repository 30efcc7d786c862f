package browser

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/playwright-community/playwright-go"

	"github.com/holdline/scrape/auth"
)

const (
	launchTime = 30 * time.Second
	// politeTime is how long a browser that is asked to end may take.
	politeTime = 3 * time.Second
)

// playwrightGlobals guards what playwright-go keeps in package variables while
// it starts a driver.
var playwrightGlobals sync.Mutex

// live is a running driver with its browser.
type live struct {
	room    *room
	driver  *playwright.Playwright
	browser playwright.Browser
	// release lets the thread go that the driver was started from.
	release func()
}

// start starts the driver and the browser in a room of their own. Its error is
// a *auth.LoginError, or the cause that ended ctx.
func start(ctx context.Context, config Config) (*live, error) {
	if runtime.GOOS == "windows" {
		return nil, setupError("browser logins do not work on Windows: their scripts need a POSIX shell", nil)
	}
	if config.Headed && runtime.GOOS == "linux" && os.Getenv("DISPLAY") == "" && os.Getenv("WAYLAND_DISPLAY") == "" {
		return nil, setupError("a window needs a display, and neither DISPLAY nor WAYLAND_DISPLAY is set: use ssh -X, or log in where there is a screen and bring the data directory and the key here", nil)
	}
	tools, err := Find(ctx, config)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err != nil {
		return nil, setupError("", err)
	}
	driver, err := config.driverDir()
	if err == nil {
		err = driverAt(driver)
	}
	if err != nil {
		return nil, setupError("", err)
	}
	if err := Sweep(config); err != nil {
		config.Log.Warn("sweeping what earlier browsers left", "error", err)
	}
	r, err := openRoom(config.tempDir())
	if err != nil {
		return nil, setupError("", err)
	}
	l := &live{room: r}
	// What ends ctx ends the processes, and with them the calls below.
	launched := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		for {
			r.clear()
			select {
			case <-launched:
				return
			case <-time.After(20 * time.Millisecond): // there may be another by now
			}
		}
	})
	began := time.Now()
	err = l.launch(config, tools, driver)
	close(launched)
	if !stop() || err != nil {
		l.stop(context.Background())
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, &auth.LoginError{Fault: auth.FaultBrowser, Reason: "the browser does not start", Err: err}
	}
	config.Log.Debug("browser started", "took", time.Since(began), "chromium", tools.ChromiumVersion, "node", tools.NodeVersion)
	return l, nil
}

func (l *live) launch(config Config, tools Tools, driver string) error {
	script, err := l.room.furnish(tools.Node, tools.Chromium, driver)
	if err != nil {
		return fmt.Errorf("private directory for the browser: %w", err)
	}
	if err := l.startDriver(); err != nil {
		return err
	}
	options := playwright.BrowserTypeLaunchOptions{
		ExecutablePath: &script,
		Headless:       playwright.Bool(!config.Headed),
		// The program decides when the browser ends, also after Ctrl-C.
		HandleSIGINT:  playwright.Bool(false),
		HandleSIGTERM: playwright.Bool(false),
		HandleSIGHUP:  playwright.Bool(false),
		Timeout:       milliseconds(launchTime),
		// Every login has a proxy of its own. What the browser wants by itself
		// goes to the discard port, where nobody listens.
		Proxy: &playwright.Proxy{Server: "http://127.0.0.1:9"},
		// Neither names nor UDP may leave by another way than the proxy.
		Args: []string{
			"--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
			"--webrtc-ip-handling-policy=disable_non_proxied_udp",
		},
		// Root cannot have the sandbox.
		ChromiumSandbox: playwright.Bool(os.Geteuid() != 0),
	}
	l.browser, err = l.driver.Chromium.Launch(options)
	if err != nil && *options.ChromiumSandbox && strings.Contains(strings.ToLower(err.Error()), "sandbox") {
		config.Log.Warn("this system gives the browser no sandbox; it runs without one", "remedy", "allow unprivileged user namespaces")
		options.ChromiumSandbox = playwright.Bool(false)
		l.browser, err = l.driver.Chromium.Launch(options)
	}
	if err != nil {
		return launchReason(err)
	}
	return nil
}

// startDriver starts the driver from a thread that stays: the driver asks to be
// killed when its parent dies, and to Linux the parent is a thread.
func (l *live) startDriver() error {
	started := make(chan error)
	done := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		started <- l.runDriver()
		<-done
	}()
	l.release = sync.OnceFunc(func() { close(done) })
	if err := <-started; err != nil {
		return fmt.Errorf("the Playwright driver: %w", err)
	}
	return nil
}

func (l *live) runDriver() error {
	playwrightGlobals.Lock()
	defer playwrightGlobals.Unlock()
	// It would go before the room's node, through which Find's is started.
	if named, ok := os.LookupEnv(nodeVariable); ok {
		os.Setenv(nodeVariable, l.room.path("node"))
		defer os.Setenv(nodeVariable, named)
	}
	var err error
	l.driver, err = playwright.Run(&playwright.RunOptions{
		DriverDirectory:     l.room.dir,
		SkipInstallBrowsers: true,
		Stdout:              io.Discard,
		Stderr:              io.Discard,
		Logger:              slog.New(slog.DiscardHandler), // nil would have it take over the log package
	})
	return err
}

// stop ends the browser and the driver and removes their room: politely while
// ctx lasts, then by SIGKILL.
func (l *live) stop(ctx context.Context) error {
	var closing sync.WaitGroup
	if l.browser != nil {
		ctx, cancel := context.WithTimeout(ctx, politeTime)
		defer cancel()
		closed := make(chan struct{})
		closing.Go(func() { defer close(closed); l.browser.Close() })
		select {
		case <-closed:
		case <-ctx.Done():
		}
	}
	// The driver is not asked but killed: playwright-go then reaps it.
	err := l.kill()
	closing.Wait()
	if l.release != nil {
		l.release()
	}
	return errors.Join(err, l.room.remove())
}

// alive reports whether the browser is to be talked to. playwright-go does not
// tell of a driver that died.
func (l *live) alive() bool {
	return l.browser.IsConnected() && driverAlive(l.driver.Pid(), l.room.dir)
}

// await waits a moment for the end of a browser that refuses what it is asked:
// it may be told late.
func (l *live) await() {
	for deadline := time.Now().Add(time.Second); l.alive() && time.Now().Before(deadline); {
		time.Sleep(glance)
	}
}

// kill ends all processes at once. Every call to the browser then fails.
func (l *live) kill() error {
	err := l.room.clear()
	if l.driver != nil {
		awaitDriver(l.driver.Pid())
	}
	return err
}

func milliseconds(d time.Duration) *float64 {
	return playwright.Float(float64(max(d, time.Millisecond)) / float64(time.Millisecond))
}

// launchReason is what the browser itself said when it did not start, out of
// the pages that Playwright says.
func launchReason(err error) error {
	var said []string
	text, _, _ := strings.Cut(err.Error(), "Call log:")
	for line := range strings.Lines(text) {
		if _, own, ok := strings.Cut(line, "[err] "); ok && len(said) < 3 {
			said = append(said, short(strings.TrimSpace(own), 300))
		}
	}
	if len(said) == 0 {
		return errors.New(short(firstLines(text, 1), 300))
	}
	return errors.New(strings.Join(said, "; "))
}

// firstLines cuts a message of Playwright, which may go on for pages.
func firstLines(s string, n int) string {
	lines := strings.SplitN(strings.TrimSpace(s), "\n", n+1)
	return strings.Join(lines[:min(len(lines), n)], "\n")
}
